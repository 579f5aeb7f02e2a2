from __future__ import annotations

import json
from pathlib import Path

import pytest

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.report.again import command_line
from thrifty.report.run import flattened, write_report

CONFIG = {
    "command": "run",
    "paper": "ssd",
    "inputs": {"model": "my <model>", "data": None, "classes": [3, 4]},
    "method": {"selection": 10.0, "layer_wise": False, "exact": True},
    "seed": 3,
}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run with a stage, made by the library itself."""
    with Run(tmp_path / "run", seed=3, device="cpu", config=CONFIG) as run:
        stage = run.stage("warm-up")
        for step in range(5):
            stage.log(step, warm=1.0 / (step + 1))
            run.log(step, loss=2.0 - step, accuracy=0.1 * step)
        run.finish(
            {
                "table": [
                    {"model": "before", "accuracy": 0.5},
                    {"model": "<script>alert(1)</script>", "accuracy": 0.75},
                ],
                "more": [{"x": 1}],
                "saved": "model/",
                "sizes": {"weights": 1234, "text": "y" * 1000},
            }
        )
    return run.directory


def _read(directory: Path) -> str:
    path = write_report(directory)
    assert path == directory / "report.html"
    return path.read_text(encoding="utf-8")


def test_a_finished_run_shows_result_settings_curves_and_command(finished: Path) -> None:
    text = _read(finished)
    assert "Selective Synaptic Dampening" in text
    assert '<td class="number">0.75</td>' in text
    assert "<caption>more</caption>" in text
    assert "<dt>sizes.weights</dt><dd>1234</dd>" in text
    assert "Curves of loss, accuracy over 5 logged steps of run." in text
    assert "Curves of warm over 5 logged steps of warm-up." in text
    assert "<dt>method.selection</dt><dd>10</dd>" in text
    assert "finished" in text
    assert "thrifty run ssd --model &#x27;my &lt;model&gt;&#x27; --classes 3 4 --selection 10.0" in text


def test_what_the_user_wrote_is_never_markup(finished: Path) -> None:
    text = _read(finished)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_long_values_are_cut_with_their_length(finished: Path) -> None:
    assert "… (1000 characters)" in _read(finished)


def test_the_report_asks_nothing_of_the_network(finished: Path) -> None:
    text = _read(finished)
    assert "default-src &#x27;none&#x27;" in text
    assert 'src="http' not in text
    assert "@import" not in text
    assert "<script" not in text


def test_an_unfinished_run_says_how_far_it_is_and_how_to_go_on(tmp_path: Path) -> None:
    with Run(tmp_path, seed=3, device="cpu", config=CONFIG) as run:
        run.log(0, loss=1.0)
        run.log(17, loss=0.5)
    text = _read(tmp_path)
    assert "unfinished" in text
    assert "last logged step 17" in text
    assert f"--out {tmp_path}" in text
    assert "Go on with it" in text


def test_metrics_alone_are_enough(tmp_path: Path) -> None:
    lines = ['{"step": 0, "loss": 1.0}', '{"step": 1, "loss": 0.5}', "7", '{"step": 2, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    text = _read(tmp_path)
    assert "Curves of loss" in text
    assert f"<h1>{tmp_path.name}</h1>" in text
    assert "Settings" not in text


def test_a_measured_claim_shows_verdict_arms_and_conditions(tmp_path: Path, result) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result(tried="Something <else>.")))
    (tmp_path / "summary.json").write_text(json.dumps({"table": [], "verdict": "holds", "finished": "2026-11-23"}))
    text = _read(tmp_path)
    assert "It says &lt;b&gt;&amp;&quot;&#x27;" in text
    assert 'class="badge holds"' in text
    assert "<strong>0.910 [0.885, 0.935]</strong>" in text
    assert "accuracy: ssd &gt; fine-tuned" in text
    assert "Something &lt;else&gt;." in text
    assert "<dt>torch</dt><dd>2.13.0</dd>" in text
    assert "<h2>Result</h2>" not in text


def test_a_quick_claim_says_that_it_decides_nothing(tmp_path: Path, result) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result(quick=True, seeds=[0])))
    text = _read(tmp_path)
    assert "decides nothing" in text
    assert "1 seed," in text


def test_a_comparison_has_no_verdict(tmp_path: Path, result) -> None:
    compared = {
        k: v
        for k, v in result().items()
        if k not in {"paper", "verdict", "conditions", "setting", "tried", "date", "seconds"}
    }
    (tmp_path / "result.json").write_text(json.dumps(compared))
    (tmp_path / "config.json").write_text(
        json.dumps({"command": "compare", "room": "forget", "task": "digits", "seeds": 3})
    )
    text = _read(tmp_path)
    assert "<h1>forget · digits</h1>" in text
    assert "<h2>Comparison</h2>" in text
    assert "Conditions" not in text
    assert "thrifty compare forget --task digits --seeds 3" in text


def test_pictures_of_the_run_are_shown(finished: Path) -> None:
    (finished / "samples.png").write_bytes(b"png")
    (finished / "huge.png").write_bytes(b"0" * 4_000_001)
    text = _read(finished)
    assert "<figcaption>samples.png</figcaption>" in text
    assert "huge.png" not in text


def test_versions_that_were_recorded_are_preferred(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"table": [{"x": 1}], "versions": {"torch": "9.9"}}))
    text = _read(tmp_path)
    assert "<dt>torch</dt><dd>9.9</dd>" in text
    assert "recorded no versions" not in text


def test_many_stages_are_limited_and_counted(tmp_path: Path) -> None:
    for stage in range(14):
        (tmp_path / f"s{stage}").mkdir()
        (tmp_path / f"s{stage}" / "metrics.jsonl").write_text('{"step": 0, "x": 1}\n{"step": 1, "x": 2}\n')
    (tmp_path / "config.json").write_text("{}")
    text = _read(tmp_path)
    assert text.count("<figure>") == 12
    assert "12 of 14 stages are shown." in text


@pytest.mark.parametrize("name", ["config.json", "summary.json", "result.json", "metrics.jsonl"])
def test_a_damaged_file_is_named(finished: Path, name: str) -> None:
    (finished / name).write_bytes(b"\xff{")
    with pytest.raises(InputError, match=name):
        write_report(finished)


@pytest.mark.parametrize("text", ["[]", '{"says": "x"}'])
def test_a_result_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result\.json"):
        write_report(tmp_path)


def test_another_directory_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="is no run"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="is no run"):
        write_report(tmp_path / "missing")
    assert not (tmp_path / "report.html").exists()


def test_the_command_spells_out_every_setting() -> None:
    assert command_line(CONFIG, "a b") == (
        "thrifty run ssd --model 'my <model>' --classes 3 4 --selection 10.0 --no-layer-wise --exact "
        "--seed 3 --out 'a b'"
    )


def test_a_measurement_has_no_seed_option() -> None:
    config = {"command": "reproduce", "paper": "ssd", "quick": True, "seeds": None, "code": "ab", "seed": 0}
    assert command_line(config) == "thrifty reproduce ssd --quick"


def test_nested_settings_are_dotted() -> None:
    config = {"command": "run", "paper": "x", "method": {"net": {"use_bias": False, "width": 3}}}
    assert command_line(config) == "thrifty run x --net.no-use-bias --net.width 3"


def test_without_a_command_there_is_none() -> None:
    assert command_line({"method": {"a": 1}}) == ""


def test_empty_mappings_stay_visible() -> None:
    assert flattened({"a": {}, "b": {"c": None}}) == {"a": "{}", "b.c": "\N{EN DASH}"}
