from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from thrifty.core.errors import InputError
from thrifty.forget.data import (
    Items,
    Joined,
    Labelled,
    Part,
    Texts,
    as_batch,
    as_source,
    concatenate,
    labels,
    size,
    stream,
)
from thrifty.lm.sequences import from_rows

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10) % 3


def sequences(lengths=(3, 5, 4)):
    return from_rows([(list(range(n)), [False] + [True] * (n - 1)) for n in lengths])


ALL = {
    "tensors": (X, Y),
    "arrays": (X.double().numpy(), Y.numpy()),
    "data set": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "list of batches": [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])],
    "list of lists": [[X[:4], Y[:4]], [X[4:8], Y[4:8]], [X[8:], Y[8:]]],
    "source": Labelled(X, Y),
    "part": Part(Labelled(torch.cat([X, X]), torch.cat([Y, Y])), torch.arange(10)),
    "joined": Joined(Labelled(X[:3], Y[:3]), Labelled(X[3:], Y[3:])),
}


@pytest.mark.parametrize("kind", ALL)
def test_whatever_the_data_are_kept_in_they_are_the_same(kind):
    data = ALL[kind]
    source = as_source(data)
    rows = source.rows(torch.tensor([7, 2, 2]))
    assert torch.equal(rows.x, X[[7, 2, 2]])
    assert torch.equal(rows.y, Y[[7, 2, 2]])
    assert torch.equal(labels(source), Y)
    batches = list(stream(data, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.x for batch in batches]), X)
    assert batches[0].x.dtype == torch.float32


def test_batches_without_a_length_are_streamed_once():
    generator = ((X[i : i + 5], Y[i : i + 5]) for i in (0, 5))
    assert size(generator) is None
    assert size((X, Y)) == 10
    assert [len(batch) for batch in stream(generator, 64)] == [5, 5]


def test_dictionaries_of_inputs_are_batches():
    batch = as_batch({"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.tensor([0, 1])})
    assert set(batch.x) == {"input_ids"}
    assert batch.y.tolist() == [0, 1]
    both = concatenate([batch, batch])
    assert len(both) == 4
    assert both.rows(torch.tensor([3])).x["input_ids"].shape == (1, 3)


def test_a_shuffled_stream_holds_everything_once_in_an_order_of_its_seed():
    def order(seed):
        return torch.cat([batch.x[:, 0] for batch in stream((X, Y), 3, shuffle=seed)])

    assert torch.equal(order(0), order(0))
    assert not torch.equal(order(0), order(1))
    assert torch.equal(order(0).sort().values, X[:, 0])


def test_joined_rows_come_in_the_order_asked_for():
    joined = Joined(Labelled(X[:6], Y[:6]), Labelled(X[6:], Y[6:]))
    wanted = torch.tensor([9, 0, 6, 5, 5, 8])
    assert torch.equal(joined.rows(wanted).x, X[wanted])
    assert torch.equal(joined.rows(torch.tensor([1, 2])).x, X[1:3])


def test_texts_are_a_source():
    data = sequences()
    source = as_source(data)
    assert isinstance(source, Texts)
    assert source.rows(torch.tensor([0])).sequences.input_ids.tolist() == [[0, 1, 2]]
    assert [len(batch) for batch in stream(data, 2)] == [2, 1]
    both = Joined(source, as_source(sequences((6,))))
    assert both.rows(torch.tensor([3, 0])).sequences.lengths.tolist() == [6, 3]
    assert len(as_source([data, data])) == 6


@pytest.mark.parametrize("empty", [(X[:0], Y[:0]), [], iter([]), TensorDataset(X[:0])])
def test_empty_data_are_refused_by_name(empty):
    with pytest.raises(InputError, match="the forget set is empty"):
        as_source(empty, "forget set")
    with pytest.raises(InputError, match="the forget set is empty"):
        list(stream(empty if not hasattr(empty, "__next__") else iter([]), 4, name="forget set"))


@pytest.mark.parametrize("wrong", ["train.npz", 3, {"x": X}, None])
def test_what_is_no_data_is_refused(wrong):
    with pytest.raises(InputError, match="the data must be arrays"):
        as_source(wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((X, Y[:4]), "10 inputs but 4 labels"),
        ((X, Y.float()), "integers of shape"),
        ((X, X), "integers of shape"),
        ([(X, Y, Y)], "a tuple of length 3"),
        ([{"labels": Y}], "labels but no inputs"),
        ([(object(), Y)], "arrays of numbers"),
        ([(X, Y), (X[:, :1], Y)], "do not fit together"),
        ([(X, Y), sequences()], "do not fit together"),
    ],
)
def test_batches_that_make_no_sense_are_described(wrong, said):
    with pytest.raises(InputError, match=said):
        as_source(wrong)


def test_labels_are_asked_for():
    assert concatenate([Labelled(X), Labelled(X)]).y is None
    for unlabelled in (Labelled(X), Items([(np.zeros(2), 0)] * 2), Texts(sequences())):
        if isinstance(unlabelled, Items):
            assert labels(unlabelled).tolist() == [0, 0]
            continue
        with pytest.raises(InputError, match="no labels"):
            labels(unlabelled)
