"""Policies on the disk: ``policy.safetensors`` with all weights and settings, ``policy.json`` for people to read.

>>> policy = load_policy("runs/ss-orl/policy")  # doctest: +SKIP
>>> action = policy.act(observation)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thrifty.control.base import Agent, AgentConfig
from thrifty.control.cql import CQL
from thrifty.control.decision_transformer import DecisionTransformer
from thrifty.control.td3_bc import TD3BC
from thrifty.control.transitions import Spaces
from thrifty.core.atomic import replacing, write_json
from thrifty.core.errors import InputError, NotFoundError, nearest

KINDS: dict[str, type[AgentConfig]] = {kind.name: kind for kind in (TD3BC, CQL, DecisionTransformer)}
_WEIGHTS, _SETTINGS = "policy.safetensors", "policy.json"


def save_policy(agent: Agent, directory: Path) -> None:
    """Writes an agent's networks and settings, atomically; the optimizers' state is left out.

    Parameters
    ----------
    agent
        What to save.
    directory
        Where to; made if missing.

    Raises
    ------
    DiskFullError
        When there is no room; an older policy there stays whole.
    """
    settings = {
        "agent": agent.config.name,
        "config": dataclasses.asdict(agent.config),
        "spaces": dataclasses.asdict(agent.spaces),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in agent.networks.state_dict().items()}
    with replacing(directory / _WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"policy": json.dumps(settings)})
    write_json(directory / _SETTINGS, settings)


def load_policy(directory: str | Path, device: torch.device | str = "cpu") -> Agent:
    """Reads a policy that :func:`save_policy` (``agent.save``) wrote.

    Parameters
    ----------
    directory
        The directory.
    device
        Where it should live.

    Returns
    -------
    Agent
        Ready to ``act``; training it further starts with fresh optimizers.

    Raises
    ------
    NotFoundError
        When there is no policy.
    InputError
        When the file is damaged or of an unknown agent.
    """
    path = Path(directory) / _WEIGHTS
    if not path.is_file():
        raise NotFoundError(f"no policy in {directory}: it should hold {_WEIGHTS}")
    try:
        with safe_open(path, framework="pt") as file:
            settings: dict[str, Any] = json.loads((file.metadata() or {})["policy"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or no saved policy: {error}") from error
    kind = KINDS.get(settings["agent"])
    if kind is None:
        raise InputError(f"{path} holds an agent {settings['agent']!r}: {nearest(settings['agent'], KINDS)}")
    agent = kind(**_tuples(settings["config"])).create(Spaces(**_tuples(settings["spaces"])), device=device)
    agent.networks.load_state_dict(weights)
    return agent


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
