"""What a reward is: any function of lists. It is called with what it asks for, and what it returns is checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError, RunError, ThriftyError, nearest
from thrifty.data.optional import first_line

Reward = Callable[..., Any]
"""``reward(prompts, completions, ...)``: a list, NumPy array or tensor with one number (or None) a completion."""

Text = str | Sequence[Mapping[str, str]]
"""A string, or the messages (``role``, ``content``) of a conversation."""

_OWN = ("prompts", "completions", "completion_ids")
_Kind = inspect.Parameter


def score(
    reward: Reward,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    conversational: bool = False,
) -> Float[Tensor, " N"]:
    """What each completion is worth.

    The function is called with those of ``prompts``, ``completions``, ``completion_ids`` and the columns that its
    signature names, by keyword, as TRL does; with ``**kwargs`` it gets all of them. One that names no
    ``completions`` gets prompts and completions as its first two arguments, whatever their names, or, if it has only
    one, the completions.

    Parameters
    ----------
    reward
        Any callable of lists.
    prompts
        The prompt of each completion: repeated where one prompt has several.
    completions
        What the model said, one for each prompt.
    completion_ids
        Their tokens.
    columns
        Further columns of the data, such as ``answer``, each as long as the completions.
    conversational
        Give strings to the function as messages: ``[{"role": "assistant", "content": ...}]``, and prompts likewise.

    Returns
    -------
    Tensor
        float32, finite.

    Raises
    ------
    InputError
        When the lists differ in length, or the function needs a column that is not there.
    RunError
        When the function raises, or returns the wrong number of values, one that is no finite number, or None: the
        reward and the prompt are named.
    """
    values = checked_values(
        reward,
        prompts,
        completions,
        completion_ids=completion_ids,
        columns=columns,
        conversational=conversational,
    )
    for prompt, value in zip(prompts, values, strict=True):
        if value is None:
            raise RunError(
                f"reward {reward_name(reward)!r} returned None (does not apply) for the prompt {shown(prompt)}, and no "
                "other reward applies to it: return a number, or mix it with one that always applies"
            )
    return torch.tensor(values, dtype=torch.float32)


def checked_values(
    reward: Reward,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    conversational: bool = False,
) -> list[float | None]:
    """As :func:`score`, with None where the reward does not apply."""
    columns = columns or {}
    _check_lengths(prompts, completions, completion_ids, columns)
    if not len(completions):
        return []
    if conversational:
        prompts = [as_turn(prompt, "user") for prompt in prompts]
        completions = [as_turn(completion, "assistant") for completion in completions]
    given: dict[str, Any] = {"prompts": list(prompts), "completions": list(completions), **columns}
    if completion_ids is not None:
        given["completion_ids"] = completion_ids
    name = reward_name(reward)
    args, kwargs = _arguments(reward, name, given)
    try:
        returned = reward(*args, **kwargs)
    except ThriftyError:
        raise  # a part of a mixture, or a verifier, that has already said what is wrong
    except Exception as error:
        raise RunError(
            f"reward {name!r} raised {type(error).__name__}: {first_line(error)} (in the batch of {len(prompts)} that "
            f"begins with the prompt {shown(prompts[0])})"
        ) from error
    return _numbers(returned, name, prompts)


def shared_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns that all records have beside ``prompt``, as :func:`score` takes them.

    Parameters
    ----------
    records
        The record of each completion; at least one.
    """
    names = [name for name in records[0] if name != "prompt" and all(name in record for record in records)]
    return {name: [record[name] for record in records] for name in names}


def reward_name(reward: Reward) -> str:
    """What logs and errors call a reward: its ``name``, else that of the function or class."""
    for holder in (reward, getattr(reward, "func", None), type(reward)):
        for attribute in ("name", "__name__"):
            name = getattr(holder, attribute, None)
            if isinstance(name, str):
                return name
    return type(reward).__name__


def text_of(said: Text) -> str:
    """A prompt or completion as text: of messages, what the last one says.

    Raises
    ------
    InputError
        When it is neither a string nor messages.
    """
    if isinstance(said, str):
        return said
    if isinstance(said, Sequence) and said and isinstance(said[-1], Mapping) and "content" in said[-1]:
        return str(said[-1]["content"])
    raise InputError(f"expected a string or messages with role and content, got {shown(said)}")


def as_turn(said: Text, role: str) -> list[dict[str, str]]:
    """A string as one message of a role; messages as they are."""
    return [{"role": role, "content": said}] if isinstance(said, str) else [dict(message) for message in said]


def shown(said: Any) -> str:
    """A prompt as errors quote it: on one line, shortened."""
    text = said if isinstance(said, str) else repr(said)
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _check_lengths(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any] | None,
    columns: Mapping[str, Sequence[Any]],
) -> None:
    many = len(completions)
    lists: dict[str, Sequence[Any]] = {"prompts": prompts, **columns}
    if completion_ids is not None:
        lists["completion_ids"] = completion_ids
    for name, values in lists.items():
        if name in columns and name in _OWN:
            raise InputError(f"a column can't be called {name!r}: rewards get something else under that name")
        if isinstance(values, str) or len(values) != many:
            raise InputError(f"{name} has {len(values)} entries for {many} completions: give one for each")


def _arguments(reward: Reward, name: str, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments that a reward's signature asks for."""
    if isinstance(reward, torch.nn.Module):
        raise InputError(f"{name} is a bare model: wrap it in OutcomeModel or ProcessModel with its tokenizer")
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # some builtins don't tell
        return [given["prompts"], given["completions"]], {}
    takes_all = any(p.kind is _Kind.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind not in (_Kind.VAR_KEYWORD, _Kind.VAR_POSITIONAL)]
    args: list[Any] = []
    if not {p.name for p in named} & {"completions", "completion_ids"}:
        first = [p for p in named if p.kind is not _Kind.KEYWORD_ONLY][:2]
        star = len(named) == 0 and not takes_all
        if len(first) == 2 or star:
            args = [given["prompts"], given["completions"]]
        elif len(first) == 1 and first[0].name != "prompts":
            args = [given["completions"]]
        elif not takes_all:
            raise InputError(f"reward {name!r} does not take the completions: give it a parameter `completions`")
        clash = next((p.name for p in first if args and p.name in given and p.name not in _OWN), None)
        if clash is not None:
            raise InputError(
                f"reward {name!r} has a parameter {clash!r} like a column, and none for the completions: call that one "
                "`completions`"
            )
        if args:
            named = named[len(first) :]
            given = {key: value for key, value in given.items() if key not in ("prompts", "completions")}
    kwargs: dict[str, Any] = {}
    for parameter in named:
        if parameter.name in given:
            value = given[parameter.name]
            if parameter.kind is _Kind.POSITIONAL_ONLY:
                args.append(value)
            else:
                kwargs[parameter.name] = value
        elif parameter.default is _Kind.empty:
            there = [key for key in given if key not in _OWN]
            hint = nearest(parameter.name, there) or "there are no columns"
            raise InputError(f"reward {name!r} needs the column {parameter.name!r}, which the data lack: {hint}")
    if takes_all:
        taken = {p.name for p in parameters}
        kwargs |= {key: value for key, value in given.items() if key not in taken}
    return args, kwargs


def _numbers(returned: Any, name: str, prompts: Sequence[Text]) -> list[float | None]:
    if inspect.iscoroutine(returned):
        returned.close()
        raise RunError(f"reward {name!r} is asynchronous: only plain functions are called")
    if hasattr(returned, "tolist"):  # NumPy arrays and torch tensors
        returned = returned.tolist()
    if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__iter__"):
        raise RunError(f"reward {name!r} returned {type(returned).__name__}, expected a list of {len(prompts)} numbers")
    values = list(returned)
    if len(values) != len(prompts):
        raise RunError(f"reward {name!r} returned {len(values)} values for {len(prompts)} completions")
    return [_number(value, name, prompt) for value, prompt in zip(values, prompts, strict=True)]


def _number(value: Any, name: str, prompt: Text) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RunError(
            f"reward {name!r} returned {value!r} for the prompt {shown(prompt)}: expected a finite number, or None "
            "where it does not apply"
        )
    return number
