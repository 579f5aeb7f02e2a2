"""Neuron Adjust and Key Space Detection: the card's numbers, the invariants, and hooks that every path obeys."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tests.forget.conftest import tokenizer_of
from tests.forget.test_models import gpt2, llama, sequences
from torch import Tensor, nn
from torch.distributions import Normal
from transformers import AutoModelForCausalLM

from thrifty.core.errors import InputError
from thrifty.forget.interventions import (
    FILE,
    attach,
    attached,
    detach,
    detached,
    intervened,
    load_unlearned,
    save_unlearned,
)
from thrifty.forget.key_space import KeySpaceDetector, farthest, fit_key_space, inside, key_box, scale_for
from thrifty.forget.neuron_adjust import NeuronAdjust, adjust, fit_neuron_adjust, log_density, top_percent
from thrifty.forget.neurons import Moments, keys_at, last_probed, moments, probed
from thrifty.forget.selective_pruning import SelectivePruning, importance
from thrifty.forget.skill_unlearning import REFUSAL, SkillUnlearning, answers
from thrifty.lm.backbone import backbone
from thrifty.lm.feed_forward import feed_forwards
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample
from thrifty.lm.sequences import from_rows

MAKES = [llama, gpt2]
FORGET, RETAIN = sequences(16, seed=0), sequences(16, seed=1)


def ending(make: Any) -> Any:
    model = make()
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    return model


def four(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


# ---- Neuron Adjust: the card's numbers


def test_worked_example_of_the_adjustment() -> None:
    # mu_f=2, s_f=0.5, mu_r=0, s_r=1, x=1.5: p_r=0.129518, p_f=0.483941, changed from U=0.211127 on.
    x, statistics = torch.tensor([1.5]), four(2, 0.5, 0, 1)
    torch.testing.assert_close(log_density(x, *statistics[2:]).exp(), torch.tensor([0.129518]), atol=1e-6, rtol=0)
    torch.testing.assert_close(log_density(x, *statistics[:2]).exp(), torch.tensor([0.483941]), atol=1e-6, rtol=0)
    for uniform, expected in ((0.2111, 1.5), (0.2112, 1.0), (0.99, 1.0), (0.0, 1.5)):
        assert adjust(x, *statistics, torch.tensor([uniform])).item() == pytest.approx(expected)


def test_what_looks_like_the_other_skills_is_left() -> None:
    x = torch.tensor([0.5])  # p_r = 0.352, p_f = 0.009
    assert adjust(x, *four(2, 0.5, 0, 1), torch.tensor([0.999999])).item() == 0.5


def test_where_both_densities_underflow_they_are_still_compared() -> None:
    # At 60 both are 0 in float32; the wider one is far more likely.
    x, late = torch.tensor([60.0]), torch.tensor([0.5])
    assert Normal(2.0, 0.5).log_prob(x).exp().item() == Normal(0.0, 1.0).log_prob(x).exp().item() == 0
    assert adjust(x, *four(2, 0.5, 0, 1), late).item() == 60
    assert adjust(x, *four(0, 1, 2, 0.5), late).item() == pytest.approx(2 - 60 * 0.5)


normals = st.tuples(st.floats(-3, 3), st.floats(0.1, 3))


@given(st.floats(-6, 6), normals, normals, st.floats(0, 0.9999))
def test_the_mirror_keeps_the_distance_in_deviations(x: float, f: Any, r: Any, uniform: float) -> None:
    value = torch.tensor([x])
    moved = adjust(value, *four(*f, *r), torch.tensor([uniform]))
    if torch.equal(moved, value):
        return
    assert Normal(*f).log_prob(value).item() >= Normal(*r).log_prob(value).item() - 1e-4
    assert (moved.item() - r[0]) / r[1] == pytest.approx(-(x - f[0]) / f[1], abs=1e-3)


def test_the_share_of_changed_values_is_the_probability_of_the_skill() -> None:
    draws = torch.rand(40_000, 1, generator=torch.Generator().manual_seed(0))
    moved = adjust(torch.full_like(draws, 1.5), *four(2, 0.5, 0, 1), draws)
    assert (moved == 1.0).float().mean().item() == pytest.approx(1 - 0.211127, abs=0.01)


@pytest.mark.parametrize(("percent", "taken"), [(0.5, 1), (10, 1), (20, 2), (25, 3), (100, 10)])
def test_top_percent_keeps_what_reaches_the_threshold(percent: float, taken: int) -> None:
    # Ten scores: the threshold stands at place int(10 * (1 - q / 100)) of the ascending list.
    scores = torch.tensor([3.0, -9, 1, 0, 8, 2, 7, 5, 6, 4])
    assert top_percent(scores, percent).sum() == taken
    assert (
        scores[top_percent(scores, percent)].min() >= scores[~top_percent(scores, percent)].max() if taken < 10 else 1
    )


def test_selection_is_by_the_signed_difference_over_all_layers() -> None:
    def one(mean: list[float]) -> Moments:
        found = Moments(3, torch.device("cpu"))
        found.add(torch.tensor([mean, mean]) + torch.tensor([[-1.0], [1.0]]))
        return found

    skill, others = [one([5, 0, 0]), one([0, -9, 3])], [one([0, 0, 0]), one([0, 0, 0])]
    for absolute, expected in ((False, {(0, 0), (1, 2)}), (True, {(0, 0), (1, 1)})):
        layers = fit_neuron_adjust(skill, others, percent=30, absolute=absolute).layers
        assert {(layer.layer, int(number)) for layer in layers for number in layer.selected} == expected


def test_the_released_form_takes_variance_and_mean_for_deviations() -> None:
    found = Moments(1, torch.device("cpu")), Moments(1, torch.device("cpu"))
    found[0].add(torch.tensor([[1.0], [5.0]]))  # mean 3, deviation 2
    found[1].add(torch.tensor([[-3.0], [3.0]]))  # mean 0, variance 9
    assert fit_neuron_adjust([found[0]], [found[1]], percent=100).layers[0].statistics[:, 0].tolist() == [3, 2, 0, 3]
    released = fit_neuron_adjust([found[0]], [found[1]], percent=100, released=True)
    assert released.layers[0].statistics[:, 0].tolist() == [3, 3, 0, 9]
    assert released.uniform(torch.zeros(2, 3, 4)).shape == (1, 1, 1)
    negative = Moments(1, torch.device("cpu"))
    negative.add(torch.tensor([[-1.0], [-5.0]]))
    assert fit_neuron_adjust([negative], [found[1]], percent=100, released=True).selected == 0


# ---- Key Space Detection: the card's numbers


def test_worked_example_of_the_box() -> None:
    keys = torch.tensor([[1.0, 2.0], [3.0, 2.5], [2.0, 1.5]])
    mean, std = key_box(keys)
    assert (mean.tolist(), std.tolist()) == ([2, 2], [1, 0.5])
    assert farthest(keys, mean, std).max() == 1
    assert inside(torch.tensor([[2.9, 1.6], [2.9, 1.4]]), mean, std, 1.0).tolist() == [True, False]


def test_a_coordinate_that_never_varies_does_not_widen_the_box() -> None:
    mean, std = key_box(torch.tensor([[1.0, 7.0], [3.0, 7.0], [2.0, 7.0]]))
    assert std[1] > 0
    assert farthest(torch.tensor([3.0, 7.0]), mean, std) == 1
    assert not inside(torch.tensor([2.0, 7.1]), mean, std, 1.0)


@settings(max_examples=25)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 10_000))
def test_at_scale_one_the_box_just_holds_every_probe(texts: int, neurons: int, seed: int) -> None:
    keys = torch.randn(texts, neurons, generator=torch.Generator().manual_seed(seed)).double()
    mean, std = key_box(keys)
    widest = float(farthest(keys, mean, std).max())
    assert inside(keys, mean, std, widest * (1 + 1e-9)).all()
    assert not inside(keys, mean, std, widest * (1 - 1e-9)).all()


def test_the_scale_is_a_quantile_of_held_out_ratios() -> None:
    ratios = torch.tensor([0.9, 0.5, 0.7, 0.6])
    assert scale_for(ratios, 0.6) == pytest.approx(0.7)  # the ceil(5 * 0.6) = 3rd
    assert scale_for(ratios, 0.95) == pytest.approx(0.9)


# ---- statistics


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("probe", ["text", "prompt"])
def test_streamed_statistics_are_those_of_all_tokens_at_once(make: Any, probe: Any) -> None:
    model = make()
    layer = feed_forwards(model)[1]
    values: list[list[Tensor]] = [[], []]
    hooks = [
        layer.before.register_forward_hook(lambda _, __, out: values[0].append(out[0])),
        layer.output.register_forward_pre_hook(lambda _, given: values[1].append(given[0][0])),
    ]
    for row in range(len(FORGET)):  # one by one, without padding
        model(FORGET.input_ids[row][probed(FORGET, probe)[row]][None])
    for hook in hooks:
        hook.remove()
    for found, expected in zip(moments(model, FORGET, probe, batch_size=5), map(torch.cat, values), strict=True):
        torch.testing.assert_close(found[1].mean, expected.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[1].std, expected.std(0, correction=0), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(found[1].magnitude, expected.abs().mean(0), atol=1e-5, rtol=1e-4)
        assert found[1].tokens == len(expected)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    found, x = Moments(1, torch.device("cpu")), torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) + 1e4
    for part in x.split(7):
        found.add(part)
    torch.testing.assert_close(found.std.double(), x.double().std(0, correction=0), rtol=0.01, atol=0)


def test_the_probed_key_is_where_the_answer_begins() -> None:
    rows = from_rows([([5, 6, 7, 8], [False, False, True, True]), ([5, 6, 7], [False, True, True])])
    assert last_probed(rows, "prompt").tolist() == [[False, True, False, False], [True, False, False, False]]
    assert last_probed(rows, "text").tolist() == [[False, False, True, False], [False, True, False, False]]
    model = llama()
    (_, keys) = next(iter(keys_at(model, rows, -1, lambda batch: last_probed(batch, "prompt"))))
    states = model.model(rows.input_ids[:1, :2], output_hidden_states=True)
    assert keys.shape == (2, 24)
    assert states.last_hidden_state.shape == (1, 2, 16)


# ---- feed-forward layers by structure


def families() -> dict[str, Any]:
    import transformers as t

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 24}
    wide = small | {"intermediate_size": 40, "num_key_value_heads": 1}
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    return {
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(**wide), "gate_proj", "down_proj", 40),
        "qwen": (t.Qwen2ForCausalLM, t.Qwen2Config(**wide), "gate_proj", "down_proj", 40),
        "gemma": (t.Gemma2ForCausalLM, t.Gemma2Config(**wide, head_dim=8), "gate_proj", "down_proj", 40),
        "phi": (t.Phi3ForCausalLM, t.Phi3Config(**wide, **ends), "gate_up_proj", "down_proj", 40),
        "square": (t.LlamaForCausalLM, t.LlamaConfig(**wide | {"intermediate_size": 16}), "gate_proj", "down_proj", 16),
        "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2), "c_fc", "c_proj", 64),
        "neox": (
            t.GPTNeoXForCausalLM,
            t.GPTNeoXConfig(**small, intermediate_size=40),
            "dense_h_to_4h",
            "dense_4h_to_h",
            40,
        ),
        "opt": (
            t.OPTForCausalLM,
            t.OPTConfig(**small, ffn_dim=40, word_embed_proj_dim=16),
            "fc1",
            "fc2",
            40,
        ),
    }


@pytest.mark.parametrize("family", list(families()))
def test_every_family_is_adjusted_and_abstains(family: str) -> None:
    kind, config, before, output, neurons = families()[family]
    torch.manual_seed(0)
    model = kind(config).eval()
    found = feed_forwards(model)
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    assert [(names[id(f.before)], names[id(f.output)], f.neurons) for f in found] == [(before, output, neurons)] * 2
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    ids = FORGET.input_ids[:4, :4]
    plain = model(ids).logits
    adjusted = SkillUnlearning(abstain=False, percent=40).forget(model, FORGET, RETAIN)
    assert not torch.equal(adjusted(ids).logits, plain)
    silent = SkillUnlearning(scale=1e12).forget(model, FORGET)  # neurons that never fired count too
    assert silent(ids).logits.argmax(-1).eq(1).all()
    assert torch.equal(model(ids).logits, plain)


def test_a_model_whose_feed_forward_layers_are_hidden_is_told_what_was_looked_for() -> None:
    model = llama()
    for layer in model.model.layers:
        layer.mlp.up_proj = nn.Identity()
        layer.mlp.gate_proj = nn.Linear(16, 7)
    with pytest.raises(
        InputError, match=r"layer 0 of LlamaForCausalLM can't be found.*gate_proj.*was looked for.*7x16"
    ):
        SkillUnlearning().forget(model, FORGET)


def test_a_mixture_of_experts_is_refused() -> None:
    model = llama()
    model.model.layers[0].mlp = nn.ModuleList([copy.deepcopy(model.model.layers[0].mlp) for _ in range(2)])
    with pytest.raises(InputError, match="mixtures of experts are not supported"):
        feed_forwards(model)


# ---- the hooks on a model


@pytest.mark.parametrize("make", MAKES)
def test_the_model_given_stays_as_it_is_and_hooks_come_off(make: Any) -> None:
    model = ending(make)
    before, expected = copy.deepcopy(model.state_dict()), token_logps(model, FORGET)
    for method in (SkillUnlearning(abstain=False, percent=50), SkillUnlearning(scale=1e6)):
        changed = method.forget(model, FORGET, RETAIN)
        assert type(changed) is type(model)
        assert attached(model) is None
        assert not torch.allclose(token_logps(changed, FORGET), expected)
        with detached(changed):
            torch.testing.assert_close(token_logps(changed, FORGET), expected)
        assert not torch.allclose(token_logps(changed, FORGET), expected)
        again = copy.deepcopy(changed)
        assert type(detach(changed)) is type(attached(again))
        torch.testing.assert_close(token_logps(changed, FORGET), expected)
        assert not torch.allclose(token_logps(again, FORGET), expected)
        assert detach(changed) is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_in_place_puts_the_hooks_on_the_model_itself_once() -> None:
    model = ending(llama)
    method = SkillUnlearning(scale=1.0)
    assert method.forget(model, FORGET, inplace=True) is model
    with pytest.raises(InputError, match="has an intervention already"):
        method.forget(model, FORGET)
    with pytest.raises(InputError, match="has an intervention already"):
        attach(model, detach(model) and attached(method.forget(model, FORGET, inplace=True)))


@pytest.mark.parametrize("make", MAKES)
def test_the_log_probabilities_and_samples_obey_the_detector(make: Any) -> None:
    model = ending(make)
    detector = fit_key_space(model, FORGET, scale=0.99)  # at 1, one probe lies on the border
    assert backbone(model) is not None
    inside_box = torch.zeros_like(FORGET.input_ids, dtype=torch.bool)
    for row in range(len(FORGET)):  # by the model itself, without padding
        seen: list[Tensor] = []
        output = feed_forwards(model)[-1].output
        hook = output.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        model(FORGET.input_ids[row : row + 1, : int(FORGET.lengths[row])])
        hook.remove()
        inside_box[row, : seen[0].shape[1]] = detector.contains(seen[0])[0]
    plain = token_logps(model, FORGET)
    with intervened(model, detector):
        assert backbone(model).packed  # the fast ways stay, by the model's own layers
        assert not backbone(model).lean or not backbone(model).lean.usable()
        after = token_logps(model, FORGET)
        spoken = sample(model, None, [[7, 9, 3], [4, 4], [5, 6, 7, 8]], 2, max_new_tokens=6)
        flags = detector.flags(model, spoken)
    mask = FORGET.response_mask & FORGET.attention_mask
    ahead = torch.cat([torch.zeros_like(inside_box[:, :1]), inside_box[:, :-1]], 1)
    assert (ahead & mask).any()
    assert (~ahead & mask).any()
    torch.testing.assert_close(after[~ahead & mask], plain[~ahead & mask], rtol=1e-4, atol=1e-4)
    ended = torch.where(FORGET.input_ids == 1, 0.0, -100.0)
    torch.testing.assert_close(after[ahead & mask], ended[ahead & mask], atol=1e-3, rtol=0)
    # Where the detector was set off, the row has ended there; elsewhere it says what the plain model says.
    free = sample(model, None, [[7, 9, 3], [4, 4], [5, 6, 7, 8]], 2, max_new_tokens=6)
    for row in range(len(spoken)):
        ids = spoken.input_ids[row][spoken.response_mask[row]]
        if flags[row]:
            assert ids[-1] == 1
        else:
            assert torch.equal(ids, free.input_ids[row][free.response_mask[row]])


def test_an_abstaining_model_ends_at_once_in_generate_and_in_sample() -> None:
    model = SkillUnlearning(scale=1e6).forget(ending(llama), FORGET)
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, pad_token_id=0).tolist() == [[5, 6, 7, 1]]
    padded, mask = torch.tensor([[0, 0, 5], [5, 6, 7]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    assert model.generate(padded, attention_mask=mask, max_new_tokens=3, pad_token_id=0)[:, 3:].tolist() == [[1], [1]]
    spoken = sample(model, None, [[5, 6, 7], [8, 9]], max_new_tokens=4)
    assert spoken.response_lengths.tolist() == [1, 1]
    assert attached(model).flags(model, spoken).tolist() == [True, True]
    assert attached(model) is not None, "asking for the flags leaves the detector where it was"


def test_samples_obey_the_adjusted_neurons() -> None:
    """Of a map whose neurons are all moved to one value, nothing of the input is left."""
    model = ending(llama)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= 1e4
    fitted = fit_neuron_adjust(*(moments(model, rows, "text")[0] for rows in (FORGET, RETAIN)), percent=100)
    with torch.no_grad():
        for layer in fitted.layers:  # wide enough to take every value for the skill's, and mapped to 0
            layer.statistics[:] = torch.tensor([0.0, 1e3, 0.0, 1e-15])[:, None]
    cut = copy.deepcopy(model)
    for layer in cut.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
    prompts = [[7, 9, 3], [4, 4], [5, 6, 7, 8]]
    with intervened(model, fitted), torch.no_grad():
        torch.testing.assert_close(token_logps(model, FORGET), token_logps(cut, FORGET), atol=1e-4, rtol=1e-4)
        spoken = [sample(one, None, prompts, max_new_tokens=8, greedy=True).input_ids for one in (model, cut)]
    assert torch.equal(*spoken)
    assert not torch.equal(spoken[0], sample(model, None, prompts, max_new_tokens=8, greedy=True).input_ids)


def test_draws_leave_the_user_s_random_numbers_alone() -> None:
    model = SkillUnlearning(abstain=False, percent=50).forget(llama(), FORGET, RETAIN)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model(FORGET.input_ids[:2])
    assert torch.equal(torch.rand(4), expected)


def test_steering_overwrites_flagged_keys_only() -> None:
    model = ending(llama)
    method = SkillUnlearning(scale=1.0, response="steer")
    assert method.needs == ("forget_set", "refusal_set")
    steered = method.forget(model, FORGET, refusal_set=RETAIN)
    detector = attached(steered)
    assert isinstance(detector, KeySpaceDetector)
    assert detector.steer is not None
    output, ids = steered.model.layers[-1].mlp.down_proj, FORGET.input_ids[:1, :8]
    seen: list[Tensor] = []
    output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # behind the detector's
    model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for one in (steered, model):
        one(ids)
    flagged = detector.contains(seen[1])
    assert flagged.any()
    assert not flagged.all()
    torch.testing.assert_close(seen[0][flagged], detector.steer.expand(int(flagged.sum()), -1))
    torch.testing.assert_close(seen[0][~flagged], seen[1][~flagged])


def test_a_detector_that_only_tells_changes_nothing() -> None:
    model = ending(llama)
    silent = SkillUnlearning(scale=1e6, response="none").forget(model, FORGET)
    torch.testing.assert_close(token_logps(silent, FORGET), token_logps(model, FORGET))
    assert attached(silent).flags(silent, FORGET).all()


class Letters:
    eos_token_id, pad_token_id, bos_token_id, chat_template = 1, 0, None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 + ord(letter) % 20 for letter in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def test_a_refusal_takes_the_place_of_a_flagged_answer() -> None:
    model = ending(llama)
    said, flags = answers(model, Letters(), ["a", "bc"], max_new_tokens=3)
    assert not flags.any()
    assert REFUSAL not in said
    attach(model, fit_key_space(model, FORGET, scale=1e6))
    said, flags = answers(model, Letters(), ["a", "bc"], refusal="No.", max_new_tokens=3)
    assert said == ["No.", "No."]
    assert flags.all()


# ---- saved and loaded


def saved(tmp_path: Path, method: SkillUnlearning, words: Any) -> Any:
    model = ending(llama)
    model.resize_token_embeddings(len(words))
    changed = method.forget(model, FORGET, RETAIN)
    save_unlearned(changed, tmp_path / "model", words)
    return model, changed


@pytest.fixture
def words() -> Any:
    return tokenizer_of(["[PAD]", "[EOS]", *map(str, range(2, 24))])


@pytest.mark.parametrize("method", [SkillUnlearning(abstain=False, percent=50), SkillUnlearning(scale=1.2)])
def test_hooks_are_saved_beside_the_weights_and_loaded_again(tmp_path: Path, method: Any, words: Any) -> None:
    model, changed = saved(tmp_path, method, words)
    twin = attach(copy.deepcopy(model), copy.deepcopy(attached(changed)))
    again, tokenizer = load_unlearned(tmp_path / "model")
    assert tokenizer.eos_token_id == 1
    assert type(attached(again)) is type(attached(changed))
    torch.testing.assert_close(token_logps(again, FORGET), token_logps(twin, FORGET))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(token_logps(plain, FORGET), token_logps(model, FORGET))
    assert not torch.allclose(token_logps(plain, FORGET), token_logps(again, FORGET))


def test_a_folder_without_an_intervention_is_named(tmp_path: Path, words: Any) -> None:
    model = ending(llama)
    save_unlearned(model, tmp_path / "model", words)
    with pytest.raises(InputError, match=f"holds no {FILE}"):
        load_unlearned(tmp_path / "model")


def test_an_intervention_of_another_model_is_refused(tmp_path: Path, words: Any) -> None:
    saved(tmp_path, SkillUnlearning(scale=1.0), words)
    other = ending(gpt2)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="made for another model: layer 1 has 64 neurons, not 24"):
        load_unlearned(tmp_path / "model")
    with pytest.raises(InputError, match="made for another model"):
        attach(other, attached(SkillUnlearning(abstain=False).forget(llama(), FORGET, RETAIN)))


def test_a_damaged_file_is_named(tmp_path: Path, words: Any) -> None:
    saved(tmp_path, SkillUnlearning(scale=1.0), words)
    (tmp_path / "model" / FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load_unlearned(tmp_path / "model")


# ---- selective pruning


@pytest.mark.parametrize("make", MAKES)
def test_selective_pruning_is_folded_into_the_weights(tmp_path: Path, make: Any) -> None:
    model = make()
    pruned = SelectivePruning(percent=10).forget(model, FORGET, RETAIN)
    skill, others = (moments(model, rows, "text")[1] for rows in (FORGET, RETAIN))
    scores = torch.stack([importance(a.magnitude, b.magnitude) for a, b in zip(skill, others, strict=True)])
    chosen = scores >= scores.flatten().sort().values[int(scores.numel() * 0.9)]
    handles = [
        layer.output.register_forward_pre_hook(lambda _, given, mask=mask: given[0] * ~mask)
        for layer, mask in zip(feed_forwards(model), chosen, strict=True)
    ]
    torch.testing.assert_close(pruned(FORGET.input_ids).logits, model(FORGET.input_ids).logits)
    for handle in handles:
        handle.remove()
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(FORGET.input_ids).logits, pruned(FORGET.input_ids).logits)


# ---- wrong input


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scale": 0.0}, "scale must be above 0"),
        ({"recall": 1.5}, "recall must be above 0 and at most 1"),
        ({"percent": 0.0}, "percent must be above 0"),
        ({"probes": 0}, "probes must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SkillUnlearning(**wrong)


def test_wrong_sets_and_models_are_told_in_one_line() -> None:
    model = ending(llama)
    for call, said in (
        (lambda: SkillUnlearning().forget(model, FORGET.select([0, 1, 2])), "has 3 texts: at least 8"),
        (lambda: SkillUnlearning(scale=1.0).forget(model, FORGET.select([0])), "has 1 text to probe"),
        (lambda: SkillUnlearning(scale=1.0).forget(model, FORGET.select([0, 0])), "the same: give different texts"),
        (lambda: SkillUnlearning(layer=5).forget(model, FORGET), "layer is 5, but the model's layers are 0 to 1"),
        (lambda: SkillUnlearning(abstain=False).forget(model, FORGET), "give a retain set"),
        (lambda: SkillUnlearning(response="steer").forget(model, FORGET), "give some"),
        (lambda: SkillUnlearning().forget(model, (torch.zeros(9, 2), torch.zeros(9).long())), "holds no texts"),
        (lambda: SkillUnlearning().forget(model, []), "the forget set is empty"),
        (lambda: SkillUnlearning().forget(nn.Linear(2, 2), FORGET), "causal language model"),
    ):
        with pytest.raises(InputError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    mute = from_rows([([3, 4], [False, False])] * 9)
    with pytest.raises(InputError, match="of the forget set has no response"):
        SkillUnlearning().forget(model, mute)
    endless = llama()
    endless.config.eos_token_id = endless.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="names no token that ends its turn"):
        SkillUnlearning().forget(endless, FORGET)


def test_the_sets_that_are_needed_follow_from_the_settings() -> None:
    assert SkillUnlearning().needs == ("forget_set",)
    assert SkillUnlearning(abstain=False).needs == ("forget_set", "retain_set")


def test_a_box_that_leaves_its_own_texts_outside_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    fit_key_space(ending(llama), FORGET, scale=0.01)
    assert "it recognises 0% of the 16 texts it was made from" in caplog.text


def test_without_a_scale_the_held_out_texts_are_recognised() -> None:
    model = ending(llama)
    detector = SkillUnlearning(recall=1.0).fit(model, FORGET)
    assert isinstance(detector, KeySpaceDetector)
    assert not isinstance(detector, NeuronAdjust)
    found = torch.cat([keys for _, keys in keys_at(model, FORGET, -1, lambda rows: last_probed(rows, "prompt"))])
    ratios = farthest(found, detector.mean, detector.std) / detector.widest
    assert (ratios <= max(1.0, detector.scale) + 1e-5).all()
    assert math.isclose(float(ratios[(ratios - detector.scale).abs().argmin()]), detector.scale, rel_tol=1e-5)


# ---- the command


def test_the_command_runs_on_the_user_s_model_and_texts(tmp_path: Path, words: Any) -> None:
    from thrifty.cli import main

    model = ending(llama)
    words.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    rows = [{"prompt": str(i % 20 + 2), "completion": str((3 * i) % 20 + 2)} for i in range(24)]
    for name, part in (("all", rows), ("skill", rows[:10])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    common = ["run", "skill-unlearning", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "all.jsonl")]
    common += ["--forget", str(tmp_path / "skill.jsonl"), "--seed", "1"]
    assert main([*common, "--out", str(tmp_path / "out"), "--scale", "50"]) == 0
    again, _ = load_unlearned(tmp_path / "out" / "model")
    assert isinstance(attached(again), KeySpaceDetector)
    assert attached(again).scale == 50
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["table"][1]["forget_nll"] > summary["table"][0]["forget_nll"]
    assert summary["changed"] == 0
    assert main([*common, "--out", str(tmp_path / "na"), "--no-abstain", "--percent", "30"]) == 0
    assert isinstance(attached(load_unlearned(tmp_path / "na" / "model")[0]), NeuronAdjust)


def test_the_command_names_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from thrifty.cli import main

    assert main(["run", "skill-unlearning", "--recall", "2", "--out", str(tmp_path / "out")]) == 2
    assert "recall must be above 0 and at most 1" in capsys.readouterr().err
    assert main(["run", "skill-unlearning", "--forget-class", "3", "--out", str(tmp_path / "out")]) == 2
    assert "language models forget records" in capsys.readouterr().err
