"""Reward models against their own forward pass, text by text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import make_tokenizer
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.reward.base import score
from thrifty.reward.classifiers import judged
from thrifty.reward.models import OutcomeModel, ProcessModel
from thrifty.reward.step_format import StepFormat

Build = Callable[..., Any]
PROMPTS = ["What is 2+2?", "And 3+3, as a much longer question?", "Hm"]
SAID = ["It is 4.", "Six.\n\nSure.", "a\n\nb\n\nc"]


def test_scores_of_logits() -> None:
    two = torch.tensor([[0.0, 2.0]])
    p = two.softmax(-1)
    torch.testing.assert_close(judged(two, "probability"), p[:, 1])
    torch.testing.assert_close(judged(two, "difference"), p[:, 1] - p[:, 0])
    assert judged(two, "logit").tolist() == [2.0]
    assert float(judged(torch.tensor([[2.0]]), "probability")) == pytest.approx(0.880797, abs=1e-6)


@torch.no_grad()
def alone(model: Any, ids: list[int]) -> Tensor:
    return model.eval()(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(
    ("labels", "output"), [(1, "logit"), (1, "probability"), (2, "probability"), (2, "difference")]
)
@pytest.mark.parametrize("pad", [0, None])
def test_an_outcome_model_scores_each_text_as_by_itself(
    labels: int, output: Any, pad: int | None, build: Build, tokenizer: Any
) -> None:
    model = build("LlamaForSequenceClassification", num_labels=labels, pad_token_id=pad).train()
    reward = OutcomeModel(model, tokenizer, output=output, batch_size=2)
    found = score(reward, PROMPTS, SAID)
    assert model.training
    assert model.config.pad_token_id == pad
    logits = torch.stack([alone(model, tokenizer(p + c)["input_ids"]) for p, c in zip(PROMPTS, SAID, strict=True)])
    z = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    expected = {"logit": z, "probability": torch.sigmoid(z), "difference": 2 * torch.sigmoid(z) - 1}[output]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_chat_template_puts_the_text_where_there_is_one(build: Build) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer = make_tokenizer(template=template)
    model = build("LlamaForSequenceClassification", num_labels=1)
    found = OutcomeModel(model, tokenizer, output="logit").score(["Hi"], ["Yes"])
    torch.testing.assert_close(found, alone(model, tokenizer("[user] Hi\n[assistant] Yes\n")["input_ids"]))
    plain = OutcomeModel(model, tokenizer, output="logit", form="text").score(["Hi"], ["Yes"])
    torch.testing.assert_close(plain, alone(model, tokenizer("HiYes")["input_ids"]))


def test_long_texts_lose_the_beginning_of_the_prompt(
    build: Build, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("LlamaForSequenceClassification", num_labels=1)
    ids = tokenizer("q" * 100 + "yes")["input_ids"]
    found = OutcomeModel(model, tokenizer, output="logit").score(["q" * 100], ["yes"])
    torch.testing.assert_close(found, alone(model, [ids[0], *ids[-95:]]))
    assert "cut to the 96" in caplog.text


def by_hand(model: Any, tokenizer: Any, prompt: str, steps: list[str], separator: str) -> Tensor:
    """Logits at the last token of each step's separator."""
    ids, reads = tokenizer(prompt)["input_ids"], []
    for step in steps:
        ids = ids + tokenizer(step)["input_ids"] + tokenizer(separator)["input_ids"]
        reads.append(len(ids) - 1)
    return alone(model, ids)[reads]


STEPS = [["It is 4."], ["Six.", "Sure."], ["a", "b", "c"]]


@pytest.mark.parametrize("separator", ["\n\n", "#"])
def test_a_token_classifier_scores_each_step_at_its_separator(separator: str, build: Build, tokenizer: Any) -> None:
    model = build("LlamaForTokenClassification", num_labels=2)
    reward = ProcessModel(model, tokenizer, StepFormat(step_token=separator), batch_size=2)
    found = reward.steps(PROMPTS, SAID)
    assert found.counts.tolist() == [1, 2, 3]
    for number, steps in enumerate(STEPS):
        p = by_hand(model, tokenizer, PROMPTS[number], steps, separator).softmax(-1)
        torch.testing.assert_close(found.score[number, : len(steps)], p[:, 1] - p[:, 0], atol=1e-5, rtol=1e-4)
    assert found.step_end[2].tolist() == [1, 3, 5]  # a # b # c #


def test_a_language_model_is_asked_for_two_words(build: Build, tokenizer: Any) -> None:
    model = build("LlamaForCausalLM")
    reward = ProcessModel(model, tokenizer, StepFormat(step_token="k", good="y", bad="n"), output="probability")
    found = reward.steps(PROMPTS, SAID)
    words = [tokenizer("n")["input_ids"][0], tokenizer("y")["input_ids"][0]]
    for number, steps in enumerate(STEPS):
        p = by_hand(model, tokenizer, PROMPTS[number], steps, "k")[:, words].softmax(-1)
        torch.testing.assert_close(found.score[number, : len(steps)], p[:, 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduce", ["min", "mean", "last", "product"])
def test_a_process_model_is_a_reward(reduce: Any, build: Build, tokenizer: Any) -> None:
    reward = ProcessModel(build("LlamaForTokenClassification", num_labels=2), tokenizer, reduce=reduce)
    steps = reward.steps(PROMPTS, SAID)
    rows = [row[mask] for row, mask in zip(steps.score, steps.step_mask, strict=True)]
    by_row = {"min": torch.min, "mean": torch.mean, "last": lambda row: row[-1], "product": torch.prod}[reduce]
    torch.testing.assert_close(score(reward, PROMPTS, SAID), torch.stack([by_row(row) for row in rows]))


def test_step_ends_count_the_tokens_of_the_policy_when_given(build: Build, tokenizer: Any) -> None:
    reward = ProcessModel(build("LlamaForTokenClassification", num_labels=1), tokenizer)
    policy = make_tokenizer()  # each line end is a token of its own
    ids = [policy(said)["input_ids"] for said in SAID]
    found = reward.steps(PROMPTS, SAID, completion_ids=ids, tokenizer=policy, truncated=[False, True, False])
    assert found.step_end.tolist() == [[7, 0, 0], [5, 10, 0], [2, 5, 6]]
    torch.testing.assert_close(found.score, reward.steps(PROMPTS, SAID).score)
    assert found.truncated is not None
    assert found.truncated.tolist() == [False, True, False]
    with pytest.raises(InputError, match="need the tokenizer"):
        reward.steps(PROMPTS, SAID, completion_ids=ids)


def test_long_prompts_are_cut_and_long_responses_refused(build: Build, tokenizer: Any) -> None:
    model = build("LlamaForTokenClassification", num_labels=2)
    reward = ProcessModel(model, tokenizer)
    found = reward.steps(["q" * 200], ["a\n\nb"])
    p = alone(model, tokenizer("q" * 92 + "a\n\nb\n\n")["input_ids"])[[93, 95]].softmax(-1)
    torch.testing.assert_close(found.score[0], p[:, 1] - p[:, 0], atol=1e-5, rtol=1e-4)
    assert found.step_end.tolist() == [[1, 3]]
    with pytest.raises(InputError, match="a response of 201 tokens is longer than the 96"):
        reward.steps(["q"], ["a" * 200])


def test_models_are_loaded_from_a_folder(build: Build, tokenizer: Any, tmp_path: Path) -> None:
    for name, kind in (("LlamaForSequenceClassification", OutcomeModel), ("LlamaForTokenClassification", ProcessModel)):
        model = build(name, num_labels=2)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        loaded = kind.load(tmp_path / name)
        assert score(loaded, PROMPTS, SAID).tolist() == pytest.approx(kind(model, tokenizer)(PROMPTS, SAID), abs=1e-6)
        assert loaded.name == str(tmp_path / name)
    with pytest.raises(InputError, match="is a LlamaForTokenClassification; a sequence classifier was expected"):
        OutcomeModel.load(tmp_path / "LlamaForTokenClassification")
    with pytest.raises(InputError, match="a token classifier or causal language model was expected"):
        ProcessModel.load(tmp_path / "LlamaForSequenceClassification")
    weights = tmp_path / "LlamaForSequenceClassification" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match=r"holds no \*\.safetensors"):
        OutcomeModel.load(weights.parent)
    with pytest.raises(InputError, match="no file or folder"):
        OutcomeModel.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        OutcomeModel.load(tmp_path / "empty")


def test_models_of_the_wrong_kind_are_refused_in_one_line(build: Build, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="a sequence classifier of transformers was expected, Linear was given"):
        OutcomeModel(torch.nn.Linear(1, 1), tokenizer)
    with pytest.raises(InputError, match="has 5 labels"):
        OutcomeModel(build("LlamaForSequenceClassification", num_labels=5), tokenizer)
    with pytest.raises(InputError, match="LlamaForSequenceClassification was given"):
        ProcessModel(build("LlamaForSequenceClassification", num_labels=2), tokenizer)
    with pytest.raises(InputError, match="'good' is not one token"):
        ProcessModel(build("LlamaForCausalLM"), tokenizer, StepFormat(good="good"))
    model = build("LlamaForTokenClassification", num_labels=2)
    with pytest.raises(InputError, match="output is 'logits': did you mean 'logit'"):
        ProcessModel(model, tokenizer, output="logits")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reduce is 'max'"):
        ProcessModel(model, tokenizer, reduce="max")  # type: ignore[arg-type]
