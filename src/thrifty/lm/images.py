"""Prompts with pictures: what a model's processor makes of each, kept under a number that sequences carry.

Token ids alone don't say what is to be seen. So prompts are kept in a store that is attached to the model, and a column
``image_prompt`` holds each row's number in it. Everything else of :class:`~thrifty.lm.sequences.Sequences` is as
usual, and :func:`thrifty.lm.logps.token_logps` shows each row its pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.data.optional import first_line
from thrifty.lm.backbone import unwrapped
from thrifty.lm.chat import ended
from thrifty.lm.sequences import Sequences, from_rows
from thrifty.nets.pictures import as_rgb

IMAGE_PROMPT = "image_prompt"
"""The column of a row's number in the store of prompts."""
_KEPT = 128  # prompts whose pictures are kept as tensors
_ATTRIBUTE = "image_prompts"
# Says for each text token which pictures it may look at: an answer's tokens look at what the prompt's last one does.
_CARRIED_ON = "cross_attention_mask"


class ImagePrompt(str):
    """A prompt's text, with its number among the prompts of an :class:`ImagePrompts`."""

    __slots__ = ("number",)

    def __new__(cls, text: str, number: int) -> ImagePrompt:
        """A string like others, for rewards and logs."""
        made = super().__new__(cls, text)
        made.number = number
        return made

    number: int


@dataclass(frozen=True)
class Processed:
    """What a processor made of one prompt.

    Parameters
    ----------
    ids
        Token ids, with those that stand for pictures.
    inputs
        What the model wants beside them, such as ``pixel_values``: for one row.
    """

    ids: list[int]
    inputs: Mapping[str, Tensor]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Prompts of one kind can be rows of one batch: the shapes of their pictures agree."""
        rows = ((name, self.by_token(name), tensor.shape[1:]) for name, tensor in self.inputs.items())
        return tuple(sorted((name, tuple(shape[1:] if token else shape)) for name, token, shape in rows))

    def by_token(self, name: str) -> bool:
        """Whether that input says something about each token."""
        return self.inputs[name].shape[:2] == (1, len(self.ids))

    def of_length(self, name: str, length: int, kind: int = 0) -> Tensor:
        """That input for a row of so many tokens, the prompt's first, and then ``kind`` for those of the answer."""
        given = self.inputs[name]
        if not self.by_token(name) or length == given.shape[1]:
            return given
        more = given[:, -1:].expand(-1, length - given.shape[1], *given.shape[2:])
        return torch.cat([given, more if name == _CARRIED_ON else torch.full_like(more, kind)], 1)


class ImagePrompts:
    """Prompts with pictures, in the order in which they were added; the same order gives the same numbers.

    Parameters
    ----------
    processor
        The model's own, of transformers: its tokenizer, image processor and chat template.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.answer_kind = 0  # what the model calls an answer's token, where it is told of what kind each is
        self._prompts: list[tuple[str, tuple[Any, ...]]] = []
        self._processed: dict[int, Processed] = {}

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return self.processor.tokenizer

    def __len__(self) -> int:
        return len(self._prompts)

    def __deepcopy__(self, memo: Any) -> ImagePrompts:  # a copied model has seen the same
        return self

    def attach(self, model: Any) -> None:
        """Makes these the prompts that a model's sequences speak of, also when it is wrapped by PEFT later."""
        setattr(unwrapped(model), _ATTRIBUTE, self)

    def add(self, text: str, images: Sequence[Any] = ()) -> ImagePrompt:
        """A prompt of one user turn.

        Parameters
        ----------
        text
            What is asked.
        images
            What it is about: paths, PIL images or arrays (:func:`thrifty.nets.pictures.as_rgb`), which stand before
            the text; none for a prompt of text alone.
        """
        self._prompts.append((text, tuple(images)))
        return ImagePrompt(text, len(self._prompts) - 1)

    def __getitem__(self, number: int) -> Processed:
        """What the processor makes of a prompt.

        Raises
        ------
        InputError
            When there is no prompt of that number, a picture can't be read, or the processor refuses.
        """
        if not 0 <= number < len(self):
            raise InputError(f"there is no prompt {number} among the {len(self)} that were added: add them again first")
        if number not in self._processed:
            if len(self._processed) >= _KEPT:
                del self._processed[next(iter(self._processed))]
            self._processed[number] = self._process(number)
        return self._processed[number]

    def _process(self, number: int) -> Processed:
        from PIL import Image

        text = self._rendered(number)
        pictures = [Image.fromarray(as_rgb(picture)) for picture in self._prompts[number][1]]
        start = self.tokenizer.bos_token
        options: dict[str, Any] = {"add_special_tokens": False} if start and text.startswith(start) else {}
        if pictures:
            options["images"] = pictures
        try:
            made = dict(self.processor(text=[text], return_tensors="pt", **options))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(
                f"the model's processor can't read prompt {number} ({text[:60]!r}, {len(pictures)} pictures): "
                f"{first_line(error)}"
            ) from error
        ids = made.pop("input_ids")[0].tolist()
        made.pop("attention_mask", None)
        return Processed(ids, {name: value for name, value in made.items() if isinstance(value, Tensor)})

    def _rendered(self, number: int, answer: str | None = None) -> str:
        """The text of a prompt, up to where the answer begins, or with an answer."""
        text, pictures = self._prompts[number]
        if not getattr(self.processor, "chat_template", None):
            opening = getattr(self.processor, "image_token", "<image>") * len(pictures) + text
            return opening if answer is None else f"{opening} {answer}"
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        template = self.processor.apply_chat_template
        return str(template(messages, tokenize=False, add_generation_prompt=answer is None))

    def answer_ids(self, number: int, answer: str) -> list[int]:
        """Tokens that the model would generate to say ``answer``, its end-of-sequence token included.

        Raises
        ------
        InputError
            When the template writes the prompt differently once an answer follows.
        """
        opening, whole = self._rendered(number), self._rendered(number, answer)
        if not whole.startswith(opening):
            raise InputError("the processor's chat template writes the prompt differently once an answer follows it")
        ids = self.tokenizer(whole[len(opening) :], add_special_tokens=False)["input_ids"]
        return ended(self.tokenizer, ids)

    def sequences(self, prompts: Sequence[ImagePrompt], answers: Sequence[str]) -> Sequences:
        """Rows to learn from: each prompt with its answer.

        Parameters
        ----------
        prompts
            Of this store; one may come several times.
        answers
            One for each.
        """
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids, said = self[prompt.number].ids, self.answer_ids(prompt.number, answer)
            rows.append((ids + said, [False] * len(ids) + [True] * len(said)))
        return from_rows(rows, pad_id=self.pad_id, row_columns={IMAGE_PROMPT: [prompt.number for prompt in prompts]})

    @property
    def pad_id(self) -> int:
        """What fills the padding."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        return int(pad or 0)

    def inputs(self, numbers: Sequence[int], length: int, like: Tensor) -> dict[str, Tensor]:
        """What the model wants beside token ids for a batch of rows of one kind.

        Parameters
        ----------
        numbers
            The prompt of each row.
        length
            Tokens a row, padding included.
        like
            A tensor of the device and dtype that the model computes in.
        """
        processed = [self[number] for number in numbers]
        joined = {}
        for name in processed[0].inputs if processed else ():
            tensor = torch.cat([one.of_length(name, length, self.answer_kind) for one in processed])
            joined[name] = tensor.to(like.device, like.dtype if tensor.is_floating_point() else None)
        return joined

    def by_kind(self, numbers: Sequence[int]) -> list[list[int]]:
        """The places of the rows that can be one batch, kind after kind."""
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for place, number in enumerate(numbers):
            kinds.setdefault(self[number].kind, []).append(place)
        return list(kinds.values())


def prompts_of(model: Any) -> ImagePrompts:
    """The prompts that were attached to a model.

    Raises
    ------
    InputError
        When there are none.
    """
    found = getattr(unwrapped(model), _ATTRIBUTE, None)
    if not isinstance(found, ImagePrompts):
        raise InputError(
            f"these sequences have pictures (column {IMAGE_PROMPT!r}), but none were attached to this "
            f"{type(unwrapped(model)).__name__}: call ImagePrompts.attach(model)"
        )
    return found
