"""The properties and stories can fail: each planted bug of the engine is noticed by one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.engine.block_pool import BlockError
from server.engine.invariants import InvariantError
from tests.invariants.engine_machine import EXAMPLES, STEPS, counted_machine, explore
from tests.invariants.planted_engine_bugs import BUGS, PlantedBug

# What notices a bug says so in one of these; a bug that is badly planted raises something else.
NOTICED = (AssertionError, InvariantError, BlockError, pytest.fail.Exception)


pytestmark = pytest.mark.usefixtures("quiet_engine")


def search() -> None:
    """The same examples as of test_engine_machine.py, which the product passes."""
    explore(counted_machine(), examples=EXAMPLES, steps=STEPS)


def first_failure(check: Callable[[], None]) -> BaseException | None:
    """What went wrong first: tearing a broken engine down often fails as well."""
    try:
        check()
    except (Exception, pytest.fail.Exception) as error:
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        return first
    return None


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.story], ids=lambda bug: bug.name)
def test_the_product_passes_the_story(bug: PlantedBug) -> None:
    assert bug.story is not None
    bug.story()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_noticed(bug: PlantedBug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    failure = first_failure(bug.story or search)
    assert failure is not None, f"nobody noticed: {bug.plant.__doc__}"
    assert isinstance(failure, NOTICED), f"{failure!r} is not the bug but its planting"
    print(f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}")
