from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.claims import catalogue, fingerprint, harness, store
from thrifty.claims.harness import Claim, Condition, Measured, judge, measure, summarise
from thrifty.core.errors import InputError, NotFoundError, RunError
from thrifty.core.statistics import mean_interval, paired_interval, share_interval


def measured(**arms: list[float]) -> Measured:
    return Measured(
        {arm: {"m": values} for arm, values in arms.items()}, {arm: [0.0] * len(v) for arm, v in arms.items()}
    )


def test_interval_of_a_mean_is_student_s() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t(0.975, 2), deviation 1
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert mean_interval([5.0]) == (5.0, -math.inf, math.inf)
    with pytest.raises(InputError):
        mean_interval([])


def test_pairing_removes_what_the_seeds_share() -> None:
    left, right = [1.1, 5.1, 9.1], [1.0, 5.0, 9.0]
    assert paired_interval(left, right) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(InputError, match="equally many"):
        paired_interval([1.0], [1.0, 2.0])


def test_wilson_s_interval_of_a_share() -> None:
    # Agresti and Coull's example of 5 in 10, and the ends.
    assert share_interval(5, 10) == pytest.approx((0.5, 0.236593, 0.763407), abs=1e-6)
    assert share_interval(0, 10).low == 0
    assert share_interval(10, 10).high == 1
    for wrong in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(InputError, match="no share"):
            share_interval(*wrong)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_lies_within_its_interval(case: tuple[int, int]) -> None:
    mean, low, high = share_interval(*case)
    assert 0 <= low <= mean <= high <= 1


@pytest.mark.parametrize(
    ("left", "right", "margin", "less", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.5, 0.52, 0.51], 0.0, False, "holds"),
        ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], 0.0, False, "does not hold"),
        ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], 0.0, True, "holds"),
        ([0.5, 0.9, 0.1], [0.4, 0.5, 0.6], 0.0, False, "inconclusive"),
        ([0.89, 0.90, 0.91], [0.90, 0.91, 0.92], -0.02, False, "holds"),  # no more than 0.02 short
        ([0.5, 0.5, 0.5], 0.4, 0.05, False, "holds"),
        ([0.5, 0.5, 0.5], 0.5, 0.0, False, "does not hold"),
    ],
)
def test_a_verdict_follows_from_the_numbers(
    left: list[float], right: list[float] | float, margin: float, less: bool, verdict: str
) -> None:
    other = right if isinstance(right, float) else "b"
    condition = Condition("m", "a", other, margin, less)
    values = measured(a=left) if isinstance(right, float) else measured(a=left, b=right)
    assert judge([condition], values)[0] == verdict


def test_one_condition_that_fails_decides() -> None:
    values = measured(a=[1.0, 1.0], b=[0.0, 0.0], c=[0.0, 3.0])
    good, bad, unsure = Condition("m", "a", "b"), Condition("m", "b", "a"), Condition("m", "c", "a")
    assert judge([good], values)[0] == "holds"
    assert judge([good, unsure], values)[0] == "inconclusive"
    assert judge([good, unsure, bad], values)[0] == "does not hold"


def test_a_condition_reads_as_people_write_it() -> None:
    assert str(Condition("accuracy", "a", "b")) == "accuracy: a > b"
    assert str(Condition("accuracy", "a", "b", -0.02)) == "accuracy: a > b - 0.02"
    assert str(Condition("accuracy", "a", "b", 0.02)) == "accuracy: a > b + 0.02"
    assert str(Condition("seconds", "a", 3, 1, less=True)) == "seconds: a < 3 - 1"
    assert str(Condition("seconds", "a", 3, -1, less=True)) == "seconds: a < 3 + 1"


def test_one_seed_decides_nothing() -> None:
    assert judge([Condition("m", "a", "b")], measured(a=[1.0], b=[0.0]))[0] == "inconclusive"


def test_finished_arms_are_not_run_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def prepare(seed: int, quick: bool, directory: Path) -> int:
        calls.append(f"prepare {seed}")
        return seed

    def good(problem: int) -> dict[str, float]:
        calls.append(f"good {problem}")
        return {"m": problem + 1.0}

    def fails(problem: int) -> dict[str, float]:
        if problem == 1 and "again" not in calls:
            raise ZeroDivisionError
        return {"m": 0.0}

    arms = {"good one/x": good, "b": fails}
    with pytest.raises(ZeroDivisionError):
        measure(prepare, arms, range(2), tmp_path)
    calls.append("again")
    result = measure(prepare, arms, range(2), tmp_path)
    assert calls == ["prepare 0", "good 0", "prepare 1", "good 1", "again", "prepare 1"]
    assert result.values == {"good one/x": {"m": [1.0, 2.0]}, "b": {"m": [0.0, 0.0]}}
    assert summarise(result)["good one/x"]["metrics"]["m"]["mean"] == 1.5


def test_an_arm_that_changes_its_metrics_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="arm 'a' returned the metrics"):
        measure(lambda s, q, d: s, {"a": lambda s: {f"m{s}": 1.0}}, range(2), tmp_path)
    with pytest.raises(RunError, match="arm 'a'"):
        measure(lambda s, q, d: s, {"a": lambda s: {}}, range(1), tmp_path / "none")


def toy_claim() -> Claim:
    return Claim(
        paper_id="ssd",
        says="a is more than b",
        setting="numbers",
        prepare=lambda seed, quick, directory: seed,
        arms={"a": lambda s: {"m": 1.0 + 0.01 * s}, "b": lambda s: {"m": 0.0}},
        metrics=["m"],
        conditions=[Condition("m", "a", "b")],
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "directory", lambda: tmp_path / "results")
    return tmp_path / "results"


def test_a_stored_result_goes_stale_with_its_code(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "fingerprint", lambda module: "one")
    monkeypatch.setattr(store, "fingerprint", lambda module: "one")
    result = harness.reproduce(toy_claim(), tmp_path / "run")
    assert (result["verdict"], result["seeds"], result["quick"]) == ("holds", [0, 1, 2], False)
    assert store.read("ssd") is None
    assert store.row("ssd") is None
    store.write(result)
    row = store.row("ssd")
    assert row == {
        "verdict": "holds", "metric": "m", "arms": {"a": pytest.approx(1.01), "b": 0.0}, "date": result["date"]
    }  # fmt: skip
    monkeypatch.setattr(store, "fingerprint", lambda module: "two")
    assert store.read("ssd")["status"] == "stale"
    assert store.row("ssd")["verdict"] == "stale"


def test_quick_results_are_never_stored(tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "fingerprint", lambda module: "one")
    result = harness.reproduce(toy_claim(), tmp_path / "run", quick=True)
    assert (result["verdict"], result["seeds"]) == ("inconclusive", [0])
    with pytest.raises(InputError, match="quick"):
        store.write(result)
    assert not results.exists()


@pytest.mark.parametrize("damaged", ["{", "[]"])
def test_a_damaged_result_is_said(results: Path, damaged: str) -> None:
    results.mkdir()
    (results / "ssd.json").write_text(damaged)
    with pytest.raises(RunError, match="damaged: delete it"):
        store.read("ssd")


def test_stored_results_of_the_repository_can_be_read() -> None:
    for path in store.directory().glob("*.json"):
        result = json.loads(path.read_text())
        assert result["paper"] == path.stem
        assert not result["quick"]
        if store.read(path.stem)["status"] == "stale":
            continue  # its claim may have other conditions by now
        verdict, conditions = judge(
            catalogue.load_claim(path.stem).conditions,
            Measured({a: {m: v["values"] for m, v in r["metrics"].items()} for a, r in result["arms"].items()}),
        )
        assert verdict == result["verdict"], "a verdict is computed, never written"
        assert [c["verdict"] for c in conditions] == [c["verdict"] for c in result["conditions"]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package thrifty of two modules, one in a folder of its own."""
    package = tmp_path / "thrifty"
    (package / "core").mkdir(parents=True)
    for name in ("", "core/"):
        (package / f"{name}__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from thrifty.core import b\n    return b.x\n")
    (package / "core/b.py").write_text('"""Doc."""\nx = 1\n')
    (package / "core/errors.py").write_text("y = 1\n")
    monkeypatch.setattr(fingerprint, "files", lambda _: package)
    yield package
    forget_sources()


def forget_sources() -> None:
    for cached in vars(fingerprint).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def current(module: str = "thrifty.a") -> str:
    forget_sources()
    return fingerprint.fingerprint(module)


def test_the_fingerprint_covers_what_is_imported_and_ignores_comments(package: Path) -> None:
    first = current()
    assert fingerprint.used_modules("thrifty.a") == {"thrifty.a", "thrifty.core.b"}
    (package / "core/b.py").write_text('"""Another\ndoc."""\n\nx = 1  # why\n')
    assert current() == first
    (package / "core/b.py").write_text("x = '# 2'\n")
    assert current() != first
    (package / "a.py").write_text("import thrifty.gone\n")
    with pytest.raises(ModuleNotFoundError, match=r"thrifty\.gone"):
        current()


def test_a_claim_uses_the_harness() -> None:
    forget_sources()
    assert "thrifty.claims.harness" in fingerprint.used_modules("thrifty.claims.ssd")


def test_the_fingerprint_covers_the_data_files_that_the_code_names(package: Path) -> None:
    without = current()
    data = package / "core/numbers.csv"
    data.write_text("1,2\n")
    assert current() == without, "a file that nobody reads makes nothing stale"
    (package / "core/b.py").write_text('"""Reads ``numbers.csv``."""\nx = 1  # not numbers.csv\n')
    assert current() == without
    (package / "core/errors.py").write_text("y = 'numbers.csv'\n")
    assert current() == without, "nor does one that only a module out of the hash reads"

    (package / "core/b.py").write_text("from importlib.resources import files\nx = files('thrifty') / 'numbers.csv'\n")
    one = current()
    assert fingerprint.data_files({"thrifty.a", "thrifty.core.b"}) == [data]
    data.write_text("1,3\n")
    two = current()
    data.unlink()
    gone = current()
    assert len({without, one, two, gone}) == 4


def test_a_hash_without_data_files_is_that_of_the_code_alone(package: Path) -> None:
    code = b"thrifty.a\ndef f():\n    from thrifty.core import b\n    return b.x\nthrifty.core.b\nx = 1\n"
    assert current() == hashlib.sha256(code).hexdigest()[:16]


def test_the_log_that_comes_with_the_package_is_a_data_file() -> None:
    forget_sources()
    names = [file.name for file in fingerprint.data_files(fingerprint.used_modules("thrifty.align.room"))]
    assert names == ["arithmetic.jsonl", "history.jsonl"]


def test_a_claim_that_is_not_there_is_said() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'ssd'"):
        catalogue.load_claim("sdd")
    with pytest.raises(InputError, match="no claim to reproduce yet"):
        catalogue.load_claim("redco")


def test_the_catalogue_joins_index_and_results(results: Path) -> None:
    rows = catalogue.rows()
    assert len(rows) == 73
    assert all(set(row) == {"id", "title", "arxiv", "room", "needs", "gives", "implemented", "claim"} for row in rows)
    assert all(row["claim"] is None for row in rows)
    assert {row["id"] for row in rows if row["implemented"]} == set(catalogue.outdated())
