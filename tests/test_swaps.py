"""What is replaced comes back exactly, unless somebody else has replaced it meanwhile."""

import types

import pytest

from panda_icefall.swaps import Swap, Swaps


class Base:
    def step(self):
        return "base"


class Derived(Base):
    pass


def module():
    made = types.ModuleType("host")
    made.loss = lambda: "original"
    return made


OWNERS = [module, lambda: {"loss": "original"}, lambda: types.SimpleNamespace(loss="original")]


def value_of(owner):
    return owner["loss"] if isinstance(owner, dict) else owner.loss


@pytest.mark.parametrize("make", OWNERS)
def test_install_and_remove_may_be_repeated(make):
    owner = make()
    original, ours = value_of(owner), object()
    swap = Swap.of(owner, "loss", ours)
    for _ in range(2):
        swap.install()
        swap.install()
        assert value_of(owner) is ours
        assert swap.remove()
        assert value_of(owner) is original
        assert not swap.remove()


def test_what_is_inherited_is_inherited_again():
    with Swaps() as swaps:
        swaps.replace(Derived, "step", lambda self: "ours")
        assert Derived().step() == "ours"
        assert Base().step() == "base"
    assert "step" not in vars(Derived)
    assert Derived().step() == "base"


def test_a_new_global_is_removed_again():
    names = {}
    with Swaps() as swaps:
        swaps.replace(names, "loss", 1)
        assert names == {"loss": 1}
    assert names == {}


@pytest.mark.parametrize("make", OWNERS)
def test_somebody_elses_later_replacement_is_left_alone(make):
    owner, theirs = make(), object()
    swap = Swap.of(owner, "loss", object())
    swap.install()
    Swap.of(owner, "loss", theirs).install()
    assert not swap.remove()
    assert value_of(owner) is theirs


def test_swaps_of_one_name_are_undone_from_the_last():
    host = module()
    original = host.loss
    swaps = Swaps()
    for ours in (1, 2):
        swaps.replace(host, "loss", ours)
    assert host.loss == 2
    swaps.undo()
    swaps.undo()
    assert host.loss is original


def test_an_error_in_the_block_puts_everything_back():
    host = module()
    original = host.loss
    swaps = Swaps()
    swaps.replace(host, "loss", None)
    with pytest.raises(ZeroDivisionError), swaps:
        1 / 0  # noqa: B018
    assert host.loss is original


def test_the_full_name_is_that_of_a_module_or_a_class():
    assert Swap.of(module(), "loss", 1).full_name == "host.loss"
    assert Swap.of(Derived, "step", 1).full_name == f"{__name__}.Derived.step"
