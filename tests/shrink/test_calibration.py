from __future__ import annotations

import pytest
import torch

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.shrink.calibration import calibrate, windows_of
from thrifty.shrink.decoder import decoder_layers, matrix
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.small_decoder import Bytes, prose
from thrifty.shrink.sparsegpt import inverse_root
from thrifty.shrink.text import held_out, read_texts


def of_the_whole_model(model, windows):
    """The statistics of all maps from plain forward passes."""
    found, handles = {}, []
    for number, layer in enumerate(decoder_layers(model)):
        for name, module in layer.maps.items():
            seen = found[number, name] = InputStatistics()
            handles.append(module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.add(inputs[0])))
    with torch.no_grad():
        model(windows)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "mistral"])
def test_layer_by_layer_the_statistics_are_those_of_the_model(family, decoders, windows):
    model = decoders[family]
    expected, found = of_the_whole_model(model, windows), {}

    def visit(number, layer, statistics):
        found.update({(number, name): seen for name, seen in statistics.items()})

    for batch_size in (3, None):  # the last batch is smaller
        found.clear()
        calibrate(model, windows, visit, again=batch_size is None, batch_size=batch_size)
        assert found.keys() == expected.keys()
        for key, seen in found.items():
            torch.testing.assert_close(seen.mean, expected[key].mean, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(seen.variance, expected[key].variance, atol=1e-5, rtol=1e-3)
            assert seen.sequences == 7
            assert seen.tokens == 84


def test_a_layer_sees_what_the_changed_layers_before_it_give(llama, windows):
    import copy

    model, seen = copy.deepcopy(llama), {}

    def visit(number, layer, statistics):
        seen[number] = statistics["self_attn.q_proj"].mean
        matrix(layer.maps["mlp.down_proj"]).zero_()

    calibrate(model, windows, visit, again=True)
    expected = of_the_whole_model(model, windows)
    torch.testing.assert_close(seen[1], expected[1, "self_attn.q_proj"].mean)
    assert not torch.allclose(seen[1], of_the_whole_model(llama, windows)[1, "self_attn.q_proj"].mean, atol=1e-3)


def test_maps_that_read_one_tensor_share_their_statistics(llama, windows):
    def visit(number, layer, found):
        assert found["self_attn.q_proj"] is found["self_attn.k_proj"] is found["self_attn.v_proj"]
        assert found["mlp.gate_proj"] is found["mlp.up_proj"]
        assert found["self_attn.o_proj"] is not found["mlp.up_proj"]
        assert found["self_attn.q_proj"].tokens == windows.numel()

    calibrate(llama, windows, visit, again=False, batch_size=2)


def test_the_hessian_is_the_sum_of_squares_of_all_tokens():
    x = torch.randn(4, 5, 3)
    seen = InputStatistics(hessian=True)
    seen.add(x[:1])
    seen.add(x[1:])
    flat = x.flatten(0, 1)
    torch.testing.assert_close(seen.hessian, flat.T @ flat / 4)
    torch.testing.assert_close(seen.hessian.diagonal(), seen.sum_of_squares)
    root = seen.inverse_root()
    assert seen.inverse_root() is root
    torch.testing.assert_close(seen.inverse_root(0.1), inverse_root(seen.hessian, 0.1))
    assert seen.inverse_root() is not root
    seen.add(2 * x)
    torch.testing.assert_close(seen.inverse_root(), inverse_root(seen.hessian))


def test_nothing_is_left_on_the_model(llama, windows):
    calibrate(llama, windows, lambda *_: None, again=False)
    for module in llama.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(0, 4, dtype=torch.long), "at least one"),
        (torch.zeros(2, 4), "must be token ids"),
        (torch.full((2, 4), 97), "token id 97 is outside the model's vocabulary of 97"),
        (torch.zeros(2, 1, dtype=torch.long), "one token"),
        (torch.zeros(1, 200, dtype=torch.long), "the model takes at most 128"),
    ],
)
def test_wrong_windows_are_named(wrong, said, llama):
    with pytest.raises(InputError, match=said):
        calibrate(llama, wrong, lambda *_: None, again=False)


def test_an_input_that_is_not_finite_is_named(decoders, windows):
    import copy

    model = copy.deepcopy(decoders["llama"])
    model.model.layers[1].post_attention_layernorm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"mlp\.gate_proj of layer 1 is not finite"):
        calibrate(model, windows, lambda *_: None, again=False)


def test_what_is_no_decoder_is_told_so(windows):
    from transformers import BertConfig, BertModel

    small = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(InputError, match="language-model head"):
        calibrate(BertModel(BertConfig(**small, intermediate_size=16)), windows, lambda *_: None, again=False)


def test_windows_are_pieces_of_the_text():
    texts = ["abcdefgh" * 5, "01234567" * 5]
    found = windows_of(texts, Bytes(), 4, 16, torch.Generator().manual_seed(0))
    assert found.shape == (4, 16)
    whole = ("".join(texts), "".join(reversed(texts)))
    assert all(any(bytes(row.tolist()).decode() in one for one in whole) for row in found)
    assert len({tuple(row.tolist()) for row in found}) > 1
    again = windows_of(texts, Bytes(), 4, 16, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    # With more windows than fit side by side, they overlap.
    assert windows_of(texts, Bytes(), 50, 16, torch.Generator().manual_seed(0)).shape == (50, 16)
    with pytest.raises(InputError, match="the calibration text has 80 tokens, a window 81"):
        windows_of(texts, Bytes(), 1, 81, torch.Generator())


def test_texts_are_read_and_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n\n\nthree", encoding="utf-8")
    assert read_texts(str(tmp_path / "a.txt")) == ["one", "two", "three"]
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": " "}\n', encoding="utf-8")
    assert read_texts(str(tmp_path / "b.jsonl")) == ["x"]
    (tmp_path / "c.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        read_texts(str(tmp_path / "c.txt"))
    with pytest.raises(InputError, match="no text file"):
        read_texts(str(tmp_path / "d.txt"))
    kept, out = held_out([str(n) for n in range(20)])
    assert out == ["9", "19"]
    assert not set(kept) & set(out)
    assert held_out(["x" * 100]) == (["x" * 90], ["x" * 10])
    assert len("".join(prose())) > 20_000
