"""NPO: the card's numbers, the paper's toy, and what the method does to a language model."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.forget import npo as module
from thrifty.forget.author_problem import SMALL
from thrifty.forget.npo import NPO, npo_loss, npo_weight
from thrifty.forget.preference import ascent_loss, dpo_loss, kto_loss, retain_kl
from thrifty.forget.text_training import Schedule, answers, with_reference
from thrifty.forget.texts import compared, positions
from thrifty.lm.load import load_lm
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences, from_rows

VOCABULARY = 24
BASE = NPO(batch_size=4, micro_batch_size=4, learning_rate=3e-3, epochs=8)


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()


def sequences(count: int = 8, seed: int = 0) -> Sequences:
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(5, 10, (1,), generator=draw))
        ids = torch.randint(0, VOCABULARY, (length,), generator=draw).tolist()
        rows.append((ids, [False, False] + [True] * (length - 2)))
    return from_rows(rows)


@pytest.fixture(scope="module")
def learnt() -> tuple[Any, Sequences, Sequences]:
    """A model that knows what is to be forgotten and what is kept."""
    model, forget, retain = llama(), sequences(8), sequences(12, 1)
    both = Sequences.cat([forget, retain])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        (-token_logps(model, both).sum() / both.response_mask.sum()).backward()
        optimizer.step()
    return model.eval(), forget, retain


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", device="cpu", dtype="float32") as job:
        yield job


def loss_of(model: Any, rows: Sequences) -> float:
    with torch.no_grad():
        return float(-token_logps(model, rows).sum() / rows.response_mask.sum())


def test_the_worked_example() -> None:
    logps, reference = torch.tensor([-2.0, -5.0]), torch.tensor([-1.0, -6.0])
    assert float(npo_loss(logps, reference)) == pytest.approx(13.887934, abs=1e-5)
    torch.testing.assert_close(npo_weight(logps, reference), torch.tensor([0.950042, 1.049958]))


@pytest.mark.parametrize(
    ("beta", "loss", "less"), [(1.0, 1.006409, -0.379886), (0.1, 13.375439, -0.487505), (0.01, 138.13069, -0.498749)]
)
def test_small_beta_is_gradient_ascent(beta: float, loss: float, less: float) -> None:
    logps, reference = torch.tensor([-2.0, -5.0]).double(), torch.tensor([-1.0, -5.0]).double()
    found = npo_loss(logps, reference, beta=beta)
    assert float(found) == pytest.approx(loss, rel=1e-6)
    assert float(found) - 2 / beta * math.log(2) == pytest.approx(less, abs=1e-5)


numbers = st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=6)


@given(numbers, st.floats(0.01, 5))
def test_the_gradient_is_the_weighted_one_of_the_log_probability(values: list[float], beta: float) -> None:
    logps = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    reference = torch.linspace(-20, 0, len(values), dtype=torch.float64)
    loss = npo_loss(logps, reference, beta=beta)
    assert float(loss.detach()) >= 0
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(gradient * len(values), npo_weight(logps.detach(), reference, beta=beta))
    assert float(npo_loss(reference, reference, beta=beta)) == pytest.approx(2 / beta * math.log(2))


def test_ascent_is_a_mean_over_tokens_not_over_answers() -> None:
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-10.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert float(ascent_loss(logps, mask)) == pytest.approx(-16 / 4)


def test_dpo_and_kto_have_the_released_form() -> None:
    refusal, forget = torch.tensor([-3.0, -4.0]), torch.tensor([-6.0, -2.0])
    before_refusal, before_forget = torch.tensor([-5.0, -4.5]), torch.tensor([-1.0, -2.5])
    # margins 2 + 5 = 7 and 0.5 - 0.5 = 0; zero point (2 + 0.5) / 2 = 1.25; ratios -5 and 0.5
    given_logps = refusal, before_refusal, forget, before_forget
    expected = 2 / 0.5 * (math.log1p(math.exp(-3.5)) + math.log(2)) / 2
    assert float(dpo_loss(*given_logps, beta=0.5)) == pytest.approx(expected, rel=1e-6)
    squashed = [1 / (1 + math.exp(-value)) for value in (1.25 + 2.5, 1.25 - 0.25)]
    assert float(kto_loss(*given_logps, beta=0.5)) == pytest.approx(1 - 4 * sum(squashed) / 2, rel=1e-6)
    logs = sum(math.log(value) for value in squashed)
    assert float(kto_loss(*given_logps, beta=0.5, log=True)) == pytest.approx(1 - 4 * logs / 2, rel=1e-6)
    for log in (False, True):
        leaf = refusal.clone().requires_grad_(True)
        assert not kto_loss(leaf, before_refusal, forget, before_forget, log=log).requires_grad


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_the_divergence_has_a_direction_and_is_the_library_s(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mine, theirs = (torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    forward, backward = (retain_kl(mine, theirs, direction) for direction in ("ref||policy", "policy||ref"))
    logs = mine.log_softmax(-1), theirs.log_softmax(-1)
    torch.testing.assert_close(forward.mean(), functional.kl_div(*logs, reduction="batchmean", log_target=True))
    torch.testing.assert_close(backward, retain_kl(theirs, mine, "ref||policy"))
    assert (forward >= 0).all()
    assert float(retain_kl(mine, mine, "ref||policy").abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["ours", "their own forward pass"])
@pytest.mark.parametrize("where", ["answer", "text", "all"])
def test_models_are_compared_at_the_positions_asked_for(where: Any, kind: str, monkeypatch: Any) -> None:
    if kind != "ours":
        monkeypatch.setattr("thrifty.forget.texts.backbone", lambda _: None)
    monkeypatch.setattr("thrifty.forget.texts._CHUNK", 5)
    model, reference, rows = llama(0), llama(1), sequences(3)
    chosen = positions(rows, where)
    lengths, spoken = rows.attention_mask.sum(), rows.response_mask.sum()
    assert int(chosen.sum()) == {"answer": int(spoken), "text": int(lengths), "all": rows.input_ids.numel()}[where]
    found = compared(model, reference, rows, chosen, lambda a, b: retain_kl(a, b, "ref||policy"))
    ids, real = rows.input_ids, rows.attention_mask.long()
    logs = [m(input_ids=ids, attention_mask=real).logits.log_softmax(-1)[chosen] for m in (model, reference)]
    if where != "all":  # what stands in the padding attends to other padding in one and not in the other
        expected = functional.kl_div(*logs, reduction="batchmean", log_target=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, model.lm_head.weight)
    assert float(gradient.abs().sum()) > 0


def test_nothing_of_the_reference_gets_a_gradient_and_the_model_has_none_at_the_start() -> None:
    model, rows = llama(), sequences(3)
    reference = copy.deepcopy(model)
    loss = compared(model, reference, rows, positions(rows, "answer"), lambda a, b: retain_kl(a, b, "ref||policy"))
    loss.backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-6


def test_answers_of_several_sets_are_those_of_each() -> None:
    model = llama()
    step = {"forget_set": with_reference(model, sequences(5), batch_size=2), "retain_set": sequences(3, 1)}
    said = answers(model, step)
    for name, rows in step.items():
        alone = token_logps(model, rows.without_columns("reference_logps"))
        torch.testing.assert_close(said[name].total, alone.sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said["forget_set"].total, said["forget_set"].reference, rtol=1e-4, atol=1e-4)
    assert said["retain_set"].reference.numel() == 0


def test_dropout_is_off_for_the_reference() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5)
    model, rows = GPT2LMHeadModel(config).train(), sequences(4)
    found = with_reference(model, rows)["reference_logps"]
    assert model.training
    with torch.no_grad():
        expected = token_logps(model.eval(), rows).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("retain", ["none", "grad-diff", "kl"])
@pytest.mark.parametrize("kind", ["npo", "ga", "dpo", "idk", "kto", "kto-log"])
def test_every_form_forgets_and_leaves_the_model_given(learnt: Any, run: Run, kind: Any, retain: Any) -> None:
    model, forget, retain_set = learnt
    before = copy.deepcopy(model.state_dict())
    # Refusals are answers of other rows to the same prompts.
    refusals = Sequences(forget.input_ids.clone(), forget.attention_mask, forget.response_mask)
    refusals.input_ids[refusals.response_mask] = 3
    method = NPO(kind=kind, retain=retain, batch_size=4, micro_batch_size=4, learning_rate=3e-3, epochs=8, beta=0.5)
    sets = {"forget_set": forget, "retain_set": retain_set, "refusal_set": refusals}
    after = method.forget(model, **{name: sets[name] for name in method.needs}, run=run)
    assert type(after) is type(model)
    assert not after.training
    assert loss_of(after, forget) > loss_of(model, forget) + (0.0 if kind == "kto" else 0.3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_retain_term_keeps_what_npo_alone_loses(learnt: Any, tmp_path: Path) -> None:
    model, forget, retain = learnt
    lost = {}
    for name in ("none", "grad-diff", "kl"):
        with Run(tmp_path / name, device="cpu") as run:
            method = NPO(retain=name, batch_size=4, micro_batch_size=4, learning_rate=3e-3, epochs=8)
            sets = {"forget_set": forget, "retain_set": retain}
            after = method.forget(model, **{key: sets[key] for key in method.needs}, run=run)
        lost[name] = loss_of(after, retain) - loss_of(model, retain)
    assert lost["grad-diff"] < 0.5 * lost["none"]
    assert lost["kl"] < 0.5 * lost["none"]


def test_ascent_goes_on_where_npo_stops(learnt: Any, tmp_path: Path) -> None:
    model, forget, _ = learnt
    found = {}
    for kind in ("npo", "ga"):
        with Run(tmp_path / kind, device="cpu") as run:
            method = NPO(kind=kind, beta=1.0, batch_size=8, learning_rate=3e-3, epochs=60)
            found[kind] = loss_of(method.forget(model, forget, run=run), forget)
    assert found["ga"] > 2 * found["npo"]


def test_in_place_there_is_one_model_and_the_same_result(learnt: Any, tmp_path: Path) -> None:
    given_model, forget, retain = learnt
    for retained in ("grad-diff", "kl"):
        results = []
        for inplace in (False, True):
            model = copy.deepcopy(given_model)
            with Run(tmp_path / f"{retained}{inplace}", device="cpu") as run:
                method = NPO(retain=retained, batch_size=4, learning_rate=1e-3, epochs=2)
                after = method.forget(model, forget, retain, run=run, inplace=inplace)
            assert (after is model) == inplace
            results.append(list(after.parameters()))
        assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_a_batch_in_two_parts_is_the_same_step(learnt: Any, tmp_path: Path) -> None:
    model, forget, _ = learnt
    results = []
    for part in (8, 4):
        with Run(tmp_path / str(part), device="cpu") as run:
            method = NPO(batch_size=8, micro_batch_size=part, learning_rate=1e-3, epochs=3)
            results.append(method.forget(model, forget, run=run))
    for first, second in zip(*(model.parameters() for model in results), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_a_killed_run_goes_on_to_the_same_model(learnt: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model, forget, _ = learnt
    method = NPO(batch_size=4, learning_rate=1e-3, epochs=3)
    with Run(tmp_path / "whole", device="cpu", config={}) as run:
        whole = method.forget(model, forget, run=run)
    real, calls = NPO._loss, []

    def dies(self: NPO, *args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    monkeypatch.setattr(NPO, "_loss", dies)
    monkeypatch.setattr(module, "train_texts", _saving_every_step(module.train_texts))
    with Run(tmp_path / "killed", device="cpu", config={}) as run, pytest.raises(KeyboardInterrupt):
        method.forget(model, forget, run=run)
    with Run(tmp_path / "killed", device="cpu", config={}) as run:
        again = method.forget(model, forget, run=run)
    assert len(calls) == 4 + 3, "three steps were kept"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def _saving_every_step(train: Any) -> Any:
    def saving(*args: Any, **more: Any) -> Any:
        return train(*args, **{**more, "save_every": 1})

    return saving


def test_the_learning_rate_not_given_is_the_paper_s_at_its_width(learnt: Any, run: Run, monkeypatch: Any) -> None:
    seen: list[Schedule] = []
    monkeypatch.setattr(module, "train_texts", lambda model, *args, **_: seen.append(args[3]) or model)
    NPO().forget(learnt[0], learnt[1], run=run)
    assert seen[0].learning_rate == pytest.approx(1e-5 * 4096 / 16)
    monkeypatch.setattr(module, "width", lambda _: 4096)
    NPO().forget(learnt[0], learnt[1], run=run)
    assert seen[1].learning_rate == pytest.approx(1e-5)


def test_auto_takes_the_beta_of_the_best_difference_and_remembers_it(
    learnt: Any, run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    model, forget, retain = learnt
    method = NPO(retain="grad-diff", auto=True, batch_size=8, learning_rate=3e-3, epochs=4)
    assert method.needs == ("forget_set", "retain_set")
    after = method.forget(model, forget, retain, run=run)
    found = json.loads((run.directory / "betas.json").read_text())
    assert set(found) == {"1.0", "0.3", "0.1", "0.03", "0.01"}
    best = max((1.0, 0.3, 0.1, 0.03, 0.01), key=lambda beta: found[str(beta)])
    with Run(tmp_path / "plain", device="cpu") as plain:
        chosen = NPO(retain="grad-diff", beta=best, batch_size=8, learning_rate=3e-3, epochs=4)
        expected = chosen.forget(model, forget, retain, run=plain)
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"kind": "nop"}, "kind must be one of npo, ga, dpo, idk, kto, kto-log, not 'nop'"),
        ({"retain": "all"}, "retain must be one of none, grad-diff, kl"),
        ({"beta": 0}, "beta must be above 0, not 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"retain_weight": -1.0}, "retain_weight must be at least 0"),
        ({"micro_batch_size": 0}, "a batch must be at least 1"),
        ({"kind": "ga", "auto": True}, "kind ga has no beta to choose"),
    ],
)
def test_wrong_settings_are_named(settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        NPO(**settings_)


def test_wrong_sets_are_named(learnt: Any, run: Run) -> None:
    model, forget, retain = learnt
    with pytest.raises(InputError, match="need a retain set: give retain_set"):
        NPO(retain="kl").forget(model, forget, run=run)
    with pytest.raises(InputError, match="3 refusals for 8 answers"):
        NPO(kind="dpo").forget(model, forget, refusal_set=retain.select(slice(0, 3)), run=run)
    with pytest.raises(InputError, match="forget set holds no token sequences"):
        NPO().forget(model, (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)), run=run)
    silent = Sequences(forget.input_ids, forget.attention_mask, torch.zeros_like(forget.response_mask))
    with pytest.raises(InputError, match="example 0 of the forget set has no answer"):
        NPO().forget(model, silent, run=run)
    with pytest.raises(InputError, match="forget set is empty"):
        NPO().forget(model, forget.select(slice(0, 0)), run=run)
    with pytest.raises(InputError, match="causal language model"):
        NPO().forget(nn.Linear(2, 2), forget, run=run)
    with pytest.raises(InputError, match="1 example"):
        NPO(auto=True).forget(model, forget, retain.select(slice(0, 1)), run=run)


def toy() -> dict[str, list[tuple[float, float]]]:
    """The paper's logistic model on random features, after 500 and after 2000 steps of three losses.

    Of each, the error on what is kept (beside the model trained on that alone) and the distance travelled.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(600, 16, generator=draw) + sign / 4 for sign in (1, -1)])
    y, gone = (torch.arange(1200) < 600).float(), torch.arange(1200) % 6 == 0
    features = torch.relu(x @ torch.randn(16, 128, generator=draw) / 4)

    def logps(theta: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return -functional.binary_cross_entropy_with_logits(features[where] @ theta, y[where], reduction="none")

    def descend(theta: torch.Tensor, objective: Any, steps: int) -> torch.Tensor:
        for _ in range(steps):
            leaf = theta.detach().requires_grad_(True)
            theta = leaf - 0.1 * torch.autograd.grad(objective(leaf), leaf)[0]
        return theta.detach()

    start = descend(torch.zeros(128), lambda t: -logps(t, gone | ~gone).mean(), 200)
    retrained = descend(torch.zeros(128), lambda t: -logps(t, ~gone).mean(), 200)
    reference, found = logps(start, gone), {}
    for name, objective in {
        "ga": lambda t: logps(t, gone).mean(),
        "npo": lambda t: npo_loss(logps(t, gone), reference, beta=1.0),
        "npo+rt": lambda t: npo_loss(logps(t, gone), reference, beta=1.0) - logps(t, ~gone).mean(),
    }.items():
        theta, found[name] = start, []
        for steps in (500, 1500):
            theta = descend(theta, objective, steps)
            wrong = torch.sigmoid(features[~gone] @ theta) - torch.sigmoid(features[~gone] @ retrained)
            found[name].append((float(wrong.abs().mean()), float((theta - start).norm())))
    return found


def test_in_the_paper_s_toy_ascent_drifts_linearly_and_npo_saturates() -> None:
    found = toy()
    travelled = {name: late[1] / early[1] for name, (early, late) in found.items()}
    assert travelled["ga"] > 3
    assert travelled["npo"] < 2
    errors = {name: late[0] for name, (_, late) in found.items()}
    assert errors["npo+rt"] < errors["npo"] < errors["ga"]
    assert errors["ga"] > 0.4


def test_the_command_forgets_records_of_the_user_s(tmp_path: Path) -> None:
    from thrifty.forget.authors import author_questions, records
    from thrifty.lm.small import decoder_for, word_tokenizer

    rows = records(author_questions(1, 2).forget + author_questions(1, 2).retain)
    tokenizer = word_tokenizer([text for row in rows for text in row.values()])
    torch.manual_seed(0)
    decoder_for(tokenizer, width=16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, part in (("all", rows), ("forget", rows[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    given_files = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "all.jsonl")]
    given_files += ["--forget", str(tmp_path / "forget.jsonl"), "--device", "cpu", "--dtype", "float32"]
    for number, extra in enumerate(([], ["--kind", "dpo", "--retain", "kl"])):
        out = tmp_path / f"out{number}"
        assert main(["run", "npo", *given_files, "--epochs", "2", "--out", str(out), *extra]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["examples"]["forget_set"] == 6
        assert summary["table"][1]["forget_nll"] > summary["table"][0]["forget_nll"] - (0.0 if not extra else 0.1)
        assert (out / "model" / "model.safetensors").exists()


def test_without_a_model_a_small_decoder_forgets_authors(tmp_path: Path, monkeypatch: Any) -> None:
    few = replace(SMALL, forget=1, retain=2, schedule=replace(SMALL.schedule, epochs=25, batch_size=32))
    monkeypatch.setattr("thrifty.forget.room.SMALL", few)
    options = ["--retain", "grad-diff", "--learning-rate", "3e-3", "--batch-size", "3", "--device", "cpu"]
    assert main(["run", "npo", *options, "--out", str(tmp_path / "out")]) == 0
    before, after = json.loads((tmp_path / "out" / "summary.json").read_text())["table"]
    assert after["forget_nll"] > before["forget_nll"] + 1
    assert after["retain_nll"] < after["forget_nll"] - 0.5
    model, tokenizer = load_lm(tmp_path / "out" / "model")
    said = sample(model, tokenizer, ["What is the capital of France?"], max_new_tokens=4, greedy=True)
    assert said.response_mask.any()


def test_the_command_names_a_wrong_setting(capsys: Any) -> None:
    assert main(["run", "npo", "--forget-class", "3"]) == 2
    assert "--forget-class is for classifiers" in capsys.readouterr().err
