"""How the command runs a method that labels queries all at once: on drawn episodes, or on a task of the user's own."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.adapt.accumulator import Labels
from thrifty.adapt.class_names import name_embeddings
from thrifty.adapt.data import read_labelled, split_and_limit
from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.few_shot import FewShotMethod, Prototypes
from thrifty.adapt.generalised_em import paddle
from thrifty.adapt.inputs import Inputs, features_of
from thrifty.adapt.settings.letters import few_shot_letters
from thrifty.adapt.unem import class_scores
from thrifty.adapt.unlabelled import read_queries
from thrifty.core.atomic import replacing
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.core.statistics import mean_interval
from thrifty.nets.vision import save_net

VALIDATION_EPISODES = 200
PREDICTIONS, LEARNT = "predictions.csv", "learnt"


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled features from which episodes are drawn.

    Parameters
    ----------
    novel, validation
        Features ``[N, D]`` and labels ``[N]`` of the classes to test on, and of others to learn from, where needed.
    centre
        The mean feature of what is known, ``[D]``.
    data, encoder
        What to call them.
    """

    novel: tuple[Tensor, Labels]
    validation: tuple[Tensor, Labels] | None
    centre: Float[Tensor, " D"]
    data: str
    encoder: str


def run_few_shot(method: FewShotMethod, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Labels the queries of episodes of the data's classes, or of the user's own task, beside plain support means.

    Of a task of the user's own, what was found is written to ``predictions.csv`` in the run's directory; a network that
    was learnt to ``learnt``, for :func:`thrifty.nets.vision.load_net`.

    Raises
    ------
    InputError
        When the data, the encoder or the design of the episodes don't fit.
    """
    if (inputs.support is None) != (inputs.query is None):
        raise InputError("a task of your own needs both --support and --query")
    if inputs.support is not None:
        return _own_task(method, inputs, run)
    pool = method.pool(inputs, run)
    if pool is None:
        pool = _letters() if inputs.data is None else _users(method, inputs, run)
    design = fitting_design(method.usual, inputs, pool.novel[1])
    model = None if inputs.data is None else pool.encoder
    novel = _drawn(pool, pool.novel, design, inputs.episodes, run, "novel")
    solver = method
    if method.learns:
        assert pool.validation is not None
        classes = len(np.unique(pool.validation[1]))
        ways = min(design.ways or classes, classes)
        present = None if design.present is None else min(design.present, ways)
        seen = fitting_design(replace(design, ways=ways, present=present), Inputs(), pool.validation[1])
        validation = _drawn(pool, pool.validation, seen, VALIDATION_EPISODES, run, "validation")
        solver = method.learn(ready(method, validation, model), run.stage("learning"))
    _keep(solver, run)
    rows = [
        {"method": name} | measured(each, novel if name != method.paper_id else ready(method, novel, model))
        for name, each in {method.paper_id: solver, **_beside(method)}.items()
    ]
    return {
        "table": rows,
        "data": pool.data,
        "encoder": pool.encoder,
        "episodes": inputs.episodes,
        "ways": novel.classes,
        "shots": design.shots,
        "queries": design.queries,
        "present": design.present,
        "balance": design.balance,
        **solver.facts(),
    }


def measured(method: FewShotMethod, episodes: Episodes) -> dict[str, float]:
    """The mean accuracy over episodes, half of its 95% interval, and milliseconds of an episode."""
    started = time.perf_counter()
    found = method.solve(episodes)
    seconds = time.perf_counter() - started
    interval = mean_interval(episodes.accuracy(found.labels.to(episodes.support.device)).tolist())
    half = (interval.high - interval.low) / 2 if len(episodes) > 1 else 0.0
    return {"accuracy": interval.mean, "interval": half, "milliseconds": 1000 * seconds / len(episodes)}


def ready(method: FewShotMethod, episodes: Episodes, model: str | None) -> Episodes:
    """Episodes as a method takes them; scores are cosines to the names of the classes where the model embeds texts.

    Parameters
    ----------
    method
        What will solve them.
    episodes
        Their features.
    model
        The encoder that gave these; ``None`` for one without a name.
    """
    if model is not None and method.takes_scores and episodes.names is not None:
        names, at = np.unique(episodes.names, return_inverse=True)
        anchors = name_embeddings(model, [str(name) for name in names], episodes.support.device)
        if anchors is not None:
            chosen = anchors[torch.from_numpy(at.reshape(episodes.names.shape)).to(anchors.device)]
            return class_scores(episodes, chosen)
    return method.ready(episodes)


def fitting_design(usual: Design, inputs: Inputs, labels: Labels) -> Design:
    """The episodes that the inputs ask for; what they leave open is as usual, or as much of it as the data allow.

    Parameters
    ----------
    usual
        What the method is made for.
    inputs
        What the user asks for.
    labels
        Of the examples that episodes are drawn from.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    ways = inputs.ways if inputs.ways is not None else min(usual.ways or len(sizes), len(sizes))
    present = inputs.present
    if present is None and usual.present is not None:
        present = min(usual.present, ways)
    shots = inputs.shots if inputs.shots is not None else usual.shots
    queries = inputs.queries
    if queries is None:
        allowed = max(int(sizes.min()) - shots, 1) * (present or ways)
        queries = min(usual.queries, allowed)
    return Design(ways, shots, queries, present, inputs.balance or usual.balance, usual.concentration)


def _keep(solver: FewShotMethod, run: Run) -> None:
    if isinstance(solver, nn.Module):
        save_net(solver, run.directory / LEARNT)


def _beside(method: FewShotMethod) -> Mapping[str, FewShotMethod]:
    others: dict[str, FewShotMethod] = {"prototypes": Prototypes()}
    return others | {"paddle": paddle()} if method.learns else others


def _drawn(pool: Pool, part: tuple[Tensor, Labels], design: Design, count: int, run: Run, name: str) -> Episodes:
    seed = derive_seed(run.seed, "few-shot", name)
    return draw_episodes(*part, design, count, seed=seed, centre=pool.centre).to(run.device)


def _letters() -> Pool:
    # One encoder for all seeds: it is trained once and kept.
    found = few_shot_letters(0)
    return Pool(found.novel, found.validation, found.centre, "letters", "a residual network trained on other scripts")


def _users(method: FewShotMethod, inputs: Inputs, run: Run) -> Pool:
    columns = {"text_column": inputs.text_column, "label_column": inputs.label_column}
    data = read_labelled(inputs.data or "", **columns, domain_column=inputs.domain_column)
    if inputs.limit is not None:
        data = split_and_limit(data, test_share=inputs.test_share, limit=inputs.limit, seed=run.seed)
    found, model = features_of(data, inputs, run)
    features = torch.as_tensor(found)
    shots = inputs.shots if inputs.shots is not None else method.usual.shots
    names, codes, sizes = np.unique(data.labels, return_inverse=True, return_counts=True)
    enough = np.flatnonzero(sizes > shots)
    least = 4 if method.learns else 2
    if len(enough) < least:
        raise InputError(
            f"{data.name} has {len(enough)} classes with more than {shots} examples, expected at least {least}: "
            + ("half of the classes are for learning; " if method.learns else "")
            + "give more classes or examples, or fewer --shots"
        )
    order = np.random.default_rng(derive_seed(run.seed, "novel classes")).permutation(enough)
    asked = inputs.ways if inputs.ways is not None else method.usual.ways or len(order)
    novel = max(min(asked, len(order) - 2), len(order) // 2) if method.learns else len(order)

    def part(classes: NDArray[np.int64]) -> tuple[Tensor, Labels]:
        rows = np.flatnonzero(np.isin(codes, classes))
        return features[torch.from_numpy(rows).to(features.device)], names[codes[rows]]

    validation = part(order[novel:]) if method.learns else None
    return Pool(part(order[:novel]), validation, features.mean(0), data.name, model)


def _own_task(method: FewShotMethod, inputs: Inputs, run: Run) -> dict[str, Any]:
    columns = {"text_column": inputs.text_column, "label_column": inputs.label_column}
    known = read_labelled(inputs.support or "", **columns)
    asked, truth, names = read_queries(inputs.query or "", known.kind, **columns)
    support, model = features_of(known, inputs, run)
    query, _ = features_of(
        replace(known, inputs=asked, labels=np.arange(len(asked)), name=str(inputs.query)), inputs, run
    )
    task = Episodes.single(support, known.labels, query, truth).to(run.device)
    solver = method
    if method.learns and inputs.data is not None:
        pool = _users(method, replace(inputs, shots=task.shots), run)
        assert pool.validation is not None
        wanted = Inputs(shots=task.shots, present=inputs.present)
        usual = replace(method.usual, ways=task.classes, present=None, queries=task.query.shape[1])
        design = fitting_design(usual, wanted, pool.validation[1])
        validation = _drawn(pool, pool.validation, design, VALIDATION_EPISODES, run, "validation")
        solver, task = (
            method.learn(ready(method, validation, model), run.stage("learning")),
            replace(task, centre=pool.centre),
        )
        _keep(solver, run)
    elif inputs.data is not None:
        task = replace(task, centre=_users(method, inputs, run).centre)
    found = solver.solve(ready(method, task, model))
    plain = Prototypes().solve(task)
    labels, sure = found.named(task)[0], found.probabilities[0].amax(1).tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query", "label", "probability"])
    writer.writerows(zip(names, labels.tolist(), [f"{share:.4f}" for share in sure], strict=True))
    with replacing(run.directory / PREDICTIONS) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for name, result in ((method.paper_id, found), ("prototypes", plain)):
        row: dict[str, Any] = {"method": name, "queries": task.query.shape[1], "classes": task.classes}
        row["unlike prototypes"] = float((result.labels != plain.labels).double().mean())
        if truth is not None:
            row["accuracy"] = float(task.accuracy(result.labels).mean())
        rows.append(row)
    return {
        "table": rows,
        "support": known.name,
        "query": str(inputs.query),
        "encoder": model,
        "learnt": solver is not method,
        "predictions": str(run.directory / PREDICTIONS),
        **solver.facts(),
    }
