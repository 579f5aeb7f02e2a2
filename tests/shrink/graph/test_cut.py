"""The check that cannot lie: for random masks, the cut model computes what the masked model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shrink_zoo import ZOO, ResNet18, picture, randomised
from torch import nn

from thrifty.core.errors import InputError, RunError
from thrifty.shrink.graph import DependencyGraph, Group, dependency_graph
from thrifty.shrink.surgery import arguments, check_cut, cut, largest_difference, masked

# How many groups can be cut, counted by hand from each layout.
GROUPS = {
    "resnet-18": 4 + 8,  # the width of each stage, and the inside of each block
    "resnet": 1 + 2 + 2 * 3,  # stem, the width of both stages, two widths inside of each of three blocks
    "mobile": 2 + 3 * 2,  # both widths; of each block the inside and what the gate is squeezed to
    "efficientnet-lite0": 1 + 7 + 15 + 1,  # stem, width of each stage, inside of all blocks but the first, head
    "convnext": 5,  # the inside of each block: the widths between pass layer norms
    "densenet": 1 + 3 * 2 + 1 + 2 * 2,  # stem, transition, and two convolutions in each layer
    "u-net": 5,  # groups of both group norms, heads, the transposed convolution, the last width
    "shuffle": 1,
    "gated": 1,
    "vit": 4, "deit": 4, "llama": 4, "qwen2": 4, "qwen3": 4, "gpt2": 4,  # heads and width of two layers
    "bert": 5,  # and the pooler
}  # fmt: skip


def graph_of(name: str) -> tuple[nn.Module, Any, DependencyGraph]:
    model, inputs = ZOO[name]()
    args, kwargs = arguments(inputs)
    return model, inputs, dependency_graph(model, *args, **kwargs)


def some(groups: tuple[Group, ...], seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        kept = torch.rand(group.units, generator=draw) < 0.6
        kept[int(torch.randint(group.units, (), generator=draw))] = True
        keep[group.name] = kept
    return keep


@pytest.mark.parametrize("name", list(ZOO))
def test_cut_equals_masked(name: str) -> None:
    model, inputs, graph = graph_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert len(graph.prunable) == GROUPS[name]
    assert not graph.unknown
    assert not graph.unused
    for seed in range(2):
        check_cut(model, inputs, some(graph.prunable, seed), graph)
    # Zeroing what makes the units is enough: that is what zero-invariant groups are.
    assert graph.zero_invariant == graph.prunable
    check_cut(model, inputs, some(graph.prunable, 2), graph, producers_only=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet-18", "u-net", "llama", "gpt2"])
def test_costs_under_a_cut_are_those_of_the_cut_model(name: str) -> None:
    model, inputs, graph = graph_of(name)
    keep = some(graph.prunable, 0)
    smaller = cut(model, keep, graph)
    args, kwargs = arguments(inputs)
    again = dependency_graph(smaller, *args, **kwargs)
    assert graph.parameters() == sum(p.numel() for p in model.parameters())
    assert graph.parameters(keep) == sum(p.numel() for p in smaller.parameters()) == again.parameters()
    assert graph.flops(keep) == again.flops() < graph.flops()


def test_masking_changes_what_the_model_computes() -> None:
    model, inputs, graph = graph_of("resnet-18")
    with torch.no_grad():
        assert largest_difference(masked(model, some(graph.prunable, 0), graph)(inputs), model(inputs)) > 1e-3


def test_flops_of_a_convolution_and_a_linear_layer_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    graph = dependency_graph(model, torch.randn(1, 3, 8, 8))
    assert graph.flops() == 2 * (8 * 8 * 4 * 3 * 9 + 4 * 8 * 8 * 5)
    # A convolution's channel is 64 columns of the linear layer that reads the flattened map.
    (group,) = graph.prunable
    reads = next(one for one in group.slices if one.name == "2.weight")
    assert (reads.dim, reads.produces) == (1, False)
    assert reads.index[1].tolist() == list(range(64, 128))


def test_a_parameter_that_is_one_number_counts() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.out, self.scale = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.inside(x))) * self.scale

    graph = dependency_graph(Scaled(), torch.randn(5, 3))
    assert graph.parameters() == 4 * 4 + 2 * 5 + 1
    assert graph.parameters({"inside": [0, 1]}) == 2 * 4 + 2 * 3 + 1


def test_the_groups_of_the_small_residual_network_on_the_card() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.skip, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return self.fc(torch.relu(y + self.skip(x)).flatten(1))

    model = randomised(Small())
    graph = dependency_graph(model, torch.randn(1, 3, 6, 6))
    made = [{part.name.partition(".")[0] for part in group.producers} for group in graph.prunable]
    assert made == [{"conv1", "bn1"}, {"conv2", "bn2", "skip"}]
    assert [group.units for group in graph.prunable] == [4, 4]
    keep = {group.name: [0, 2] for group in graph.prunable}
    assert check_cut(model, torch.randn(2, 3, 6, 6), keep, graph, producers_only=True) < 1e-5


def test_a_unit_is_gathered_scaled_and_zeroed() -> None:
    model, _, graph = graph_of("gpt2")
    heads = next(group for group in graph.prunable if group.name.endswith("c_attn:0"))
    part = next(one for one in heads.slices if one.name.endswith("c_attn.weight"))
    weight = dict(model.named_parameters())[part.name].detach().clone()
    # Columns 12-23 of queries, keys and values are head 1 of four in a width of 48.
    columns = [base + i for base in (0, 48, 96) for i in range(12, 24)]
    assert sorted(part.index[1].tolist()) == columns
    rows = part.gather(weight)
    assert rows.shape == (4, 36 * 48)
    torch.testing.assert_close(rows[1].square().sum(), weight[:, columns].square().sum())
    part.scale_(weight, torch.tensor([1.0, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(part.gather(weight)[1], rows[1] / 2)
    torch.testing.assert_close(part.gather(weight)[0], rows[0])
    part.zero_(weight, torch.tensor([False, True, False, False]))
    assert (weight[:, columns] == 0).all()
    assert part.gather(weight)[2].abs().sum() > 0


def test_what_is_kept_beside_the_weights_follows() -> None:
    model, _, graph = graph_of("mobile")
    inside = next(group for group in graph.prunable if group.name == "3.expand")
    smaller: Any = cut(model, {inside.name: range(5)}, graph)
    block = smaller[3]
    assert (block.filter.groups, block.filter.in_channels, block.filter.out_channels) == (5, 5, 5)
    assert (block.expand.out_channels, block.bn1.num_features, block.project.in_channels) == (5, 5, 5)
    model, _, graph = graph_of("vit")
    heads = next(group for group in graph.prunable if group.name.endswith(":0"))
    attention: Any = cut(model, {heads.name: [0, 3]}, graph).vit.layers[0].attention  # type: ignore[union-attr]
    assert attention.q_proj.out_features == 24


def test_query_heads_within_a_group_share_values_so_only_masking_both_sides_is_cutting() -> None:
    model, inputs, graph = graph_of("llama")
    queries = next(group for group in graph.groups if group.prunable and group.units == 2)
    assert queries.inside is not None
    assert not queries.zero_invariant
    smaller: Any = cut(model, {queries.name: [1]}, graph)
    attention = smaller.model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.num_key_value_groups) == (24, 1)
    check_cut(model, inputs, {queries.name: [1]}, graph)
    with pytest.raises(RunError, match="differs from the masked one"):
        check_cut(model, inputs, {queries.name: [1]}, graph, producers_only=True)


def test_a_sigmoid_is_not_zero_at_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    graph = dependency_graph(model, torch.randn(5, 3))
    (group,) = graph.prunable
    assert not group.zero_invariant
    check_cut(model, torch.randn(5, 3), {group.name: [0, 1]}, graph)
    with pytest.raises(RunError, match="differs from the masked one"):
        check_cut(model, torch.randn(5, 3), {group.name: [0, 1]}, graph, producers_only=True)


def test_the_width_between_layer_norms_stays_whole_and_says_why() -> None:
    _, _, graph = graph_of("bert")
    width = next(group for group in graph.groups if group.units == 48 and not group.prunable)
    assert "takes mean and deviation over it" in str(width.why)


def test_shared_embeddings_stay_shared() -> None:
    model, _, graph = graph_of("qwen2")
    smaller: Any = cut(model, some(graph.prunable, 0), graph)
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight


def test_an_unknown_operation_leaves_its_channels_whole() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.b(torch.cdist(self.a(x)[None], self.a(x)[None])[0, :, :4])))

    graph = dependency_graph(Odd(), torch.randn(5, 3))
    assert [group.name for group in graph.prunable] == ["b"]
    assert graph.unknown
    assert "has no rule" in str(graph["a"].why)


def test_skipped_modules_stay_whole() -> None:
    model, _, whole = graph_of("resnet-18")
    graph = dependency_graph(model, picture(), skip=["layers.0"])
    assert len(graph.prunable) == len(whole.prunable) - 2  # the inside of the block, and the width of its stage
    assert graph["conv1"].why == "layers.0 is to be left out"
    with pytest.raises(InputError, match="'nowhere', which holds no parameter"):
        dependency_graph(model, picture(), skip=["nowhere"])


def test_control_flow_by_values_is_refused_with_the_module() -> None:
    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(3, 4), Gate(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="what 1 does depends on the values"):
        dependency_graph(model, torch.randn(5, 3))


def test_a_size_written_into_the_code_is_named() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).view(-1, 2, 4).transpose(1, 2).reshape(-1, 8))

    model = Fixed()
    graph = dependency_graph(model, torch.randn(5, 3))
    with pytest.raises(RunError, match="its code does not follow"):
        cut(model, {"a:1": [0, 1, 2]}, graph)


def test_wrong_units_are_named() -> None:
    model = ResNet18()
    graph = dependency_graph(model, picture())
    with pytest.raises(InputError, match="no group 'conv'"):
        cut(model, {"conv": [0]}, graph)
    with pytest.raises(InputError, match="has no unit 16: its units are 0 to 15"):
        cut(model, {"conv1": [0, 16]}, graph)
    with pytest.raises(InputError, match="no unit of group 'conv1' would stay"):
        cut(model, {"conv1": []}, graph)
    with pytest.raises(InputError, match="'fc' must stay whole: it is the model's output"):
        cut(model, {"fc": [0]}, graph)
    with pytest.raises(InputError, match="the graph is of another model"):
        cut(_wider(), {}, graph)
    with pytest.raises(InputError, match="the graph is of another model"):
        cut(nn.Sequential(), {}, graph)


def _wider() -> nn.Module:
    model = ResNet18()
    model.fc = nn.Linear(512, 11)
    return model
