from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.shrink.base import shrink_with
from thrifty.shrink.baselines import Magnitude, SparseGPT, Wanda
from thrifty.shrink.decoder import decoder_layers, matrices, matrix
from thrifty.shrink.dsnot import DSnoT, expected_error, regrowing_score
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.masks import block_mask, row_mask, wanda_score
from thrifty.shrink.measure import removed
from thrifty.shrink.sparsegpt import inverse_root, sparsegpt
from thrifty.shrink.sparsify import sparsify
from thrifty.shrink.swapping import initial_error, refine, refine_blocks

X = torch.tensor([[1.0, 2, 0, 1, 3, 1], [3, 0, 1, 2, 1, 2]])
W = torch.tensor([[0.5, -0.4, 0.9, 0.6, -0.3, 0.5]])


def seen_of(x):
    seen = InputStatistics()
    seen.add(x)
    return seen


def pruned(mask):
    return set(mask[0].nonzero()[:, 0].tolist())


def swapped(cycles, **more):
    """The worked example, with the threshold as it stands."""
    seen = seen_of(X)
    contribution, cost = W * seen.sum, wanda_score(W, seen.norm)
    mask = row_mask(cost, 0.5)
    worth = regrowing_score(contribution, seen.variance_within)
    return refine(contribution, worth, cost, mask, cycles, 0.1, **more)


def test_worked_example():
    seen = seen_of(X)
    torch.testing.assert_close(
        wanda_score(W, seen.norm), torch.tensor([[1.58114, 0.8, 0.9, 1.34164, 0.94868, 1.11803]]), atol=1e-5, rtol=0
    )
    contribution = W * seen.sum
    torch.testing.assert_close(contribution, torch.tensor([[2, -0.8, 0.9, 1.8, -1.2, 1.5]]))
    torch.testing.assert_close(seen.variance_within, torch.tensor([1, 1, 0.25, 0.25, 1, 0.25]))
    mask = row_mask(wanda_score(W, seen.norm), 0.5)
    assert pruned(mask) == {1, 2, 4}
    torch.testing.assert_close(initial_error(contribution, mask), torch.tensor([-1.1]))
    once = swapped(1)
    assert pruned(once) == {1, 2, 5}
    torch.testing.assert_close(initial_error(contribution, once), torch.tensor([1.6]))
    twice = swapped(2, wrong_sign=True)
    assert pruned(twice) == {0, 1, 5}
    torch.testing.assert_close(initial_error(contribution, twice), torch.tensor([2.7]))
    # No kept weight is left that contributes negatively, and a swap may not turn the error's sign.
    assert pruned(swapped(2)) == {1, 2, 5}
    assert pruned(swapped(2, accept="same-sign")) == {1, 2, 4}
    assert pruned(swapped(2, accept="falling")) == {1, 2, 4}


def test_the_same_through_the_method():
    method = DSnoT(max_cycles=2, released=True, threshold=0.1 * 2048 / 2)
    assert pruned(method.mask(W, seen_of(X))) == {0, 1, 5}


@given(st.integers(0, 10_000), st.sampled_from(["any", "same-sign", "falling"]), st.booleans(), st.integers(1, 60))
@settings(max_examples=40)
def test_every_row_keeps_its_number_of_zeros(seed, accept, wrong_sign, cycles):
    draw = torch.Generator().manual_seed(seed)
    contribution, worth, cost = (torch.randn(9, 16, generator=draw) for _ in range(3))
    contribution[:, :3] *= torch.randint(2, (9, 3), generator=draw)  # some contribute nothing
    mask = row_mask(cost, 0.5)
    worth = contribution * worth.abs()
    found = refine(contribution, worth, cost.abs(), mask, cycles, 0.01, accept, wrong_sign=wrong_sign)
    assert (found.sum(1) == mask.sum(1)).all()
    before, after = (initial_error(contribution, one) for one in (mask, found))
    if accept == "falling":
        assert (after.abs() <= before.abs() + 1e-6).all()
    if accept == "same-sign":
        assert ((after.sign() == before.sign()) | (after == before)).all()


@given(st.integers(0, 10_000), st.sampled_from(["same-sign", "falling"]))
@settings(max_examples=25)
def test_every_block_keeps_its_number_of_zeros(seed, accept):
    draw = torch.Generator().manual_seed(seed)
    contribution, score = torch.randn(7, 16, generator=draw), torch.rand(7, 16, generator=draw)
    mask = block_mask(score, (2, 4))
    found = refine_blocks(contribution, contribution, score, mask, (2, 4), 50, 0.01, accept)
    assert (found.unflatten(1, (-1, 4)).sum(2) == 2).all()
    before, after = (initial_error(contribution, one) for one in (mask, found))
    if accept == "falling":
        assert (after.abs() <= before.abs() + 1e-6).all()
    else:
        assert (after.sign() == before.sign()).all()


def one_row_by_hand(contribution, worth, cost, mask, cycles, threshold):
    """A row's swaps with plain loops, written from the paper's words."""
    pruned = {j for j, gone in enumerate(mask) if gone}
    kept_at_first, come_back = set(range(len(mask))) - pruned, set()
    error = sum(contribution[j] for j in pruned)
    may_go = set(kept_at_first)
    for _ in range(cycles):
        sign = 1 if error > 0 else -1
        grow = [j for j in pruned - come_back if j not in kept_at_first and sign * worth[j] > 0]
        prune = [j for j in may_go if sign * contribution[j] < 0]
        if not grow or not prune or abs(error) <= threshold:
            break
        grown = max(grow, key=lambda j: sign * worth[j])
        gone = min(prune, key=lambda j: cost[j])
        error += contribution[gone] - contribution[grown]
        pruned = pruned - {grown} | {gone}
        may_go.discard(gone)
        come_back.add(grown)
    return pruned


@pytest.mark.parametrize("seed", range(6))
def test_all_rows_at_once_are_the_rows_one_by_one(seed):
    draw = torch.Generator().manual_seed(seed)
    contribution, cost = torch.randn(12, 20, generator=draw), torch.rand(12, 20, generator=draw)
    worth = contribution / torch.rand(20, generator=draw)
    mask = row_mask(cost, 0.6)
    found = refine(contribution, worth, cost, mask, 7, 0.2)
    for row in range(12):
        by_hand = one_row_by_hand(*(one[row].tolist() for one in (contribution, worth, cost, mask)), 7, 0.2)
        assert set(found[row].nonzero()[:, 0].tolist()) == by_hand


def one_row_of_blocks_by_hand(contribution, score, mask, cycles, threshold):
    """The same with 2:4, where what goes is in the block of what comes back, and the error keeps its sign."""
    pruned = {j for j, gone in enumerate(mask) if gone}
    may_come, may_go = set(pruned), set(range(len(mask))) - pruned
    error = sum(contribution[j] for j in pruned)
    for _ in range(cycles):
        sign = 1 if error > 0 else -1
        grow = [j for j in may_come if sign * contribution[j] > 0]
        if not grow or abs(error) <= threshold:
            break
        grown = max(grow, key=lambda j: sign * contribution[j])
        prune = [j for j in may_go if j // 4 == grown // 4]
        if not prune:
            break
        gone = min(prune, key=lambda j: score[j])
        after = error + contribution[gone] - contribution[grown]
        if sign * after <= 0:
            break
        error = after
        may_come.discard(grown)
        may_go.discard(gone)
        pruned = pruned - {grown} | {gone}
    return pruned


def test_all_rows_of_blocks_at_once_are_the_rows_one_by_one():
    draw = torch.Generator().manual_seed(0)
    contribution, score = torch.randn(60, 16, generator=draw), torch.rand(60, 16, generator=draw)
    mask = block_mask(score, (2, 4))
    found = refine_blocks(contribution, contribution, score, mask, (2, 4), 50, 0.01)
    for row in range(60):
        by_hand = one_row_of_blocks_by_hand(*(one[row].tolist() for one in (contribution, score, mask)), 50, 0.01)
        assert set(found[row].nonzero()[:, 0].tolist()) == by_hand
    swaps = (found & ~mask).sum(1)
    assert (swaps > 1).any()
    assert (swaps == 0).any()


def test_a_row_within_the_threshold_stays():
    seen = seen_of(X)
    mask = DSnoT(threshold=1e9).mask(W, seen)
    assert torch.equal(mask, DSnoT(max_cycles=0).mask(W, seen))


def test_a_channel_that_never_varies_does_not_count_as_infinite():
    worth = regrowing_score(torch.tensor([[1.0, 0.0]]), torch.zeros(2))
    assert torch.isfinite(worth).all()


def test_masks():
    score = torch.tensor([[4.0, 1, 3, 2, 8, 7, 6, 5]])
    assert pruned(row_mask(score, 0.25)) == {1, 3}
    assert pruned(block_mask(score, (2, 4))) == {1, 3, 6, 7}
    with pytest.raises(InputError, match="blocks of 3 do not divide the 8 inputs"):
        block_mask(score, (1, 3))
    for pattern in ("2", "4:2", "0:4", "a:b"):
        with pytest.raises(InputError, match=r"is not n:m"):
            DSnoT(pattern=pattern)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "bloom"])
def test_families_at_the_sparsity_asked_for(family, decoders, windows):
    model = decoders[family]
    sparse = DSnoT(sparsity=0.5).shrink(model, windows)
    assert all(((one == 0).sum(1) == one.shape[1] // 2).all() for one in matrices(sparse))
    assert removed(model, model) == pytest.approx(0, abs=1e-3)
    kept = zip(matrices(sparse), matrices(model), strict=True)
    assert all(torch.equal(a[a != 0], b[a != 0]) for a, b in kept)


def test_refining_lowers_the_expected_error_of_every_map(llama, windows):
    # Only swaps that lower it, so that it is certain.
    errors = {"initial": 0.0, "refined": 0.0}

    def decide(layer, name, weight, seen):
        initial, refined = (DSnoT(accept="falling", max_cycles=n).mask(weight, seen) for n in (0, 50))
        errors["initial"] += float(expected_error(weight, initial, seen).abs().sum())
        errors["refined"] += float(expected_error(weight, refined, seen).abs().sum())
        return weight.masked_fill(initial, 0)

    sparsify(llama, windows, decide)
    assert errors["refined"] < 0.5 * errors["initial"]


@pytest.mark.parametrize("maps", ["attention", "mlp"])
def test_maps_that_are_not_refined_keep_the_initial_mask(maps, llama, windows):
    first = decoder_layers(DSnoT(maps=maps).shrink(llama, windows))[0]
    initial = decoder_layers(DSnoT(max_cycles=0).shrink(llama, windows))[0]
    same = {
        name: torch.equal(matrix(module) == 0, matrix(initial.maps[name]) == 0) for name, module in first.maps.items()
    }
    refined = [name for name in same if (name in first.attention_maps) == (maps == "attention")]
    assert not all(same[name] for name in refined)
    # What comes before the first refined map sees the same inputs.
    if maps == "mlp":
        assert all(same[name] for name in first.attention_maps)


@pytest.mark.parametrize("initial", ["wanda", "magnitude", "sparsegpt"])
def test_patterns_hold_in_every_block(initial, llama, windows):
    sparse = DSnoT(initial=initial, pattern="2:4").shrink(llama, windows)
    assert all(((one == 0).unflatten(1, (-1, 4)).sum(2) == 2).all() for one in matrices(sparse))


def test_a_pattern_that_does_not_divide_names_the_map(llama, windows):
    with pytest.raises(InputError, match=r"blocks of 5 do not divide the 32 inputs of self_attn\.q_proj in layer 0"):
        DSnoT(pattern="2:5").shrink(llama, windows)


def test_sparsegpt_beats_the_same_mask_without_adjustment():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=draw)
    x, weight = torch.randn(400, 24, generator=draw) @ mixing, torch.randn(10, 24, generator=draw)
    root = inverse_root(x.T @ x)
    damped = x.T @ x + 0.01 * (x.T @ x).diagonal().mean() * torch.eye(24)
    torch.testing.assert_close(root.T @ root @ damped, torch.eye(24), atol=1e-3, rtol=0)
    assert torch.equal(root, root.triu())

    def error(changed):
        return float((x @ (changed - weight).T).square().sum())

    for n_m in (None, (2, 4)):
        found = sparsegpt(weight, root, 0.5, n_m)
        assert int((found == 0).sum()) == 120
        assert error(found) < 0.9 * error(weight.masked_fill(found == 0, 0))
    assert error(found) < error(weight.masked_fill(block_mask(weight.abs(), (2, 4)), 0))


def test_the_last_column_of_sparsegpt_is_the_least_squares_solution():
    # With two columns and the first one pruned, the second takes on what the first explained.
    x = torch.tensor([[1.0, 1], [1, 2], [0, 1]])
    weight = torch.tensor([[0.1, 1.0]])
    found = sparsegpt(weight, inverse_root(x.T @ x, 1e-9), 0.5)
    best = torch.linalg.lstsq(x[:, 1:], x @ weight.T).solution
    torch.testing.assert_close(found, torch.tensor([[0.0, float(best)]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [Magnitude(0.5), Wanda(0.5), SparseGPT(0.5)])
def test_baselines_reach_the_sparsity(method, llama, windows):
    sparse = shrink_with(method, llama, {"windows": windows})
    assert removed(llama, sparse) == pytest.approx(0.5, abs=0.01)
    assert (sparse(windows).logits - llama(windows).logits).abs().max() > 1e-3


def test_the_command_with_a_pattern(tmp_path, stored, capsys):
    given_inputs = ["--model", str(stored / "model"), "--data", str(stored / "text.txt"), "--window-length", "16"]
    more = ["--windows", "4", "--evaluate", "4", "--problems", "0", "--out", str(tmp_path / "run"), "--json"]
    assert main(["run", "dsnot", *given_inputs, *more, "--pattern", "2:4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["removed"] == pytest.approx(0.5, abs=0.01)
    assert found["table"][1]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert main(["run", "dsnot", *given_inputs, "--sparsity", "1.5", "--out", str(tmp_path / "other")]) == 2
    assert "sparsity must lie between 0 and 1, not 1.5" in capsys.readouterr().err
