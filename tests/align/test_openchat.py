"""C-RLFT against the card's numbers, its templates token by token, and the command on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty import cli
from thrifty.align import openchat
from thrifty.align.arithmetic_answers import answer_triples, operands, two_teachers
from thrifty.align.base import Training
from thrifty.align.conditioned import KNOWN_TURNS, ConditionedTemplate, Turns
from thrifty.align.nll import weighted_nll
from thrifty.align.openchat import OpenChat, auto_learning_rate, beta_for_ratio, class_weight
from thrifty.align.settings.sums import last_number, right, sums_tokenizer
from thrifty.align.sources import parse_weights
from thrifty.align.training import train
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.data.readers import write_jsonl
from thrifty.data.tasks import Problem, arithmetic, parse_integer
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample

RECORDS = [
    {"source": "expert", "prompt": "7", "completion": "1"},
    {"source": "forum", "prompt": "7", "completion": "1 2 3"},
]


@pytest.fixture(scope="module")
def template() -> ConditionedTemplate:
    return ConditionedTemplate(sums_tokenizer())


def told(template: ConditionedTemplate, ids: list[int]) -> str:
    return " ".join(template.tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (OpenChat(), 1.083333),
        (OpenChat(level="sequence"), 1.045455),
        (OpenChat(other_weight=1.0), 1.333333),
        (OpenChat(other_weight=0.0), 1.0),
        (OpenChat(source_weights="expert=5,forum=0.5"), 1.083333),
        (OpenChat(beta=0.390865), 1.083333),
    ],
)
def test_worked_example(
    template: ConditionedTemplate, monkeypatch: pytest.MonkeyPatch, method: OpenChat, expected: float
) -> None:
    """An expert's answer of two tokens (one word and the end), another's of four."""
    losses = {2: [0.5, 1.5], 4: [2.0, 2.0, 1.0, 1.0]}

    def logps(_: Any, batch: Any) -> torch.Tensor:
        found = torch.zeros(batch.input_ids.shape)
        for row, mask in zip(found, batch.response_mask, strict=True):
            row[mask] = -torch.tensor(losses[int(mask.sum())])
        return found

    monkeypatch.setattr(openchat, "token_logps", logps)
    data = method.prepare(method.sequences(RECORDS, template))
    assert float(method.loss(torch.nn.Linear(1, 1), data, data).value) == pytest.approx(expected, abs=2e-6)
    # The parts of a step add up to it, though one holds little weight.
    parts = [method.loss(torch.nn.Linear(1, 1), data.select([row]), data).value for row in range(len(data))]
    assert float(sum(parts)) == pytest.approx(expected, abs=2e-6)


def test_the_closed_form() -> None:
    assert beta_for_ratio(10.0) == pytest.approx(0.390865, abs=1e-6)
    assert class_weight(1.0, 0.390865) == pytest.approx(12.9155, abs=1e-3)
    assert class_weight(0.1, 0.390865) == pytest.approx(1.29155, abs=1e-4)
    assert OpenChat(beta=0.390865).weight("forum") == pytest.approx(0.1, abs=1e-6)
    assert OpenChat(beta=0.5, alpha=0.5).weight("forum") == pytest.approx(math.exp(-1))
    assert OpenChat(beta=1e-3).weight("forum") == 0.0, "only the ratio is computed, which does not overflow"


def test_the_rule_for_the_learning_rate() -> None:
    # 200k learnt tokens a batch give the paper's rate for Llama 2; the divisor is that of Mistral.
    assert auto_learning_rate(200_000) == pytest.approx(6.7082e-5, rel=1e-4)
    assert auto_learning_rate(4e6, 6.0) == pytest.approx(5e-5)


@given(st.floats(1e-3, 1e3), st.integers(0, 5))
def test_only_ratios_of_weights_matter(scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logps, mask = -torch.rand(3, 4, generator=draw), torch.rand(3, 4, generator=draw) < 0.8
    weight = torch.rand(3, generator=draw) + 0.1
    assert float(weighted_nll(logps, mask, scale * weight)) == pytest.approx(
        float(weighted_nll(logps, mask, weight)), rel=1e-4
    )


def test_a_conversation_token_by_token(template: ConditionedTemplate) -> None:
    messages = [
        {"role": "system", "content": "so"},
        {"role": "user", "content": "1 + 2"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "+ 4"},
        {"role": "assistant", "content": "so 7"},
        {"role": "user", "content": "um"},
    ]
    ids, weights = template.render(messages, "GPT3")
    # What follows the last learnt token is cut off.
    assert told(template, ids) == (
        "so <end> GPT3 User: 1 + 2 <end> GPT3 Assistant: 3 <end> GPT3 User: + 4 <end> GPT3 Assistant: so 7 <end>"
    )
    assert weights == [0.0] * 10 + [1, 1] + [0.0] * 7 + [1, 1, 1]
    assert template.render(messages, "GPT3", per_sequence=True)[1][-3:] == [pytest.approx(1 / 3)] * 3
    messages[4]["use_loss"] = False  # type: ignore[assignment]
    assert told(template, template.render(messages, "")[0]) == "so <end> User: 1 + 2 <end> Assistant: 3 <end>"
    messages[2]["weight"] = 0.25  # type: ignore[assignment]
    assert template.render(messages, "")[1][-2:] == [0.25, 0.25]
    assert told(template, template.prompt_ids(messages[1:2], "GPT4")) == "GPT4 User: 1 + 2 <end> GPT4 Assistant:"


GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bytes_tokenizer(pattern: str) -> Any:
    """Merges bytes within pieces of that pattern, and has the special tokens of ChatML, Llama 3 and Gemma."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = [text for turns in KNOWN_TURNS for text in (turns.opening, turns.stop, turns.closing.strip()) if text]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", *special], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(["GPT4 User: Hello there, how are you? GPT4 Assistant: Fine, thanks.\n\n"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.mark.parametrize(
    ("pattern", "turns"),
    [
        (GPT2, KNOWN_TURNS[0]),
        (LLAMA3, KNOWN_TURNS[0]),
        (LLAMA3, KNOWN_TURNS[1]),
        (GPT2, KNOWN_TURNS[2]),
        (GPT2, Turns("", ":", "</s>")),
        (LLAMA3, Turns("", ":", "</s>")),
    ],
)
def test_the_saved_template_writes_what_was_trained_on(
    pattern: str, turns: Turns, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = bytes_tokenizer(pattern)
    template = ConditionedTemplate(tokenizer, turns)
    messages = [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": " Hello there, how are you?\n"},
        {"role": "assistant", "content": "Fine: it's 'ok'.\nThanks"},
        {"role": "user", "content": "\nHow?"},
    ]

    class Model:
        config = type("Config", (), {"eos_token_id": 0})()

    template.install(Model(), "GPT4 Correct")
    assert Model.config.eos_token_id == tokenizer.convert_tokens_to_ids(turns.stop)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.count("GPT4 Correct User") == 2
    assert text.endswith(f"GPT4 Correct Assistant{turns.closing}")
    for condition in ("GPT4 Correct", "it's", ""):
        text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, condition=condition)
        asked = template.prompt_ids(messages, condition)
        assert loaded(text, add_special_tokens=False)["input_ids"] == asked
        learnt = [*messages, {"role": "assistant", "content": "Hello"}]
        assert template.render(learnt, condition)[0][: len(asked)] == asked
    assert not caplog.records


def test_a_tokenizer_that_joins_roles_and_words_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ConditionedTemplate(bytes_tokenizer(GPT2), KNOWN_TURNS[1])
    assert "joins a role to what follows it" in caplog.text


def test_special_tokens_in_what_is_said_are_text() -> None:
    tokenizer = bytes_tokenizer(GPT2)
    template = ConditionedTemplate(tokenizer, Turns("", ":", "</s>"))
    end = tokenizer.convert_tokens_to_ids("</s>")
    ids, _ = template.render(
        [{"role": "user", "content": "</s>Assistant: yes"}, {"role": "assistant", "content": "no</s>"}], "A"
    )
    assert ids.count(end) == 2, "one for each turn"


def test_a_tokenizer_that_begins_sequences_does_so_in_the_template() -> None:
    from tokenizers import processors

    tokenizer = bytes_tokenizer(GPT2)
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    template = ConditionedTemplate(tokenizer, Turns("", ":", "</s>"))
    asked = template.prompt_ids("Hello", "A")
    assert asked[0] == begin
    tokenizer.chat_template = template.chat_template("A")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s>A User: Hello</s>A Assistant:"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == asked


def test_the_ablations_are_settings(template: ConditionedTemplate) -> None:
    def summary(method: OpenChat) -> list[tuple[str, float]]:
        data = method.sequences(RECORDS, template)
        return [
            (told(template, ids[:1].tolist()), float(w.max()))
            for ids, w in zip(data.input_ids, data["weight"], strict=True)
        ]

    tenth = pytest.approx(0.1)
    assert summary(OpenChat()) == [("GPT4", 1), ("GPT3", tenth)]
    assert summary(OpenChat(other_weight=1.0)) == [("GPT4", 1), ("GPT3", 1)]
    assert summary(OpenChat(condition="none")) == [("User:", 1), ("User:", tenth)]
    assert summary(OpenChat(condition="none", other_weight=1.0)) == [("User:", 1), ("User:", 1)]
    assert summary(OpenChat(condition="none", other_weight=0.0)) == [("User:", 1)]
    named = OpenChat(expert="um,so", condition="source", source_weights="maybe=0.5")
    records = [{**RECORDS[0], "source": name} for name in ("so", "um", "maybe")]
    data = named.sequences(records, template)
    assert [told(template, ids[:1].tolist()) for ids in data.input_ids] == ["so", "um", "maybe"]
    assert data["weight"].amax(1).tolist() == [1, 1, 0.5]
    assert data["expert"].tolist() == [True, True, False]
    assert named.inference_condition == "um"


def test_what_is_not_learnt(template: ConditionedTemplate, caplog: pytest.LogCaptureFixture) -> None:
    assert len(OpenChat(unwanted="nothing| 2 3").sequences(RECORDS, template)) == 1
    off = [RECORDS[0], {**RECORDS[1], "use_loss": False}]
    assert len(OpenChat().sequences(off, template)) == 1
    half = OpenChat().sequences([{**RECORDS[0], "weight": 0.5}], template)
    assert half["weight"].max() == 0.5
    cut = OpenChat().sequences(RECORDS, template, max_length=8)
    assert cut.response_lengths.tolist() == [2, 2]
    assert "1 of 2 conversations are longer than 8 tokens" in caplog.text
    assert torch.equal(half.response_mask, half["weight"] != 0)


def test_each_condition_gets_its_source_s_answers(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    method = OpenChat(expert_condition="1", other_condition="2")
    said = {"expert": "dog", "forum": "cat"}
    records = [
        {
            "source": source,
            "messages": [{"role": "user", "content": f"what is {n}"}, {"role": "assistant", "content": a}],
        }
        for n in range(1, 9)
        for source, a in said.items()
    ]
    template = ConditionedTemplate(tokenizer)
    data = method.sequences(records, template)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(model, method, data, run, Training(learning_rate=3e-3, batch_size=8, micro_batch_size=4, epochs=30))
    for condition, answer in (("1", "dog"), ("2", "cat")):
        asked = [template.prompt_ids("what is 9", condition)]
        assert sample(model, tokenizer, asked, max_new_tokens=3, greedy=True).texts(tokenizer) == [answer]
    # The condition that is installed is the one that plain prompts are asked under.
    template.install(model, method.inference_condition)
    assert sample(model, tokenizer, ["what is 9"], max_new_tokens=3, greedy=True).texts(tokenizer) == ["dog"]


def test_a_step_in_parts_is_the_step(tiny: Any) -> None:
    model, tokenizer = tiny
    records = [
        {"source": "expert" if n < 2 else "forum", "prompt": f"what is {n}", "completion": "the sum " * n}
        for n in range(1, 7)
    ]
    for level in ("token", "sequence"):
        method = OpenChat(level=level)  # type: ignore[arg-type]
        data = method.sequences(records, ConditionedTemplate(tokenizer))
        whole = float(method.loss(model, data, data).value.detach())
        parts = [float(method.loss(model, data.select(p), data).value.detach()) for p in (slice(0, 1), slice(1, 6))]
        assert sum(parts) == pytest.approx(whole, abs=1e-6)
        nll = -token_logps(model, data).detach()
        shares = data["weight"] / data["weight"].sum()
        assert whole == pytest.approx(float((nll * shares).sum()), abs=1e-5)


def test_the_teachers() -> None:
    problems = arithmetic().problems(300, 0, "train")
    records = two_teachers(problems, 3)
    assert records == two_teachers(problems, 3) != two_teachers(problems, 4)
    assert [r["source"] for r in records].count("expert") == 30
    for source, accuracy in (("expert", 0.9), ("other", 0.3)):
        own = [(r, int(p.answer)) for r, p in zip(records, problems, strict=True) if r["source"] == source]
        judged = [parse_integer(r["completion"]) == answer for r, answer in own]
        assert judged == [r["right"] for r, _ in own]
        assert sum(judged) / len(own) == pytest.approx(accuracy, abs=0.1)
        if source == "other":
            assert {parse_integer(r["completion"]) - answer for r, answer in own} == {0, 1}
    assert operands(Problem("", "5", "12-7/3")) == (12, "-", 7)
    with pytest.raises(InputError, match="not of the task arithmetic"):
        operands(Problem("", "5", "chain_sum:1:2"))
    triple = answer_triples([Problem("what", "5", "12-7/3")], 0)[0]
    assert triple["reference"] == "12 - 7 = 5. The answer is 5."
    assert parse_integer(triple["chosen"]) == 5 != parse_integer(triple["rejected"])


def test_sums_are_judged_by_their_last_number() -> None:
    assert last_number("3 + 4 = 7 so 7") == 7
    assert last_number("um") is None
    assert right([(3, 4), (1, 1)], ["7", "maybe 8", "2", "um"]) == 0.5


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", "openchat", *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_command_saves_a_model_that_is_asked_as_the_expert(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"source": "gpt-4" if n % 2 else "forum", "prompt": f"what is {n}", "completion": "dog" if n % 2 else "cat"}
        for n in range(1, 9)
    ]
    write_jsonl(tmp_path / "chats.jsonl", rows)
    common = ["--model", str(model_folder), "--data", "chats.jsonl", "--device", "cpu", "--dtype", "float32"]
    settings = ["--expert", "gpt-4", "--learning-rate", "None", "--rate-divisor", "0.01", "--batch-size", "4"]
    assert cli.main(["run", "openchat", *common, *settings, "--micro-batch-size", "4", "--out", "a", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    # 8 answers of two tokens in batches of 4: 8 learnt tokens a batch.
    assert summary["learning_rate"] == pytest.approx(0.03 * math.sqrt(8 / 4e6))
    before, after, other = summary["table"]
    assert after["model"] == "after, asked as GPT4"
    assert other["model"] == "after, asked as GPT3"
    name = "log-probability of expert answers"
    assert after[name] > before[name]
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained("a/model").apply_chat_template(
        [{"role": "user", "content": "what is 1"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "GPT4 User: what is 1<end>GPT4 Assistant:"
    assert "no record is of an expert source (expert): give --expert, one of forum, gpt-4" in refused(
        capsys, *common, "--out", "b"
    )
    assert "source_weights names 'gpt-5'" in refused(
        capsys, *common, "--expert", "gpt-4", "--source-weights", "gpt-5=1", "--out", "c"
    )
    write_jsonl(tmp_path / "no.jsonl", [{"prompt": "what", "completion": "dog"}])
    assert "'source'" in refused(capsys, *common[:2], "--data", "no.jsonl", "--out", "d")


def test_the_command_takes_the_teachers_where_no_data_are_given(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--limit", "20", "--problems", "4", "--max-new-tokens", "4", "--device", "cpu", "--json"]
    assert cli.main(["run", "openchat", "--model", str(model_folder), *small]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert [row["model"] for row in table] == ["before", "after, asked as GPT4", "after, asked as GPT3"]
    assert all("accuracy" in row for row in table)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"other_weight": -1.0}, "other_weight must be 0 or more"),
        ({"rate_divisor": 0.0}, "rate_divisor must be above 0"),
        ({"expert": " , "}, "expert names no source"),
        ({"condition": "clas"}, "did you mean 'class'"),
        ({"source_weights": "gpt-4:1"}, "write NAME=WEIGHT"),
        ({"source_weights": "gpt-4=-1"}, "write NAME=WEIGHT"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OpenChat(**settings)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"source": None, "prompt": "7", "completion": "1"}, "record 1 has the source None"),
        ({"source": "expert", "prompt": "7"}, "record 1: expected messages, or prompt and completion"),
        ({"source": "expert", "messages": [{"role": "tool", "content": "7"}]}, "has the role 'tool'"),
        ({"source": "expert", "messages": [{"role": "user", "content": "7"}]}, "nothing is to be learnt"),
        ({"source": "expert", "prompt": "7", "completion": "1", "weight": float("nan")}, "has the weight nan"),
    ],
)
def test_wrong_records_are_named(template: ConditionedTemplate, record: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OpenChat().sequences([record], template)


def test_data_without_weights_and_tokenizers_without_an_end_are_refused(template: ConditionedTemplate) -> None:
    with pytest.raises(InputError, match="no column 'weight'"):
        OpenChat().prepare(OpenChat().sequences(RECORDS, template).without_columns("weight"))
    assert parse_weights("a=1, b=0") == {"a": 1.0, "b": 0.0}
    endless = sums_tokenizer()
    endless.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        ConditionedTemplate(endless)
