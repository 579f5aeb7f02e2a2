"""RoBoT: the worked numbers of its search, and a search on tables and on pictures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.cli import main
from thrifty.core.errors import InputError, NotFoundError
from thrifty.nets.vision import load_net
from thrifty.shrink import robot_nas
from thrifty.shrink.architectures import Evaluations, OwnTable
from thrifty.shrink.pools import Pool, bayesian, by_metric, equal_weights, evolution, random_search, robot
from thrifty.shrink.queries import Queries
from thrifty.shrink.robot_nas import Found, RoBoT, ranking, scale, weighted
from thrifty.shrink.search_tasks import Searches, average, best, metric_scores, scores

# Two metrics of four architectures.
M = np.array([[0.0, 1.0, 0.5, 0.2], [1.0, 0.0, 0.6, 0.9]]).T


def test_worked_example():
    scores = weighted(M, np.array([0.3, 0.9]))
    np.testing.assert_allclose(scores, [0.9, 0.3, 0.69, 0.87])
    assert ranking(scores).tolist() == [0, 3, 2, 1]
    np.testing.assert_allclose(scale(np.array([[2.0], [5.0], [3.0]]))[:, 0], [0, 1, 1 / 3])


def test_equal_scores_are_resolved_to_the_largest_row():
    assert ranking(np.array([1.0, 2.0, 2.0, 1.0])).tolist() == [2, 1, 3, 0]


def test_missing_values_count_nothing_and_do_not_move_the_scale():
    table = np.array([[np.nan, 7.0], [4.0, 7.0], [2.0, 7.0]])
    scaled = scale(table)
    np.testing.assert_allclose(scaled[1:, 0], [1, 0])
    assert np.isnan(scaled[0, 0])
    np.testing.assert_allclose(scaled[:, 1], 7)  # constant: left as it is
    np.testing.assert_allclose(weighted(scaled, np.array([5.0, 1.0])), [7, 12, 7])


@given(st.integers(2, 8), st.integers(1, 4), st.floats(0.1, 50), st.floats(-20, 20), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_units_of_a_metric_do_not_matter(count, metrics, factor, shift, seed):
    table = np.random.default_rng(seed).normal(size=(count, metrics))
    scaled = scale(table)
    np.testing.assert_allclose(scale(factor * table + shift), scaled, atol=1e-9)
    assert scaled.min() == 0
    assert scaled.max() == 1


class Scripted:
    """Suggests given weights, instead of Bayesian optimisation."""

    def __init__(self, *script):
        self.script, self.told = list(script), []

    def __call__(self, *settings):
        self.settings = settings
        return self

    def suggest(self):
        return np.array(self.script[len(self.told)])

    def register(self, weights, value):
        self.told.append((weights.tolist(), value))


def searched(monkeypatch, script, worth, **fields):
    scripted, asked = Scripted(*script), []
    monkeypatch.setattr(robot_nas, "WeightSearch", scripted)

    def objective(row):
        asked.append(row)
        return worth[row]

    return RoBoT(budget=len(script), **fields).search(M, objective), asked, scripted


def test_exploration_then_exploitation_by_the_best_weights(monkeypatch):
    # All three point to architecture 0, so that two more are taken from the order 0, 3, 2, 1.
    found, asked, scripted = searched(monkeypatch, [(0.3, 0.9)] * 3, [0.5, 0.9, 0.8, 0.1])
    assert asked == [0, 3, 2]
    assert found.explored == 1
    assert (found.best, found.objective) == (2, 0.8)
    assert found.history == ((0, 0.5), (3, 0.1), (2, 0.8))
    assert len(scripted.told) == 3


def test_exploration_alone(monkeypatch):
    found, asked, _ = searched(monkeypatch, [(0.3, 0.9)] * 3, [0.5, 0.9, 0.8, 0.1], exploit=False)
    assert asked == [0]
    assert found.best == 0


def test_later_weights_win_a_tie(monkeypatch):
    # The first weights point to 1, the others to 0; both are worth the same, and the later ones rank 3 next.
    found, asked, _ = searched(monkeypatch, [(1.0, -1.0), (0.3, 0.9), (0.3, 0.9)], [0.5, 0.5, 0.2, 0.7])
    assert asked == [1, 0, 3]
    assert found.weights.tolist() == [0.3, 0.9]
    assert found.explored == 2
    assert found.best == 3


def test_negative_objectives_are_no_obstacle(monkeypatch):
    # The released script starts from a number that may lie above all objectives.
    found, _, _ = searched(monkeypatch, [(0.3, 0.9)] * 2, [-5.0, -9.0, -7.0, -3.0])
    assert (found.best, found.objective) == (3, -3.0)


def pool(count=60, seed=0, noise=3):
    """Of the metrics the first says how bad an architecture is, the others nothing."""
    random = np.random.default_rng(seed)
    worth = random.permutation(count) / count
    values = np.column_stack([-worth, random.normal(size=(count, noise))])
    names = tuple(f"m{at}" for at in range(noise + 1))
    return Pool(values, names, np.eye(count), worth, worth)


@pytest.mark.parametrize("acquisition", ["ucb", "ei", "poi"])
def test_a_metric_that_is_upside_down_is_learnt(acquisition, capsys):
    bench = pool()
    asked = []

    def objective(row):
        asked.append(row)
        return bench.objective(row)

    found = RoBoT(budget=7, acquisition=acquisition).search(bench.values, objective, seed=1)
    assert len(asked) == len(set(asked)) == len(found.history) == 7  # each at most once, the whole budget
    assert found.weights[0] < 0
    assert bench.rank(found.best) < 10
    assert not capsys.readouterr().out


def test_the_same_seed_finds_the_same():
    bench = pool(count=20, noise=1)
    first, again, other = (RoBoT(budget=4).search(bench.values, bench.objective, seed=seed) for seed in (0, 0, 1))
    assert first.history == again.history
    assert first.weights.tolist() == again.weights.tolist() != other.weights.tolist()


def test_a_budget_above_the_pool_asks_for_everything_once():
    bench = pool(count=5, noise=1)
    found = RoBoT(budget=7).search(bench.values, bench.objective)
    assert sorted(row for row, _ in found.history) == [0, 1, 2, 3, 4]
    assert bench.rank(found.best) == 0


@pytest.mark.parametrize("search", [random_search, evolution, bayesian, equal_weights, robot])
def test_every_search_pays_for_what_it_asks(search):
    bench = pool(count=40)
    asked = []

    class Counted(Pool):
        def objective(self, row):
            asked.append(row)
            return super().objective(row)

    counted = Counted(bench.values, bench.metrics, bench.encoding, bench.valid, bench.test)
    found = search(counted, 9, 3)
    assert len(asked) == len(set(asked)) == 9
    assert counted.valid[found] == max(counted.valid[asked])


def test_one_metric_queries_what_it_ranks_first():
    bench = pool(count=40)
    assert bench.rank(by_metric(bench, 4, 0, metric=0)) == pytest.approx(100 * 36 / 40)  # it ranks the worst four first


def test_evolution_changes_as_little_as_the_pool_allows():
    # Architectures on a line; each step to an unknown neighbour.
    encoding = np.tril(np.ones((30, 30)))
    worth = np.arange(30) / 30
    bench = Pool(np.ones((30, 1)), ("m",), encoding, worth, worth)
    assert bench.valid[evolution(bench, 15, 0)] > 0.6


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bayes_opt", None)
    with pytest.raises(InputError, match=r"bayes_opt: `pip install 'thrifty\[nas\]'`"):
        RoBoT().search(M, lambda row: 0.0)


def test_wrong_settings_and_tables():
    for fields, said in [
        ({"budget": 0}, "budget must be at least 1"),
        ({"acquisition": "best"}, "must be ucb, ei or poi"),
        ({"kappa": -1.0}, "must not be negative, as -1 is"),
    ]:
        with pytest.raises(InputError, match=said):
            RoBoT(**fields)
    with pytest.raises(InputError, match=r"\[architectures, metrics\], not \[4\]"):
        RoBoT().search(np.ones(4), lambda row: 0.0)
    with pytest.raises(InputError, match="metric 1 is NaN for all"):
        RoBoT().search(np.array([[1.0, np.nan], [2.0, np.inf]]), lambda row: 0.0)
    with pytest.raises(InputError, match="the objective of architecture 2 is nan"):
        Queries(lambda row: float("nan"), 3, 3).ask(2)


TABLE = "name,flops,score,accuracy\n" + "\n".join(f"net{i},{i},{(i * 7) % 12},{0.5 + i / 100}" for i in range(12))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_the_command_on_the_users_own_table(table, tmp_path, capsys):
    given = ["--data", str(table), "--objective", "accuracy", "--budget", "6", "--out", str(tmp_path / "run"), "--json"]
    assert main(["run", "robot-nas", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["weights"]) == {"flops", "score"}
    assert found["queried"] == len(found["table"]) == 6
    assert found["best"] == found["table"][0]["architecture"] == "net11"
    assert found["table"][0]["objective"] == pytest.approx(0.61)


def test_empty_cells_are_asked_for_one_after_the_other(table, tmp_path, capsys):
    lines = TABLE.splitlines()
    known = {}
    given = ["--data", str(table), "--objective", "accuracy", "--budget", "3", "--out", str(tmp_path / "run"), "--json"]
    for _ in range(3):
        rows = [line.rsplit(",", 1)[0] + f",{known.get(line.split(',')[0], '')}" for line in lines[1:]]
        table.write_text("\n".join([lines[0], *rows]), encoding="utf-8")
        assert main(["run", "robot-nas", *given]) == 2
        said = capsys.readouterr().err
        name = said.split("(")[1].split(")")[0]
        assert "is to be evaluated next: write its 'accuracy' into the table" in said
        known[name] = 0.5 + int(name.removeprefix("net")) / 100
    rows = [line.rsplit(",", 1)[0] + f",{known.get(line.split(',')[0], '')}" for line in lines[1:]]
    table.write_text("\n".join([lines[0], *rows]), encoding="utf-8")
    assert main(["run", "robot-nas", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["architecture"] for row in found["table"]} == set(known)


def test_an_objective_of_the_users_own(table, tmp_path, monkeypatch, capsys):
    (tmp_path / "ownobjective.py").write_text("def evaluate(row):\n    return float(row['score'])\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["--data", str(table), "--objective", "python:ownobjective:evaluate", "--metrics", "score, flops"]
    assert main(["run", "robot-nas", *given, "--budget", "4", "--out", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["weights"]) == ["score", "flops"]
    kept = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert kept == {f"net{i}": (i * 7) % 12 for i in range(12) if f"net{i}" in kept}
    assert len(kept) == 4
    assert found["table"][0]["objective"] == max(kept.values())


def test_wrong_tables_are_told_what_is_wrong(table, tmp_path):
    for metrics, objective, said in [
        (None, "acc", "has no column 'acc': did you mean 'accuracy'"),
        (None, "name", "must hold numbers"),
        (("flop",), "accuracy", "no numeric column 'flop': did you mean 'flops'"),
        (None, "python:nothing", "write python:MODULE:FUNCTION"),
        (None, "python:no_such_module:f", "can't be imported"),
        (None, "python:math:sqr", "did you mean 'sqrt'"),
        (None, "python:math:pi", "expected a function"),
    ]:
        with pytest.raises((InputError, NotFoundError), match=said):
            OwnTable.read(str(table), metrics, objective)
    lonely = tmp_path / "lonely.csv"
    lonely.write_text("name,objective\na,1\nb,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="there are no metrics"):
        OwnTable.read(str(lonely), None, "objective")
    lonely.write_text("name,m,objective\na,1,1\na,2,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="names two architectures alike"):
        OwnTable.read(str(lonely), None, "objective")


def test_a_stopped_search_pays_for_nothing_twice(tmp_path):
    asked = []

    def evaluate(row):
        asked.append(row)
        return row / 10

    for _ in range(2):
        evaluations = Evaluations(tmp_path / "e.json", ("a", "b", "c"), evaluate)
        assert [evaluations(row) for row in (2, 0, 2)] == [0.2, 0.0, 0.2]
    assert asked == [2, 0]


@pytest.fixture
def stripes(tmp_path):
    """Two classes of 6x6 pictures: lying and standing stripes."""
    random = np.random.default_rng(0)
    lying = np.tile(np.array([[0], [255]] * 3, dtype=np.uint8), (1, 6))
    noise = random.integers(0, 60, (400, 6, 6))
    y = np.arange(400) % 2
    x = np.where(y[:, None, None] == 0, lying, lying.T) // 2 + noise
    np.savez(tmp_path / "stripes.npz", x=x.astype(np.uint8), y=y)
    return tmp_path / "stripes.npz"


def test_the_command_on_the_users_own_pictures(stripes, tmp_path, capsys):
    out = tmp_path / "run"
    sizes = ["--architectures", "8", "--budget", "3", "--candidate-epochs", "1", "--final-epochs", "8"]
    given = [
        "--data",
        str(stripes),
        *sizes,
        "--metrics",
        "snip,synflow",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--json",
    ]
    assert main(["run", "robot-nas", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["queried"] == 3
    assert len(json.loads((out / "metrics.json").read_text())) == 8
    assert found["test_accuracy"] > 0.8
    net = load_net(out / "model")
    assert net.config.cell == found["best"]
    assert net(torch.zeros(2, 1, 6, 6)).shape == (2, 2)


def test_wrong_searches_are_told_what_is_wrong(stripes, tmp_path, capsys):
    for options, said in [
        (["--data", str(stripes), "--metrics", "synflw"], "no training-free metric 'synflw': did you mean 'synflow'"),
        (["--data", str(stripes), "--objective", "accuracy"], "an objective goes with a table of metrics"),
        (["--data", "nas-bench-graph:corra"], "did you mean 'cora'"),
        (["--data", str(stripes), "--architectures", "0"], "architectures must be at least 1"),
        (["--data", str(stripes), "--architectures", "15626"], "the space has 15625 cells"),
        (["--data", str(tmp_path / "none.npz")], "no file or folder"),
    ]:
        assert main(["run", "robot-nas", *options, "--out", str(tmp_path / "wrong")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()


def test_how_searches_are_compared():
    small, large = pool(count=20), pool(count=40, seed=1)
    searches = Searches({"cora": small, "cells on digits": large}, 5, 0)
    found = scores(searches, lambda one, budget, seed: int(one.valid.argmin()))
    # The worst of 20 and of 40, whose worth lies between 0 and 1.
    expected = {"rank": 96.25, "worst_rank": 97.5, "regret": 96.25, "graph_rank": 95, "cell_rank": 97.5}
    assert found == pytest.approx(expected)
    alone = metric_scores(searches)
    assert len(alone) == 4
    assert best(alone)["rank"] == min(one["rank"] for one in alone)
    assert average(alone)["rank"] == pytest.approx(sum(one["rank"] for one in alone) / 4)


def test_the_exploration_alone_is_the_first_part_of_the_same_search(monkeypatch):
    calls = []

    def once(self, values, objective, *, seed):
        calls.append(seed)
        return Found(2, 0.9, np.zeros(1), ((0, 0.1), (1, 0.3), (2, 0.9)), 2)

    monkeypatch.setattr(RoBoT, "search", once)
    bench = pool(count=20)
    searches = Searches({"cora": bench}, 20, 7)
    assert searches.robot(bench, 3, 7) == 2
    assert searches.exploration_only(bench, 3, 7) == 1
    assert calls == [7]
