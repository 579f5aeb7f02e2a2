from __future__ import annotations

import dataclasses

import pytest

from thrifty.core import method
from thrifty.core.method import RunOptions, arguments, check_fields, register


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_REGISTRY", {})


@dataclasses.dataclass(frozen=True)
class Pruner:
    """Prunes.

    Parameters
    ----------
    sparsity
        Share of weights that become zero.
    layers
        Names of the layers;
        all by default.
    rate, decay
        Of the optimizer.

    References
    ----------
    sparsity
        Not here.
    """

    sparsity: float = 0.5
    layers: tuple[str, ...] = dataclasses.field(default_factory=lambda: ("all",))
    rate: float = 0.1
    decay: float = 0.0
    hidden: int = dataclasses.field(default=3, init=False)


def test_arguments_have_defaults_and_the_docstring_s_words() -> None:
    shown = [(argument.name, argument.type, argument.default, argument.help) for argument in arguments(Pruner)]
    assert shown == [
        ("sparsity", "float", 0.5, "Share of weights that become zero."),
        ("layers", "tuple[str, ...]", ("all",), "Names of the layers; all by default."),
        ("rate", "float", 0.1, "Of the optimizer."),
        ("decay", "float", 0.0, "Of the optimizer."),
    ]


@pytest.mark.parametrize("option", ["out", "seed", "device", "dtype", "overwrite", "json"])
def test_a_field_named_like_an_option_of_the_command_is_refused(option: str) -> None:
    clashing = dataclasses.make_dataclass("Clashing", [("sparsity", float, 0.5), (option, int, 0)])
    with pytest.raises(ValueError, match=f"^Clashing can't have a field '{option}': RunOptions has one.*rename it$"):
        register("redco")(clashing)
    assert method._REGISTRY == {}


def test_only_fields_of_the_same_name_clash() -> None:
    check_fields(Pruner, RunOptions)
    other = dataclasses.make_dataclass("Other", [("model", str, ""), ("rate", float, 1.0)])
    with pytest.raises(ValueError, match="Pruner can't have a field 'rate': Other has one"):
        check_fields(Pruner, other, RunOptions)


def test_an_id_belongs_to_one_dataclass() -> None:
    assert register("redco")(Pruner).paper_id == "redco"
    assert register("redco")(Pruner) is Pruner
    with pytest.raises(ValueError, match=r"'redco' is taken by .*\.Pruner"):
        register("redco")(dataclasses.make_dataclass("Other", []))
    with pytest.raises(ValueError, match="must be a dataclass"):
        register("ssd")(int)
