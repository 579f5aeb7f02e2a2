from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    ViTConfig,
    ViTForImageClassification,
)

from thrifty.core.errors import InputError
from thrifty.forget import texts
from thrifty.forget.base import cross_entropy, squared_logits
from thrifty.forget.baselines import BadTeacher, FineTune, GradientAscent
from thrifty.forget.data import Texts, stream
from thrifty.forget.evaluate import divergence, evaluate, predict
from thrifty.forget.importance import importance
from thrifty.forget.ssd import SSD
from thrifty.lm.sequences import from_rows

VOCABULARY = 24


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=3,
        )
    ).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **more,
        )
    ).eval()


def sequences(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(5, 12, (1,), generator=generator))
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        rows.append((ids, [False, False] + [True] * (length - 2)))
    return from_rows(rows)


def pictures(count=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


@pytest.mark.parametrize("label_free", [False, True])
def test_an_image_classifier_stays_a_hugging_face_model(tmp_path, label_free):
    model, (x, y) = vit(), pictures()
    after = SSD(selection=1.5, label_free=label_free, batch_size=4).forget(model, (x[y == 0], y[y == 0]), (x, y))
    assert type(after) is type(model)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))
    after.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(x).logits, after(x).logits)


def test_per_sample_importances_of_an_image_classifier_equal_batches_of_one():
    model, data = vit(), pictures(6)
    together = importance(model, stream(data, 3), cross_entropy, per_sample=True)
    alone = importance(model, stream(data, 1), cross_entropy)
    for name, value in alone.values.items():
        torch.testing.assert_close(together.values[name], value, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("label_free", [False, True])
def test_a_language_model_forgets_sequences_and_loads_again(tmp_path, make, label_free):
    model, everything = make(), sequences()
    forget_set = everything.select(slice(0, 4))
    after = SSD(selection=1.5, label_free=label_free, batch_size=4).forget(model, forget_set, everything)
    assert type(after) is type(model)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))
    after.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = everything.input_ids[:2]
    torch.testing.assert_close(again(ids).logits, after(ids).logits)
    assert again.generate(ids[:1, :3], max_new_tokens=4, do_sample=False).shape == (1, 7)


def reference_logits(model, data):
    """Row by row, without padding, by the model itself."""
    logits, targets = [], []
    for ids, real, spoken in zip(data.input_ids, data.attention_mask, data.response_mask, strict=True):
        found = model(ids[real][None]).logits[0, :-1]
        logits.append(found[spoken[real][1:]])
        targets.append(ids[real][1:][spoken[real][1:]])
    return torch.cat(logits), torch.cat(targets)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_objectives_look_at_response_tokens_only(make, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK", 5)
    model, data = make(), sequences()
    logits, targets = reference_logits(model, data)
    batch = Texts(data)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy(model, batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squared_logits(model, batch), logits.square().sum(1).mean(), rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()))
        for loss in (squared_logits(model, batch), logits.square().sum(1).mean())
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_model_whose_head_is_hidden_is_asked_as_a_whole(monkeypatch):
    model, data = llama(), sequences()
    parts = [squared_logits(model, Texts(data)), torch.cat([z for z, _ in texts.response_logits(model, data)])]
    monkeypatch.setattr(texts, "backbone", lambda _: None)
    torch.testing.assert_close(squared_logits(model, Texts(data)), parts[0], rtol=1e-4, atol=1e-5)
    whole = torch.cat([z for z, _ in texts.response_logits(model, data)])
    torch.testing.assert_close(whole, parts[1], rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_dampened_once_and_stay_tied():
    model, data = llama(tie_word_embeddings=True), sequences()
    found = SSD(batch_size=4).importance(model, data)
    assert "lm_head.weight" not in found.values
    after = SSD(selection=1.2, batch_size=4).forget(model, data.select(slice(0, 4)), data)
    assert after.lm_head.weight is after.model.embed_tokens.weight


def test_padding_does_not_count():
    model, data = llama(), sequences()
    padded = data.pad_to(40, pad_id=3)
    plain, more = (SSD(batch_size=4).importance(model, d).values for d in (data, padded))
    for name, value in plain.items():
        torch.testing.assert_close(value, more[name], rtol=1e-3, atol=1e-8)


def test_per_sample_importances_of_texts_equal_batches_of_one():
    model, data = llama(), sequences(5)
    together = importance(model, stream(data, 5), cross_entropy, per_sample=True)
    alone = importance(model, stream(data, 1), cross_entropy)
    assert together.examples == 5
    for name, value in alone.values.items():
        torch.testing.assert_close(together.values[name], value, rtol=1e-3, atol=1e-8)


def test_texts_are_evaluated_by_their_response_tokens():
    model, data = gpt2(), sequences(3)
    said = predict(model, data, batch_size=2)
    for row in range(3):
        logits, targets = reference_logits(model, data.select([row]))
        logps = logits.log_softmax(-1)
        expected = torch.stack(
            [
                -logps.gather(1, targets[:, None]).mean(),
                (logits.argmax(1) == targets).float().mean(),
                -(logps.exp() * logps).sum(1).mean(),
            ]
        )
        found = torch.stack([said.nll[row], said.correct[row], said.entropy[row]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sets = {"forget": data, "retain": sequences(6, seed=1), "test": sequences(6, seed=2)}
    scores = evaluate(model, sets, reference=model)
    assert scores["forget_nll"] == pytest.approx(float(said.nll.mean()), rel=1e-5)
    assert scores["forget_kl"] == pytest.approx(0, abs=1e-6)
    assert divergence(gpt2(), llama(), data) > 0


@pytest.mark.parametrize("method", [FineTune(epochs=2, batch_size=4), GradientAscent(0.1, 3, 4), BadTeacher(0.01, 2)])
def test_baselines_take_texts(method):
    model, data = gpt2(), sequences()
    sets = {"forget_set": data.select(slice(0, 4)), "retain_set": data.select(slice(4, 12))}
    after = method.forget(model, **{name: sets[name] for name in method.needs})
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))
    before, now = (predict(m, sets["forget_set"]).nll.mean() for m in (model, after))
    if isinstance(method, GradientAscent):
        assert now > before


def test_sequences_without_a_response_are_refused():
    silent = from_rows([([1, 2, 3], [False, False, False])])
    for objective in (cross_entropy, squared_logits):
        with pytest.raises(InputError, match="no response token"):
            objective(llama(), Texts(silent))


def test_a_body_without_a_head_is_refused():
    body = LlamaModel(llama().config)
    with pytest.raises(InputError, match="head"):
        SSD().importance(body, sequences())
    with pytest.raises(InputError, match="logits"):
        SSD().importance(body, (torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1])))
