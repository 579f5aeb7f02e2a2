"""Models from the hub that score text: loaded safely, run in batches of similar length, read as scores."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError, nearest
from thrifty.data.fetch import fetch
from thrifty.lm.backbone import evaluating, unwrapped
from thrifty.lm.load import check_weights, stored_config

Kind = Literal["sequence classifier", "token classifier", "causal language model"]
Output = Literal["logit", "probability", "difference"]

_ENDINGS: dict[Kind, tuple[str, ...]] = {
    "sequence classifier": ("ForSequenceClassification",),
    "token classifier": ("ForTokenClassification",),
    "causal language model": ("ForCausalLM", "LMHeadModel"),
}
_AUTO: dict[Kind, str] = {
    "sequence classifier": "AutoModelForSequenceClassification",
    "token classifier": "AutoModelForTokenClassification",
    "causal language model": "AutoModelForCausalLM",
}


def load_classifier(
    name: str | Path, kinds: Sequence[Kind], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """A model of one of some kinds with its tokenizer: safetensors only, and no code that comes with a model.

    Raises
    ------
    NotFoundError
        When there is no such model.
    InputError
        When it is of another kind, or can't be loaded.
    """
    import safetensors
    import transformers

    folder = fetch(str(name))
    kind = _stored_kind(name, folder, kinds)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = getattr(transformers, _AUTO[kind]).from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, safetensors.SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} can't be loaded as a {kind}: {first}") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return model.to(device).eval(), tokenizer


def check_kind(model: Any, kinds: Sequence[Kind], labels: Sequence[int]) -> Kind:
    """Which of the kinds a model is.

    Parameters
    ----------
    model
        Of transformers, also wrapped by PEFT.
    kinds
        Those that would do.
    labels
        Numbers of labels that a classifier may have.

    Raises
    ------
    InputError
        When it is of another kind, or has another number of labels.
    """
    inner = unwrapped(model)
    names = [base.__name__ for base in type(inner).__mro__]
    kind = _kind(names, kinds)
    if kind is None:
        raise InputError(f"a {' or '.join(kinds)} of transformers was expected, {type(inner).__name__} was given")
    many = getattr(inner.config, "num_labels", None)
    if kind != "causal language model" and many not in labels:
        raise InputError(
            f"{type(inner).__name__} has {many} labels: expected 1 (a score) or 2 (the first for bad, the second for "
            "good)"
        )
    return kind


def judged(logits: Float[Tensor, "*N L"], output: Output) -> Float[Tensor, "*N"]:
    r"""One score of the logits of one label, or of two (bad, good).

    With two labels :math:`z` is the difference of the logits, with one the logit itself:

    .. math::
        \text{logit} = z, \qquad \text{probability} = \sigma(z) = \mathrm{softmax}_1, \qquad
        \text{difference} = 2\sigma(z) - 1 = \mathrm{softmax}_1 - \mathrm{softmax}_0

    Parameters
    ----------
    logits
        L is 1 or 2.
    output
        Which of the three.
    """
    logits = logits.float()
    z = logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
    return {"logit": lambda: z, "probability": z.sigmoid, "difference": lambda: (z / 2).tanh()}[output]()


def check_output(output: str) -> None:
    """Raises an :class:`InputError` for an unknown kind of score."""
    if output not in get_args(Output):
        raise InputError(f"output is {output!r}: {nearest(output, get_args(Output))}")


@torch.no_grad()
def logits_of(
    model: Any, rows: Sequence[Sequence[int]], batch_size: int, reads: Sequence[Sequence[int]] | None = None
) -> Iterator[tuple[list[int], Float[Tensor, "B *T L"], list[int]]]:
    """Runs a model over token rows, shortest first, in batches of similar length.

    Parameters
    ----------
    model
        In evaluation mode while it runs; afterwards as it was.
    rows
        Token ids of each text.
    batch_size
        Texts in one forward pass.
    reads
        Positions of each row whose logits are wanted, when the model gives some for every token; only these are
        computed where the model can.

    Yields
    ------
    tuple
        Numbers of the rows in the batch, their logits, and the positions that the logits' second axis stands for
        (all of the batch's reads; empty without ``reads``).
    """
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    keeps = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        wanted = sorted({position for number in batch for position in reads[number]}) if reads is not None else []
        ids, mask, pad = _padded([rows[number] for number in batch], model)
        more = {"logits_to_keep": torch.tensor(wanted, device=ids.device)} if keeps and wanted else {}
        with evaluating(model), _padding_token(model, pad):
            logits = model(input_ids=ids, attention_mask=mask, **more).logits
        if wanted and not more:
            logits = logits[:, wanted]
        yield batch, logits, wanted


def _padded(rows: Sequence[Sequence[int]], model: Any) -> tuple[Tensor, Tensor, int]:
    """Right-padded rows and the padding token: the model's own, else one that occurs in no row."""
    config = unwrapped(model).config.get_text_config()
    pad = config.pad_token_id
    if pad is None:
        # Sequence classifiers find a row's end by the padding token, so it must not be one that is said.
        used = {token for row in rows for token in row}
        pad = next((token for token in range(config.vocab_size) if token not in used), 0)
    device = next(model.parameters()).device
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long(), pad


class _padding_token:  # noqa: N801  (used like a function)
    """Lets a model without padding token know the one in use, for a while."""

    def __init__(self, model: Any, pad: int) -> None:
        self.config, self.pad = unwrapped(model).config.get_text_config(), pad

    def __enter__(self) -> None:
        self.before = self.config.pad_token_id
        self.config.pad_token_id = self.pad

    def __exit__(self, *_: object) -> None:
        self.config.pad_token_id = self.before


def longest(model: Any) -> int | None:
    """Most tokens that a model reads, where its configuration says so."""
    found = getattr(unwrapped(model).config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def model_name(model: Any) -> str:
    """What logs call a model: where it was loaded from, else its class."""
    return str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)


def _kind(names: Sequence[str], kinds: Sequence[Kind]) -> Kind | None:
    return next((kind for kind in kinds if any(name.endswith(_ENDINGS[kind]) for name in names)), None)


def _stored_kind(name: str | Path, folder: Path, kinds: Sequence[Kind]) -> Kind:
    architectures = stored_config(name, folder).get("architectures") or []
    kind = _kind(architectures, kinds)
    if kind is None:
        what = architectures[0] if architectures else "model without architectures"
        raise InputError(f"{name} is a {what}; a {' or '.join(kinds)} was expected")
    check_weights(name, folder)
    return kind
