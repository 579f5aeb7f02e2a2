"""What is found out about a module goes with it."""

import copy
import gc
import pickle
import weakref

from torch import nn

from thrifty.core.remembered import Remembered


def test_a_finding_is_kept_by_its_module() -> None:
    known: Remembered[str] = Remembered("test")
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert known.get(one) is None
    known.put(one, "seen")
    assert known.get(one) == "seen"
    assert known.get(other) is None
    assert set(one.state_dict()) == {"weight", "bias"}


def test_of_a_copy_nothing_is_known() -> None:
    known: Remembered[object] = Remembered("test")
    net = nn.Linear(2, 2)
    known.put(net, lambda: net)  # can't be pickled
    assert known.get(copy.deepcopy(net)) is None
    assert known.get(pickle.loads(pickle.dumps(net))) is None


def test_a_finding_that_refers_to_its_module_does_not_keep_it_alive() -> None:
    known: Remembered[nn.Module] = Remembered("test")
    net = nn.Linear(2, 2)
    known.put(net, net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
