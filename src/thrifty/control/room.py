"""The control room as the command sees it: data in, a policy out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from thrifty.control.base import Agent, Policy
from thrifty.control.baselines import Metrics, Problem, behaviour_cloning, labelled_only, oracle, point_mass
from thrifty.control.baselines import semi_supervised as _semi_supervised
from thrifty.control.collection import Collection, behaviours, collected
from thrifty.control.episodes import Episodes
from thrifty.control.evaluation import evaluate
from thrifty.control.protocols import Split, coupled_split, label_mse
from thrifty.control.ss_orl import SSORL, ProxyLabels
from thrifty.core.method import Room, Task
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed

DEFAULT_ENV = "thrifty/PointMass-v0"


@dataclass(frozen=True)
class Inputs:
    """Episodes to learn from, and where to play afterwards.

    Parameters
    ----------
    data
        Logged episodes: a Minari data set (directory, HDF5 file or id), an NPZ file, or a safetensors file of ours.
        Without it episodes are collected in ``env`` by behaviours of three skills.
    env
        Gymnasium id of the environment to collect and evaluate in. Without ``data`` it is a point mass with hidden
        velocity; with ``data`` and no environment only the errors on the data are measured.
    labelled_share
        Share of the episodes that keep their actions, drawn from those with low returns; the rest is made
        action-free, so that the labels can be judged. Without it, data of your own is taken as it is, and collected
        episodes keep a tenth.
    quantile
        The labelled ones are drawn from this share of the episodes, lowest returns first.
    episodes
        Episodes to collect when there is no ``data``.
    evaluation_episodes
        Episodes to play at the end.
    scale
        ``small`` replaces network sizes and step counts left at their defaults by small ones, which takes a minute
        or two on one core; ``full`` leaves the paper's; ``auto`` is ``full`` with ``data`` and ``small`` without.
    """

    data: str | None = None
    env: str | None = None
    labelled_share: float | None = None
    quantile: float = 0.5
    episodes: int = 200
    evaluation_episodes: int = 50
    scale: Literal["auto", "small", "full"] = "auto"

    @property
    def small(self) -> bool:
        """Whether sizes left at their defaults become small."""
        return self.scale == "small" or (self.scale == "auto" and self.data is None)

    def collection(self, seed: int) -> Collection:
        """What is collected when there is no data."""
        return Collection(self.env or DEFAULT_ENV, self.episodes, seed=seed)


def _episodes(inputs: Inputs, run: Run) -> tuple[Episodes, Split | None]:
    """All episodes as they are known, and who is to lose the actions."""
    if inputs.data is None:
        episodes = collected(inputs.collection(run.seed), run.directory / "data")
    else:
        episodes = Episodes.load(inputs.data)
    share = 0.1 if inputs.labelled_share is None and inputs.data is None else inputs.labelled_share
    if share is None:
        return episodes, None
    episodes = episodes.subset(np.flatnonzero(episodes.labelled))
    return episodes, coupled_split(episodes, share, inputs.quantile, run.seed)


def run_method(method: SSORL, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Fills in the missing actions, trains the policy, measures and saves both.

    Parameters
    ----------
    method
        A method of the room.
    inputs
        Data and environment.
    run
        ``policy/`` (see :func:`thrifty.control.saving.load_policy`) and ``labelled.safetensors`` go to its directory.

    Returns
    -------
    dict
        ``table``: who reached which return; ``labels``: how many actions were filled in and how well; ``policy``: where
        it is.
    """
    truth, split = _episodes(inputs, run)
    known = truth if split is None else split.hide(truth)
    sized = method.scaled_down() if inputs.small else method
    labels = sized.label(known, run)
    labels.episodes.save(run.directory / "labelled.safetensors")
    agent = sized.train(labels, run)
    agent.save(run.directory / "policy")
    report = _label_report(labels, truth, split)
    if agent.stepwise:
        report["policy_action_mse"] = _action_mse(agent, known)
    return {
        "table": _returns(agent, known, inputs, run),
        "labels": report,
        "settings": asdict(sized),
        "policy": str(run.directory / "policy"),
    }


def _label_report(labels: ProxyLabels, truth: Episodes, split: Split | None) -> dict[str, float]:
    doubts = [doubt for doubt in labels.uncertainty if doubt is not None]
    report = {
        "episodes": float(len(labels.episodes)),
        "filled_in": float(len(doubts)),
        "mean_uncertainty": float(np.concatenate(doubts).mean()),
    }
    if split is not None:
        # A coupled split keeps every episode, so both lists have the same numbers.
        for name, numbers in (("in", split.in_distribution), ("out", split.out_of_distribution)):
            if len(numbers):
                report[f"label_mse_{name}"] = label_mse(truth, labels.episodes, numbers)
    return report


def _action_mse(agent: Agent, known: Episodes) -> float:
    """How far the policy is from the logged actions of the truly labelled episodes, in squared action units."""
    steps = known.subset(np.flatnonzero(known.labelled)).transitions()
    return float((agent.act(steps.observation) - steps.action).square().mean())


def _returns(agent: Agent, known: Episodes, inputs: Inputs, run: Run) -> list[dict[str, Any]]:
    returns, labelled = known.returns(), known.labelled
    rows: list[dict[str, Any]] = [
        {"who": "labelled episodes", "return": float(returns[labelled].mean()), "episodes": int(labelled.sum())},
        {"who": "action-free episodes", "return": float(returns[~labelled].mean()), "episodes": int((~labelled).sum())},
    ]
    env = inputs.env or (DEFAULT_ENV if inputs.data is None else None)
    if env is None:
        return rows
    players: dict[str, Policy] = {}
    if inputs.data is None:
        behaving = behaviours(inputs.collection(run.seed))
        players = {f"{skill} behaviour": behaving[skill] for skill in ("random", "expert")}
    seed = derive_seed(run.seed, "evaluation") % 2**31
    for who, player in {**players, "trained policy": agent}.items():
        score = evaluate(player, env, inputs.evaluation_episodes, seed)
        row = {"who": who, "return": score.mean, "low": score.low, "high": score.high, "episodes": score.episodes}
        rows.append(row)
    return rows


def _compare(method: SSORL, problem: Problem) -> Metrics:
    return _semi_supervised(method, problem, f"ss-orl k{method.k} {method.agent}")


ROOM = Room(
    inputs=Inputs,
    run=run_method,
    tasks={
        "point-mass": Task(
            summary="a ball in a bowl, velocity hidden; 20 of 200 episodes, of low return, have actions",
            gives=frozenset({"trajectories"}),
            prepare=point_mass,
            evaluate=_compare,
            baselines={
                "labelled only (TD3+BC)": labelled_only,
                "behaviour cloning": behaviour_cloning,
                "oracle (all actions)": oracle,
            },
            metrics=("return", "-label_mse_in", "-label_mse_out"),
            variants={"ss-orl, k = 0": lambda: SSORL(k=0)},
        )
    },
)
