"""Plain text for calibration and for measuring: a set of this library, a text file, or records with a ``text``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.assets import ASSETS
from thrifty.data.readers import read
from thrifty.data.text import texts


def read_texts(name: str) -> list[str]:
    """The texts of a file or a set.

    Parameters
    ----------
    name
        A ``.txt`` file (paragraphs, apart by empty lines), records with a column ``text`` (JSONL, Parquet, CSV), or
        ``bbc-news``, ``sarcasm`` or ``spam``: the part of these sets that is for training.

    Raises
    ------
    NotFoundError
        When there is nothing of that name.
    InputError
        When it holds no text.
    """
    known = ASSETS.get(name)
    if known is not None and known.kind == "text" and not Path(name).exists():
        return list(texts(name).train_texts)
    path = Path(name).expanduser()
    if path.suffix == ".txt":
        if not path.is_file():
            raise NotFoundError(f"no text file {name}")
        try:
            found = [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n")]
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not UTF-8 text: convert it first") from error
    else:
        found = [str(row["text"]) for row in read(name, columns=["text"])]
    found = [text for text in found if text.strip()]
    if not found:
        raise InputError(f"{name} holds no text")
    return found


def held_out(found: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits texts: every tenth is held out; of a single one, its last tenth."""
    if len(found) == 1:
        cut = len(found[0]) * 9 // 10
        return [found[0][:cut]], [found[0][cut:]]
    return [text for at, text in enumerate(found) if at % 10 != 9], (
        [text for at, text in enumerate(found) if at % 10 == 9] or [found[-1]]
    )
