"""The collector: held for imports, and its view of the user's objects given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from toolkit.system.garbage_collection import given_back, held_for_imports

NEW = "a_module_that_is_not_imported"


class Knot:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_all_of_it_is_left_out_afterwards() -> None:
    collections: list[str] = []
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        with held_for_imports(NEW):
            made = [[number] for number in range(10 * gc.get_threshold()[0])]
            assert not collections
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)


def test_what_is_made_afterwards_is_collected() -> None:
    with held_for_imports(NEW):
        pass
    gone = weakref.ref(Knot())
    gc.collect()
    assert gone() is None


def test_garbage_of_the_users_is_collected_once_a_run_has_ended() -> None:
    with given_back():
        gone = weakref.ref(Knot())
        with held_for_imports(NEW):
            pass
        gc.collect()
        assert gone() is not None
    gc.collect()
    assert gone() is None


def test_where_the_libraries_are_there_already_nothing_is_held() -> None:
    with held_for_imports("gc"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_is_off_and_objects_that_others_froze_stay_so() -> None:
    gc.disable()
    try:
        with held_for_imports(NEW):
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
    gc.freeze()
    with given_back(), held_for_imports(NEW):
        pass
    assert gc.get_freeze_count() > 0
