"""Training with sharded parameters: each process holds a part of every parameter, gradient and optimizer state.

What is trained is a *sharded twin* of the model given: a copy of its modules whose parameters PyTorch's FSDP2 deals out
to the processes. The model itself gets no hooks, so what is called on it between two steps (sampling, say) exchanges
nothing in the middle, and one process may do it alone. It holds no parameters while its twin trains, but within
:func:`gathered`; afterwards it has all of them again, in every process.

Accelerate's settings say whether to shard; ``fully_shard`` is called here. Accelerate's own ``prepare`` shards on GPUs
alone (on CPUs it replicates, and says nothing); it puts the head into a group of its own, which is gathered when the
head is called, while :func:`thrifty.lm.logps.token_logps` reads the head's weight; and it swaps the parameters of an
optimizer that is built already, of which :class:`~thrifty.core.precision.MasterWeights` has copies.

All functions that exchange something must be called by every process.
"""

from __future__ import annotations

import atexit
import copy
import functools
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from thrifty.core import processes
from thrifty.core.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Root = TypeVar("Root", bound=nn.Module)
_twins: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()


def on() -> bool:
    """Whether this job shards: ``accelerate launch --use_fsdp --fsdp_version 2`` with more than one process.

    Raises
    ------
    InputError
        When FSDP's first version is asked for, or parameters offloaded to the CPU.
    """
    if not _asked("ACCELERATE_USE_FSDP") or processes.world() == 1:
        return False
    version = os.environ.get("FSDP_VERSION", "1")  # what accelerate takes it for
    if version != "2":
        raise InputError(f"parameters are sharded by FSDP 2 only, not version {version}: give --fsdp_version 2")
    if _asked("FSDP_OFFLOAD_PARAMS"):
        raise InputError("sharded parameters can't be offloaded to the CPU: give --fsdp_offload_params false")
    return True


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def shard(model: nn.Module, under: Callable[[nn.Module], Root]) -> Root:
    """A sharded twin of a model; the model itself is left without parameters, see :func:`gather`.

    Parameters
    ----------
    model
        On the device that it is trained on. As under data parallelism, the first process's weights count.
    under
        Makes of the twin the module whose forward pass is differentiated. Whatever is in no repeated block (embeddings
        and head) stays whole from its start to the end of the backward pass, so that it may be used in any way.

    Returns
    -------
    Root
        ``under(twin)``, sharded.
    """
    from torch.distributed.fsdp import fully_shard

    shared = [*model.parameters(), *model.buffers()]
    for tensor in shared:
        torch.distributed.broadcast(tensor.data, src=0)
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    mesh = _mesh(next(model.parameters()).device.type)
    for block in blocks(twin):
        fully_shard(block, mesh=mesh)
    root = under(twin)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    _twins.update(zip(model.modules(), twin.modules(), strict=True))
    _empty(model)
    return root


@functools.cache
def _mesh(device: str) -> DeviceMesh:
    """All processes in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device, (processes.world(),))
    # PyTorch's caches keep the mesh, and the mesh the threads of its exchange, which must end before the interpreter
    # does: see thrifty.core.processes.
    atexit.register(lambda: vars(mesh).get("_pg_registry", {}).clear())
    return mesh


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, such as a language model's decoder layers.

    Those of its lists whose classes transformers says not to split, else the longest list of all.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    names = {name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())}
    known = [block for blocks in lists for block in blocks if type(block).__name__ in names]
    lists.sort(key=len)
    return list(dict.fromkeys(known or (lists[-1] if lists else [])))


def gather(model: nn.Module) -> None:
    """Ends the training of a model's sharded twin: the model has all parameters again, in every process."""
    if model in _twins:
        _fill(model, _twins[model])
        for module in model.modules():
            del _twins[module]


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """Within it the model has all its parameters, in every process, to be used but not changed.

    For what uses the model between two steps of :func:`~thrifty.core.loop.fit`, such as sampling in an online loop. All
    processes enter and leave it together; what stands within may be done by one alone. It does nothing where nothing
    is sharded, or within another.

    Parameters
    ----------
    model
        The model that was given to ``fit``, or a module of it.
    """
    twin = _twin_of(model)
    if twin is None or any(parameter.numel() for parameter in model.parameters()):
        yield model
        return
    _fill(model, twin)
    try:
        yield model
    finally:
        _empty(model)


def _twin_of(model: nn.Module) -> nn.Module | None:
    for whole_model, twin in _twins.items():
        for name, part in whole_model.named_modules():
            if part is model:
                return twin.get_submodule(name)
    return None


@torch.no_grad()
def _fill(model: nn.Module, twin: nn.Module) -> None:
    for parameter, part in zip(model.parameters(), twin.parameters(), strict=True):
        parameter.data = full(part.detach()).contiguous()


def _empty(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.data.new_empty(0), None


class Whole:
    """The state of something sharded, as a checkpoint holds it: whole tensors, which load with any number of processes.

    Parameters
    ----------
    part
        A module, an optimizer or anything else with a state.
    """

    def __init__(self, part: Any) -> None:
        self.part = part
        if isinstance(part, torch.optim.Optimizer):
            accept_whole(part)

    def state_dict(self) -> Any:
        """The state; whole in the main process, without the sharded tensors in the others."""
        # Tied parameters are found by their identity, which a plain state_dict() does away with.
        kept = {"keep_vars": True} if isinstance(self.part, nn.Module) else {}
        return whole(self.part.state_dict(**kept))

    def load_state_dict(self, state: Any) -> None:
        """Takes up a whole state; every process gives all of it."""
        if isinstance(self.part, nn.Module):
            own = self.part.state_dict(keep_vars=True)
            state = {name: share_of(tensor, own.get(name)) for name, tensor in state.items()}
        self.part.load_state_dict(state)


def whole(tree: Any) -> Any:
    """A state tree with its sharded tensors gathered, one after the other.

    Parameters
    ----------
    tree
        Nested dictionaries, lists and tuples; the same shape in every process.

    Returns
    -------
    Any
        The tree with full tensors on the CPU in the main process, ``None`` for them in the others.
    """
    return _whole(tree, {})


def full(tensor: Tensor) -> Tensor:
    """A tensor, whole in every process."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the whole of one that is not sharded."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _whole(node: Any, seen: dict[int, Tensor | None]) -> Any:
    if isinstance(node, dict):
        return {key: _whole(value, seen) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_whole(value, seen) for value in node)
    if not _is_sharded(node):
        return node
    if id(node) not in seen:
        found = full(node.detach())
        seen[id(node)] = found.cpu() if processes.is_main() else None
    return seen[id(node)]


def share_of(full: Any, like: Any) -> Any:
    """This process's share of a whole tensor, as ``like`` is sharded; no exchange.

    Parameters
    ----------
    full
        A tensor that every process has.
    like
        The parameter that it is, or that it belongs to. Where that is not sharded, or has another shape,
        ``full`` is given back as it is.
    """
    if not _is_sharded(like) or not isinstance(full, Tensor) or full.shape != like.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def accept_whole(optimizer: torch.optim.Optimizer) -> None:
    """Lets ``optimizer.load_state_dict`` take whole tensors where its parameters are sharded.

    Raises
    ------
    InputError
        For PyTorch's Adafactor, whose row and column means do not work on sharded tensors.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    if isinstance(optimizer, torch.optim.Adafactor) and any(_is_sharded(parameter) for parameter in parameters):
        raise InputError("Adafactor can't train sharded parameters: give --optimizer adamw")
    optimizer.register_load_state_dict_pre_hook(_dealt_out)


def _dealt_out(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {
        index: {name: share_of(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": kept}


def most(model: nn.Module, count: int) -> int:
    """The largest count of all processes where the model is a sharded twin, else ``count`` itself.

    A sharded block is gathered by all processes together each time that it runs. So where the number of its passes
    depends on a process's own batch, each has to run as many as the one with most.
    """
    if not on() or not any(_is_sharded(parameter) for parameter in model.parameters()):
        return count
    return max(processes.gather(count))


def _is_sharded(value: Any) -> bool:
    if not isinstance(value, Tensor) or not hasattr(value, "device_mesh"):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
