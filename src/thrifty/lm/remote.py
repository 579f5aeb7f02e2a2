"""Sampling on ranks of its own: the last processes of a job answer prompts, the others train.

``torchrun --nproc-per-node 3 -m thrifty run topr --sampling-processes 1`` trains in two processes and samples in the
third. In a script of one's own::

    if sampling_processes(1):  # the last process stays in there until the others are done
        sys.exit()
    train(model, GRPO(), prompts, run, tokenizer=tokenizer, reward=reward)

The training processes find one another as if they were alone. Their main process gives the sampling ones the policy's
weights before each rollout (broadcast), deals the prompts out to them, and hands what they say on to its fellows.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load, save
from torch import Tensor

from thrifty.core import processes
from thrifty.core.errors import InputError, RunError
from thrifty.lm.backbone import unwrapped
from thrifty.lm.chat import Prompt, prompt_ids
from thrifty.lm.draw import Draw
from thrifty.lm.sample import stop_tokens
from thrifty.lm.sampler import ModelSampler, Request, merged_adapters, named_weights
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")
_dist: Any = torch.distributed  # whose stores and groups are not typed
_PATIENCE = timedelta(days=1)
_MAIN = 0  # of the link: the main training process; the sampling ones follow


class Link:
    """The exchange between the main training process and the sampling ones.

    Parameters
    ----------
    store
        Through which they find each other.
    rank, size
        0 for the main training process, 1 … for the sampling ones; how many they are together.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.samplers, self.used = rank, size - 1, False
        self._group = _dist.ProcessGroupGloo(_dist.PrefixStore("samplers", store), rank, size, _PATIENCE)

    def close(self) -> None:
        """Ends the exchange's threads, which must not outlive the interpreter: see :mod:`thrifty.core.processes`."""
        self._group = None
        gc.collect()

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Gives a tensor of the main process to all others, in place."""
        on_cpu = tensor.detach().cpu().contiguous()
        self._group.broadcast(on_cpu, _MAIN).wait()
        if self.rank != _MAIN:
            tensor.copy_(on_cpu)
        return tensor

    def announce(self, message: Any = None) -> Any:
        """What the main process says to all others: anything that JSON can hold."""
        said = _bytes(json.dumps(message).encode())
        length = self.broadcast(torch.tensor([len(said)]))
        found = self.broadcast(said if self.rank == _MAIN else torch.empty(int(length), dtype=torch.uint8))
        return json.loads(bytes(found.numpy()))

    def reply(self, tensors: Mapping[str, Tensor], error: str = "") -> None:
        """Gives the main process tensors, or says what went wrong."""
        for part in (error.encode(), save(dict(tensors))):
            self._group.send([torch.tensor([len(part)])], _MAIN, 0).wait()
            if part:
                self._group.send([_bytes(part)], _MAIN, 0).wait()

    def replies(self) -> Iterator[dict[str, Tensor]]:
        """The tensors that each sampling process gives the main one, in order.

        Raises
        ------
        RunError
            When one of them says that something went wrong.
        """
        found = [(self._received(other), self._received(other)) for other in range(1, self.samplers + 1)]
        for number, (error, tensors) in enumerate(found, start=1):
            if error:
                raise RunError(f"sampling process {number} failed: {error.decode()}")
            yield load(tensors)

    def _received(self, other: int) -> bytes:
        length = torch.empty(1, dtype=torch.long)
        self._group.recv([length], other, 0).wait()
        said = torch.empty(int(length), dtype=torch.uint8)
        if len(said):
            self._group.recv([said], other, 0).wait()
        return bytes(said.numpy())


def _bytes(said: bytes) -> Tensor:
    return torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class _Apart:
    """That this training job has sampling processes; only the main process has the link to them."""

    link: Link | None


_apart: _Apart | None = None


def sampling_processes(count: int, device: torch.device | str = "cpu") -> bool:
    """Sets the last ``count`` processes of a job apart for sampling; called before anything is exchanged.

    Parameters
    ----------
    count
        How many; 0 for none, which does nothing.
    device
        Where a sampling process samples; ``cuda`` becomes its own GPU.

    Returns
    -------
    bool
        True in a sampling process, once the training ones are done; False, at once, in the others.

    Raises
    ------
    InputError
        When no process would be left for training.
    """
    global _apart
    if count == 0:
        return False
    world, rank = processes.world(), processes.rank()
    if not 0 < count < world:
        raise InputError(
            f"{count} of {world} processes can't sample: leave one for training, as in "
            f"torchrun --nproc-per-node {count + 1}"
        )
    trains, link = world - count, None
    if rank == 0 or rank >= trains:
        link = Link(_store(rank), max(0, rank - trains + 1), count + 1)
    if rank >= trains:
        assert link is not None
        _serve(link, _own(torch.device(device)))
        link.close()
        return True
    os.environ["WORLD_SIZE"] = str(trains)
    _apart = _Apart(link)
    if link is not None:
        atexit.register(_end, link)
    return False


def sampler_apart(model: Any, tokenizer: Any) -> RemoteSampler | None:
    """What samples in this job's sampling processes; ``None`` where it has none."""
    return None if _apart is None else RemoteSampler(_apart.link, model, tokenizer)


class RemoteSampler:
    """Samples in the processes that were set apart for it; see :func:`sampling_processes`.

    Parameters
    ----------
    link
        To them, in the main process; ``None`` in the others, which get the answers from the main one.
    model, tokenizer
        The policy and its tokenizer.
    """

    def __init__(self, link: Link | None, model: Any, tokenizer: Any) -> None:
        self.link, self.tokenizer = link, tokenizer
        self._stop = stop_tokens(model, tokenizer)
        self._begun = False

    def refresh(self, model: Any) -> None:
        """Gives the sampling processes the model's weights, adapters added to them."""
        if self.link is None:
            return
        with merged_adapters(model):
            weights = dict(named_weights(model))
            about: dict[str, Any] = {"do": "refresh", "names": list(weights)}
            if not self._begun:
                about["model"] = _described(unwrapped(model), next(iter(weights.values())).dtype)
                self._begun = True
            self.link.announce(about)
            for weight in weights.values():
                self.link.broadcast(weight)

    def sample(self, prompts: Sequence[Prompt], request: Request) -> Sequences:
        """See :class:`thrifty.lm.sampler.Sampler`: the answers that this process would give."""
        assert self.link is not None
        self.link.used = True
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        pad, end = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        asked = {"ids": ids, "stop": sorted(self._stop), "pad": pad, "end": end, "request": asdict(request)}
        self.link.announce({"do": "sample"} | asked)
        parts = [_sequences(tensors) for tensors in self.link.replies() if tensors]
        found = Sequences.cat(parts, pad_id=pad if pad is not None else min(self._stop, default=0))
        return found.select(found["group"].argsort(stable=True))


def _sequences(tensors: dict[str, Tensor]) -> Sequences:
    masks = {name: tensors.pop(name) for name in _MASKS}
    return Sequences(**masks, columns=tensors)


_MASKS = ("input_ids", "attention_mask", "response_mask")


def _described(inner: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What another process needs to make the same model, but for its weights."""
    kinds = {"class": type(inner), "config": type(inner.config)}
    names = {part: f"{kind.__module__}:{kind.__qualname__}" for part, kind in kinds.items()}
    settings = json.loads(inner.config.to_json_string(use_diff=False))
    return names | {"settings": settings, "dtype": str(dtype).removeprefix("torch.")}


def _made(described: dict[str, Any]) -> Any:
    """The model of :func:`_described`, with other weights."""

    def named(kind: str) -> Any:
        module, name = kind.split(":")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found

    model, config = named(described["class"]), named(described["config"])
    return model(config.from_dict(described["settings"])).to(getattr(torch, described["dtype"])).eval()


def _serve(link: Link, device: torch.device) -> None:
    """What a sampling process does until the training ones are done."""
    model: Any = None
    while True:
        asked = link.announce()
        if asked["do"] == "end":
            return
        if asked["do"] == "refresh":
            if "model" in asked:
                model = _made(asked["model"]).to(device)
            own = dict(model.named_parameters())
            with torch.no_grad():
                for name in asked["names"]:
                    link.broadcast(own[name])
            continue
        try:
            answers = _answers(link, model, asked)
        except Exception as error:
            link.reply({}, f"{type(error).__name__}: {error}")
        else:
            link.reply({} if answers is None else answers)


def _answers(link: Link, model: Any, asked: dict[str, Any]) -> dict[str, Tensor] | None:
    """This process's share of the answers, numbered as among all."""
    mine = range(link.rank - 1, len(asked["ids"]), link.samplers)
    if not mine:
        return None
    request = Request(**asked["request"] | {"draw": Draw(**asked["request"]["draw"])})
    total, own = request.numbering or (len(asked["ids"]), range(len(asked["ids"])))
    sampler = ModelSampler(
        model, SimpleNamespace(pad_token_id=asked["pad"], eos_token_id=asked["end"]), stop_ids=asked["stop"]
    )
    numbered = replace(request, numbering=(total, [own[number] for number in mine]))
    found = sampler.sample([asked["ids"][number] for number in mine], numbered).to("cpu")
    found = found.with_columns(group=torch.tensor(list(mine))[found["group"]])
    return dict(found.columns) | {name: getattr(found, name) for name in _MASKS}


def _store(rank: int) -> Any:
    """Through which processes find each other: the launcher's, or one that the first process opens next to it."""
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port, opens = (port, False) if launchers else (port + 1, rank == 0)
    store = _dist.TCPStore(host, port, is_master=opens, wait_for_workers=False, timeout=timedelta(minutes=5))
    return _dist.PrefixStore(f"thrifty {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _own(device: torch.device) -> torch.device:
    if str(device) == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return device


def _end(link: Link) -> None:
    """Lets the sampling processes go; one that is gone already ends the job by itself."""
    if not link.used:
        _log.warning("no answer was asked of the sampling processes: nothing was sampled, or by a sampler of its own")
    try:
        link.announce({"do": "end"})
    except RuntimeError as error:
        _log.debug("the sampling processes are gone: %s", error)
    link.close()
