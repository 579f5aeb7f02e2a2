from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.shrink.baselines import CutUnits
from thrifty.shrink.decoder import decoder_layers, matrix
from thrifty.shrink.decoder_storing import load_decoder, save_decoder
from thrifty.shrink.flap import FLAP, mean_replacement_bias, standardise, weighted_fluctuation, weighted_norm
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.measure import removed
from thrifty.shrink.structured import Part, choose, keep_within

X = torch.tensor([[1.0, 0, 2], [3, 0, 2], [2, 1, 2], [2, 3, 2]])
W = torch.tensor([[1.0, 2, 0.5], [0, -1, 1]])


def seen_of(*sequences):
    seen = InputStatistics()
    for x in sequences:
        seen.add(x)
    return seen


def test_worked_example():
    seen = seen_of(X)
    torch.testing.assert_close(seen.mean, torch.tensor([2.0, 1, 2]))
    torch.testing.assert_close(seen.variance, torch.tensor([2 / 3, 2.0, 0]))
    torch.testing.assert_close(weighted_fluctuation(W, seen.variance), torch.tensor([2 / 3, 10.0, 0]))
    for channel, bias, with_bias, without in ((2, [1.0, 2.0], 0.0, None), (0, [2.0, 0.0], 0.25, 2.25)):
        pruned = torch.arange(3) == channel
        found = mean_replacement_bias(W, seen.mean, pruned)
        torch.testing.assert_close(found, torch.tensor(bias))
        cut = X.masked_fill(pruned, 0) @ W.T
        assert float((cut + found - X @ W.T).square().mean()) == pytest.approx(with_bias)
        if without is not None:
            assert float((cut - X @ W.T).square().mean()) == pytest.approx(without)


def test_the_released_recursion_leaves_out_the_first_sequence():
    seen = seen_of(X[:2], X[2:])
    torch.testing.assert_close(seen.mean, torch.tensor([2.0, 1, 2]))
    torch.testing.assert_close(seen.released_fluctuation, torch.tensor([0.0, 2, 0]))


def test_the_released_recursion_step_by_step():
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4) + 2
    mean, fluctuation = torch.zeros(4), torch.zeros(4)
    for count, sequence in enumerate(x):
        mean = mean * count / (count + 1) + sequence.mean(0) / (count + 1)
        if count:
            fluctuation = fluctuation * (count - 1) / count + (sequence - mean).square().sum(0) / (count + 1)
    seen = InputStatistics()
    seen.add(x[:4])
    seen.add(x[4:])
    torch.testing.assert_close(seen.released_fluctuation, fluctuation)


def test_standardised_scores():
    expected = torch.tensor([-0.925820, -0.462910, 0, 1.388730])
    torch.testing.assert_close(standardise(torch.tensor([1.0, 2, 3, 6])), expected, atol=1e-6, rtol=0)
    assert not standardise(torch.ones(3)).any()


def test_the_weighted_norm_is_wandas_score_averaged_over_outputs():
    torch.testing.assert_close(weighted_norm(W, torch.tensor([2.0, 1, 4])), torch.tensor([1.0, 1.5, 3.0]))


@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 4), st.floats(-50, 50))
@settings(max_examples=25)
def test_statistics_do_not_depend_on_how_sequences_are_batched(count, length, first, shift):
    x = torch.randn(count, length, 3, generator=torch.Generator().manual_seed(count)) + shift
    whole, parts = seen_of(x), seen_of(*(part for part in x.split(first)))
    flat = x.double().flatten(0, 1)
    for found in (whole, parts):
        torch.testing.assert_close(found.mean.double(), flat.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.variance.double(), flat.var(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.norm.double(), (flat.square().sum(0) / count).sqrt(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.variance_within.double(), x.double().var(1, correction=0).mean(0), rtol=1e-4, atol=1e-5
        )


def test_units_of_all_parts_compete_at_their_cost():
    scores = [torch.tensor([5.0, 1.0]), torch.tensor([4.0, 3.0, 2.0, 0.0])]
    keep = keep_within(scores, [10, 1], 13)
    assert [mask.tolist() for mask in keep] == [[True, False], [True, True, True, False]]
    # The best of each part stays, however low: here it takes the whole budget.
    assert [mask.tolist() for mask in keep_within(scores, [10, 1], 1)] == [[True, False], [True, False, False, False]]


@given(st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=8), min_size=1, max_size=5), st.floats(0, 1))
@settings(max_examples=50)
def test_what_is_kept_comes_close_to_the_budget(scores, share):
    given_scores = [torch.tensor(one, dtype=torch.float32) for one in scores]
    costs = [1 + at % 3 for at in range(len(scores))]
    total = sum(cost * len(one) for cost, one in zip(costs, scores, strict=True))
    keep = keep_within(given_scores, costs, share * total)
    kept = sum(cost * int(mask.sum()) for cost, mask in zip(costs, keep, strict=True))
    least = sum(costs)
    assert all(mask.any() for mask in keep)
    assert kept == least or abs(kept - share * total) <= max(costs)


FAMILIES = ("llama", "gpt2", "qwen3", "gemma2", "gpt_neox", "opt", "phi", "stablelm")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_is_the_masked_model(family, decoders, windows):
    model = decoders[family]
    before = copy.deepcopy(model.state_dict())
    cut, masked = (FLAP(sparsity=0.3, physical=physical).shrink(model, windows) for physical in (True, False))
    torch.testing.assert_close(cut(windows).logits, masked(windows).logits, atol=1e-5, rtol=0)
    assert (cut(windows).logits - model(windows).logits).abs().max() > 1e-3
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())
    assert removed(model, cut) == pytest.approx(0.3, abs=0.051)  # a group of heads is a tenth of all weights
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # With a cache, token by token, and without: the same.
    ids, text = windows[:2], {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(cut.generate(ids, **text), cut.generate(ids, use_cache=False, **text))


@pytest.mark.parametrize("structure", ["al-am", "al-mm", "ul-um", "ul-mm"])
def test_every_structure_reaches_the_sparsity(structure, llama, windows):
    cut = FLAP(sparsity=0.3, structure=structure, remove_heads=4).shrink(llama, windows)
    assert removed(llama, cut) == pytest.approx(0.3, abs=0.051 if structure == "al-am" else 0.01)
    sizes = [(one.attention.groups, one.feed_forward.neurons) for one in decoder_layers(cut)]
    if structure.startswith("ul"):
        assert len(set(sizes)) == 1
    if structure.endswith("mm"):
        assert sum(groups for groups, _ in sizes) == 2 * 2 - 4 // 2  # two query heads to a group


def test_a_uniform_llama_loads_with_from_pretrained(tmp_path, llama, windows, tokenizer):
    cut = FLAP(sparsity=0.3, structure="ul-um").shrink(llama, windows)
    assert save_decoder(cut, tmp_path / "model", tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again(windows).logits, cut(windows).logits)
    assert again.config.intermediate_size < llama.config.intermediate_size
    assert llama.config.intermediate_size == 48


def test_heads_that_the_config_can_not_say_are_saved_our_way(tmp_path, llama, windows, tokenizer):
    # Six heads of eight: transformers refuses a config whose number of heads does not divide the width.
    config = copy.deepcopy(llama.config)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 4
    torch.manual_seed(0)
    model = type(llama)(config).eval()
    cut = FLAP(sparsity=0.25, structure="ul-um").shrink(model, windows)
    assert {layer.attention.groups for layer in decoder_layers(cut)} == {3}
    assert cut.config.num_attention_heads == 8
    assert not save_decoder(cut, tmp_path / "model", tokenizer)
    again, _ = load_decoder(tmp_path / "model")
    assert torch.equal(again(windows).logits, cut(windows).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_of_their_own_sizes_load_with_our_loader(family, tmp_path, decoders, windows, tokenizer):
    model = copy.deepcopy(decoders[family])
    # One neuron outshines all others of its layer, which so lie close to the mean, above the lowest of the other layer.
    matrix(decoder_layers(model)[0].feed_forward.output)[:, 0] *= 100
    cut = FLAP(sparsity=0.3, structure="al-mm", remove_heads=2).shrink(model, windows)
    assert len({one.feed_forward.neurons for one in decoder_layers(cut)}) == 2
    assert not save_decoder(cut, tmp_path / "model", tokenizer)
    again, _ = load_decoder(tmp_path / "model")
    assert torch.equal(again(windows).logits, cut(windows).logits)
    text = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(windows[:2], **text), cut.generate(windows[:2], **text))
    # It is a model like any other: what was cut once can be cut again.
    twice = FLAP(sparsity=0.2).shrink(again, windows)
    assert removed(again, twice) == pytest.approx(0.2, abs=0.09)


def test_the_bias_replaces_what_hardly_varies(llama, windows):
    model = copy.deepcopy(llama)
    with_bias, without = (
        FLAP(sparsity=0.3, compensate=compensate).shrink(model, windows) for compensate in (True, False)
    )
    dense = model(windows).logits
    assert (with_bias(windows).logits - dense).square().mean() < (without(windows).logits - dense).square().mean()


@pytest.mark.parametrize("by", ["wanda", "magnitude", "random"])
def test_baselines_remove_as_much(by, llama, windows):
    cut = CutUnits(sparsity=0.3, by=by).shrink(llama, windows)
    assert removed(llama, cut) == pytest.approx(0.3, abs=0.02)
    assert decoder_layers(cut)[0].feed_forward.output.bias is None


def test_units_chosen_at_random_are_others_for_each_seed(llama, windows):
    def cut(seed, method):
        torch.manual_seed(seed)
        return decoder_layers(method.shrink(llama, windows))[0].feed_forward.output.weight

    free, fixed = CutUnits(sparsity=0.3, by="random"), CutUnits(sparsity=0.3, by="random", seed=5)
    assert torch.equal(cut(0, free), cut(0, free))
    assert not torch.equal(cut(0, free), cut(1, free))
    assert torch.equal(cut(0, fixed), cut(1, fixed))


def test_attention_that_can_not_be_cut_is_left_whole_and_said(decoders, windows, caplog):
    with caplog.at_level(logging.WARNING, logger="thrifty"):
        cut = FLAP(sparsity=0.3).shrink(decoders["bloom"], windows)
    assert "the attention of 2 of 2 layers is left whole" in caplog.text
    assert removed(decoders["bloom"], cut) == pytest.approx(0.3, abs=0.02)


def test_norms_over_all_heads_keep_the_attention_whole(decoders):
    assert all(layer.attention is None for layer in decoder_layers(decoders["olmo2"]))


def test_a_sparsity_out_of_reach_is_said_with_the_largest_possible(llama, windows):
    with pytest.raises(InputError, match=r"0\.99 can't be reached: the largest possible is 0\.7"):
        FLAP(sparsity=0.99).shrink(llama, windows)
    for sparsity in (0.0, 1.0, -0.1):
        with pytest.raises(InputError, match="sparsity must lie between 0 and 1"):
            FLAP(sparsity=sparsity)


def test_what_neurons_can_not_give_is_said(llama):
    attention, neurons = decoder_layers(llama)[0].attention, decoder_layers(llama)[0].feed_forward
    parts = [
        Part(attention, torch.zeros(2), torch.zeros(32)),
        Part(neurons, torch.zeros(48), torch.zeros(48)),
    ]
    # Rows of two query heads, a key and a value, and the columns that read them; three numbers of each of 32 channels.
    assert [part.cost for part in parts] == [2 * (4 * 8 * 32 + 16 * 32), 48 * 3 * 32]
    assert [part.most for part in parts] == [1536, 47 * 96]
    # 47 of the 48 neurons are 4512 of 7680 weights; with one of the two groups of heads it would be 6048.
    with pytest.raises(InputError, match=r"the largest possible is 0\.588, since ul-mm takes the rest from neurons"):
        choose(parts, 7680, 0.7, "ul-mm", 0)
    with pytest.raises(InputError, match=r"the largest possible is 0\.787, since one head group and one neuron"):
        choose(parts, 7680, 0.8, "ul-mm", 2)


def test_a_model_without_feed_forward_layers_is_told_what_was_looked_for(windows):
    from transformers import AutoConfig

    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    with pytest.raises(InputError, match=r"can't be found: .*gate_proj and up_proj.*mixer\.in_proj"):
        FLAP().shrink(mamba, windows)


def test_the_command_on_the_users_own_model_and_text(tmp_path, stored, capsys):
    out = tmp_path / "run"
    given_inputs = ["--model", str(stored / "model"), "--data", str(stored / "text.txt"), "--window-length", "16"]
    more = ["--windows", "8", "--evaluate", "4", "--problems", "0", "--sparsity", "0.3", "--out", str(out), "--json"]
    assert main(["run", "flap", *given_inputs, *more, "--structure", "ul-um"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["removed"] == pytest.approx(0.3, abs=0.02)
    assert found["from_pretrained"]
    before, after = found["table"]
    assert after["parameters"] < before["parameters"]
    assert AutoModelForCausalLM.from_pretrained(out / "model").config.intermediate_size < 48


def test_a_text_shorter_than_a_window_is_told_so(tmp_path, stored, capsys):
    (tmp_path / "short.txt").write_text("w1 w2 w3 w4 w5", encoding="utf-8")
    given_inputs = ["--model", str(stored / "model"), "--data", str(tmp_path / "short.txt"), "--problems", "0"]
    assert main(["run", "flap", *given_inputs, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "the calibration text has" in said
    assert "a window 256" in said
