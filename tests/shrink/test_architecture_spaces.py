"""The spaces that are searched: NAS-Bench-201's cells and NAS-Bench-Graph's networks with its tables."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.architectures import nas_bench_graph
from thrifty.data.assets import ASSETS
from thrifty.data.convert_architectures import GRAPH_SETS
from thrifty.shrink import cell_space, graph_space
from thrifty.shrink.candidates import initialised
from thrifty.shrink.cell_candidates import Candidates, parts
from thrifty.shrink.cell_space import CellNet, CellNetConfig, cell_encoding, cell_name, cell_operations, draw_cells
from thrifty.shrink.graph_space import Graph, GraphNet, architecture_of, graph_encoding
from thrifty.shrink.graph_tables import graph_metrics, pool_of
from thrifty.shrink.zero_cost import METRICS

KNOWN = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def test_a_cell_is_written_as_in_the_benchmark():
    operations = ("nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", "skip_connect", "nor_conv_3x3", "nor_conv_3x3")
    assert cell_operations(KNOWN) == operations
    assert cell_name(operations) == KNOWN
    with pytest.raises(InputError, match="unknown operation 'nor_conv_5x5': did you mean 'nor_conv_3x3'"):
        cell_operations(KNOWN.replace("nor_conv_3x3~2", "nor_conv_5x5~2"))
    for wrong in ("", KNOWN[:-1], KNOWN.replace("~1|+", "~0|+")):
        with pytest.raises(InputError, match="is no cell"):
            cell_operations(wrong)


def test_the_space_has_15625_cells():
    every = draw_cells(5**6, 0)
    assert len(set(every)) == 15_625
    assert draw_cells(30, 1) == draw_cells(30, 1) != draw_cells(30, 2)
    with pytest.raises(InputError, match="the space has 15625 cells"):
        draw_cells(15_626, 0)


@pytest.mark.parametrize(("operation", "weights"), [("skip_connect", 73_306), ("nor_conv_3x3", 1_531_546)])
def test_networks_have_the_benchmarks_size(operation, weights):
    # The smallest and the largest network of NAS-Bench-201 (three channels, width 16, five cells in each stage).
    net = CellNet(CellNetConfig(cell_name([operation] * 6), 10, channels=3, width=16, cells=5))
    assert sum(parameter.numel() for parameter in net.parameters()) == weights


def test_a_node_adds_up_its_edges():
    cell = cell_space._Cell(["skip_connect"] * 6, 2)
    x = torch.randn(1, 2, 3, 3)
    # Nodes are x, x, 2 x and 4 x.
    torch.testing.assert_close(cell(x), 4 * x)
    only = cell_space._Cell(["skip_connect", "none", "none", "none", "skip_connect", "none"], 2)
    torch.testing.assert_close(only(x), x)


def test_cells_are_encoded_by_what_each_edge_does():
    found = cell_encoding([KNOWN, KNOWN.replace("skip_connect", "none")])
    assert found.shape == (2, 30)
    assert found.sum() == 12
    assert (found[0] != found[1]).sum() == 2


def test_the_same_seed_gives_the_same_network_whatever_was_drawn_before():
    config = CellNetConfig(KNOWN, 3, width=2)
    first = initialised(lambda: CellNet(config), 4, KNOWN)
    torch.rand(7)
    state = torch.get_rng_state()
    again = initialised(lambda: CellNet(config), 4, KNOWN)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = initialised(lambda: CellNet(config), 5, KNOWN)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_three_parts_of_the_pictures_do_not_overlap():
    data = parts("digits", 300, 0)
    train, valid, test = (set(part.tolist()) for part in (data.train, data.valid, data.test))
    assert [len(train), len(valid), len(test)] == [pytest.approx(225, abs=8), pytest.approx(75, abs=8), 300]
    assert not train & valid
    assert not (train | valid) & test
    assert data.classes == 10
    assert data.everything.images.shape[1:] == (1, 8, 8)


def test_every_candidate_is_scored_and_a_cell_of_nothing_too():
    data = parts("digits", 120, 0)
    nothing = cell_name(["none"] * 6)
    candidates = Candidates(data, (KNOWN, nothing), 1, 0)
    table = candidates.metrics(list(METRICS))
    values = dict(zip(METRICS, table.T, strict=True))
    assert np.isfinite(table[0]).all()
    assert values["synflow"][1] == 0
    assert np.isnan(values["jacob_cov"][1])
    assert candidates.results().shape == (2, 2)


def test_a_code_of_the_graph_benchmark():
    # The example of its documentation: links 0, 1, 1, 2 with gcn, gin, cheb, fc.
    assert architecture_of(61237) == ((0, 1, 1, 2), ("gcn", "gin", "cheb", "fc"))
    for wrong in (90_000, 9, -1):
        with pytest.raises(InputError, match="no architecture"):
            architecture_of(wrong)
    found = graph_encoding(np.array([61237, 61238]))
    assert found.shape == (2, 45)
    assert (found[0] != found[1]).sum() == 2


def test_codes_are_those_of_the_benchmarks_own_package():
    bench = pytest.importorskip("nas_bench_graph")
    assert tuple(bench.gnn_list) == graph_space.OPERATIONS
    assert tuple(map(tuple, bench.link_list)) == graph_space.LINKS
    code = bench.Arch([0, 1, 2, 1], ["gcn", "gin", "fc", "cheb"]).valid_hash()
    assert architecture_of(code) == ((0, 1, 1, 2), ("gcn", "gin", "cheb", "fc"))


def graph(nodes=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    edges = (torch.rand(nodes, nodes, generator=draw) < 0.3).float().triu(1)
    y = torch.arange(nodes) % 3
    return Graph(torch.randn(nodes, 5, generator=draw), y, edges + edges.T)


@given(st.sampled_from(graph_space.OPERATIONS), st.permutations(range(9)))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_nodes_does_not_matter(operation, order):
    whole = graph()
    code = 80_000 + 1111 * graph_space.OPERATIONS.index(operation)
    moved = Graph(whole.x[order], whole.y[order], whole.adjacency[order][:, order])
    nets = [initialised(lambda given=given: GraphNet(code, given, 8), 0) for given in (whole, moved)]
    torch.testing.assert_close(nets[1](moved.x), nets[0](whole.x)[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("operation", graph_space.OPERATIONS)
def test_only_the_neighbours_reach_a_node(operation):
    adjacency = torch.zeros(4, 4)
    adjacency[0, 1] = adjacency[1, 0] = 1  # 2 and 3 are joined to nobody
    given_graph = Graph(
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1]), adjacency
    )
    code = 1111 * graph_space.OPERATIONS.index(operation)
    net = initialised(lambda: GraphNet(code, given_graph, 8), 1)
    changed = given_graph.x.clone()
    changed[1] += 1
    reached = (net(changed) - net(given_graph.x)).abs().amax(1) > 1e-6
    local = operation in ("fc", "skip")
    assert reached.tolist() == [not local, True, False, False]


def test_metrics_of_graph_networks():
    codes = np.array([0, 61237, 80123])
    values = graph_metrics(codes, ("grad_norm", "synflow", "naswot"), 0, graph())
    assert values.shape == (3, 3)
    assert np.isfinite(values[:, :2]).all()
    assert len(np.unique(values[:, 0])) == 3


@pytest.fixture
def small_tables(tmp_path, monkeypatch):
    """The asset's real conversion on small tables, with a pickle of the published form."""
    source = tmp_path / "package" / "nas_bench_graph" / "light"
    source.mkdir(parents=True)
    for place, name in enumerate(GRAPH_SETS):
        rows = {
            code: {"valid_perf": 0.5 + at / 10, "perf": 0.4 + place / 100, "latency": 0.01, "para": np.float64(0.7)}
            for at, code in enumerate((61237, 0, 10_000))
        }
        (source / f"{name}.bench").write_bytes(pickle.dumps(rows, protocol=3))
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    asset = ASSETS["nas-bench-graph"]
    build = asset.build
    root = {"nas-bench-graph": tmp_path / "package"}
    small = replace(asset, sources=(), megabytes=0.0, build=lambda roots, folder: build(root, folder))
    monkeypatch.setitem(ASSETS, "nas-bench-graph", small)
    return source


def test_tables_become_arrays(small_tables):
    found = nas_bench_graph("citeseer")
    assert found.code.tolist() == [0, 10_000, 61237]
    np.testing.assert_allclose(found.valid, [0.6, 0.7, 0.5])
    np.testing.assert_allclose(found.test, 0.41)
    np.testing.assert_allclose(found.parameters, 0.7)
    pool = pool_of("citeseer", np.array([0, 61237]), np.zeros((2, 1)), ("m",))
    np.testing.assert_allclose(pool.valid, [0.6, 0.5])
    with pytest.raises(NotFoundError, match="did you mean 'pubmed'"):
        nas_bench_graph("pubmet")


def test_a_pickle_that_names_more_than_numbers_is_refused(small_tables):
    (small_tables / "cora.bench").write_bytes(pickle.dumps({0: print}, protocol=3))
    with pytest.raises(InputError, match="where only numbers are expected"):
        nas_bench_graph("cora")
