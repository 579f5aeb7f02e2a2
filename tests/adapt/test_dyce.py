from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt.block_masks import block_masks, blotted
from thrifty.adapt.dyce import DyCEMemory, cluster_means, cluster_neighbours, equipartition, prototype_costs
from thrifty.core.errors import InputError


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_near_prototypes_get_points_and_the_released_sign_far_ones() -> None:
    prototypes = torch.eye(2)
    z = torch.tensor([[1.0, 0.1], [0.9, 0.2], [0.1, 1.0], [0.2, 0.9]])
    for metric in ("euclidean", "cosine"):
        cost = prototype_costs(z, prototypes, metric)  # type: ignore[arg-type]
        for epsilon in (0.1, 1e-5):
            assert equipartition(cost, epsilon).tolist() == [0, 0, 1, 1]
            assert equipartition(cost, epsilon, toward="far").tolist() == [1, 1, 0, 0]


def test_costs_are_distances_of_directions() -> None:
    cost = prototype_costs(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    # Between (0.6, 0.8) and the axes: sqrt(0.16 + 0.64), sqrt(0.36 + 0.04).
    torch.testing.assert_close(cost, torch.tensor([[0.8**0.5], [0.4**0.5]]))
    cosine = prototype_costs(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "cosine")
    torch.testing.assert_close(cosine, torch.tensor([[0.4], [0.2]]))


def test_every_prototype_gets_as_many_where_one_is_nearest_to_all() -> None:
    z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.01 * i] for i in range(8)]), dim=1)
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert (prototype_costs(z, prototypes).argmin(0) == 0).all()
    assert torch.bincount(equipartition(prototype_costs(z, prototypes), 0.001, 200)).tolist() == [4, 4]


def test_means_are_of_the_members_and_empty_ones_stay() -> None:
    bank = torch.tensor([[1.0, 1.0], [3.0, 5.0], [7.0, 2.0]])
    before = torch.tensor([[9.0, 9.0], [8.0, 8.0], [7.0, 7.0]])
    labels = torch.tensor([0, 0, 2])
    torch.testing.assert_close(cluster_means(bank, labels, before), torch.tensor([[2.0, 3.0], [8.0, 8.0], [7.0, 2.0]]))
    torch.testing.assert_close(
        cluster_means(bank, labels, before, 0.5), torch.tensor([[5.5, 6.0], [8.0, 8.0], [7.0, 4.5]])
    )


def by_hand(z: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, prototypes: torch.Tensor, k: int) -> list[Any]:
    found = []
    for row in z:
        cosines = [float(torch.cosine_similarity(row, other, dim=0)) for other in bank]
        toward = [float(torch.cosine_similarity(row, other, dim=0)) for other in prototypes]
        own = toward.index(max(toward))
        members = [i for i in range(len(bank)) if int(labels[i]) == own]
        among = members if len(members) > k else range(len(bank))
        found.append(sorted(among, key=lambda i: -cosines[i])[:k])
    return found


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(1, 4))
def test_neighbours_are_the_cosines_largest_within_the_cluster(seed: int, k: int) -> None:
    bank, z, prototypes = draw(seed, 20, 3), draw(seed + 1, 6, 3), draw(seed + 2, 4, 3)
    labels = torch.randint(4, (20,), generator=torch.Generator().manual_seed(seed))
    found = cluster_neighbours(z, bank, labels, prototypes, k)
    assert found.rows.tolist() == by_hand(z, bank, labels, prototypes, k)


def full(**settings: Any) -> DyCEMemory:
    torch.manual_seed(0)
    memory = DyCEMemory(12, 4, 3, topk=2, **settings)
    memory.update(draw(1, 8, 4))
    assert not memory.ready
    memory.update(draw(2, 4, 4))
    return memory


def test_it_clusters_when_it_is_full_and_forgets_the_oldest() -> None:
    memory = full()
    assert memory.ready
    torch.testing.assert_close(memory.bank, torch.cat([draw(1, 8, 4), draw(2, 4, 4)]))
    assert memory.arrivals.tolist() == list(range(12))
    memory.update(draw(3, 5, 4))
    assert memory.arrivals.tolist() == [12, 13, 14, 15, 16, *range(5, 12)]
    torch.testing.assert_close(memory.bank[:5], draw(3, 5, 4))
    memory.update(draw(4, 9, 4))  # around the end of the ring
    torch.testing.assert_close(memory.bank[5:], draw(4, 9, 4)[:7])
    torch.testing.assert_close(memory.bank[:2], draw(4, 9, 4)[7:])
    assert memory.arrivals.sort().values.tolist() == list(range(14, 26))


def test_prototypes_are_the_means_of_their_members_after_an_update() -> None:
    memory = full()
    before = memory.prototypes.clone()
    memory.update(draw(3, 5, 4))
    for label in range(3):
        members = memory.bank[memory.labels == label]
        expected = members.mean(0) if len(members) else before[label]
        torch.testing.assert_close(memory.prototypes[label], expected)


def test_an_embedding_looked_up_before_it_enters_does_not_find_itself() -> None:
    memory, z = full(), draw(9, 4, 4)
    found, _ = memory(z)
    assert not torch.isclose(found, z.unsqueeze(1)).all(-1).any()
    memory.update(z)
    found, _ = memory(z)
    assert torch.isclose(found[:, 0], z).all(-1).float().mean() > 0.4


def test_one_prototype_is_a_plain_memory_of_neighbours() -> None:
    torch.manual_seed(0)
    memory = DyCEMemory(10, 3, 1, topk=4)
    memory.update(draw(0, 10, 3))
    z = draw(1, 5, 3)
    cosines = torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(memory.bank, dim=1).T
    assert torch.equal(memory.neighbours(z).rows, cosines.topk(4, dim=1).indices)


def test_state_survives_a_checkpoint() -> None:
    memory, again = full(), DyCEMemory(12, 4, 3, topk=2)
    again.load_state_dict(memory.state_dict())
    assert again.ready
    for each in (memory, again):
        each.update(draw(5, 6, 4))
    z = draw(6, 3, 4)
    assert torch.equal(memory(z)[0], again(z)[0])


def test_collapsed_embeddings_keep_the_clusters() -> None:
    memory = full()
    memory.update(torch.ones(12, 4))
    before = memory.prototypes.clone()
    memory.cluster()
    assert torch.equal(memory.prototypes, before)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: DyCEMemory(10, 4, 11), "a memory of 10 embeddings has room for 1 to 10 prototypes"),
        (lambda: DyCEMemory(4, 4, 2, topk=5), "not 2 and 5"),
        (lambda: DyCEMemory(10, 4, 2, momentum=1.0), r"must be in \[0, 1\), not 1"),
        (lambda: DyCEMemory(10, 4, 2, metric="cosin"), "'cosin' is unknown: did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: DyCEMemory(10, 4, 2)(torch.ones(1, 4)), "holds 0 of 10 embeddings: it can't be looked up yet"),
        (lambda: DyCEMemory(10, 4, 2).cluster(), "it can't be clustered yet"),
        (lambda: DyCEMemory(10, 4, 2).update(torch.ones(11, 4)), "11 embeddings does not fit a memory of 10"),
    ],
)
def test_wrong_use_is_refused(action: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        action()


@settings(max_examples=20)
@given(st.integers(4, 16), st.integers(4, 16), st.floats(0, 0.5), st.integers(0, 99))
def test_masks_cover_no_more_than_their_share(height: int, width: int, ratio: float, seed: int) -> None:
    masks = block_masks(20, height, width, ratio, 0.0, torch.Generator().manual_seed(seed))
    assert masks.shape == (20, height, width)
    assert (masks.sum((1, 2)) <= ratio * height * width + 1e-4).all()


def test_masks_cover_about_their_share_in_rectangles() -> None:
    masks = block_masks(400, 14, 14, 0.15, 0.1, torch.Generator().manual_seed(0))
    shares = masks.float().mean((1, 2))
    assert 0.08 < shares.mean() < 0.15
    assert shares.max() <= 0.25
    assert shares.std() > 0.03
    assert not block_masks(5, 14, 14, 0.0, 0.0).any()


def test_masked_pixels_are_zero_and_others_stay() -> None:
    pictures = torch.ones(1, 2, 5, 6)
    masks = torch.zeros(1, 2, 3, dtype=torch.bool)
    masks[0, 1, 2] = True
    out = blotted(pictures, masks, 2)
    assert out.sum() == 60 - 8
    assert (out[0, :, 2:4, 4:6] == 0).all()
