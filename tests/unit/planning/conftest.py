"""What tests of plans share."""

import pytest


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace in the process of the test, which has all of torch warm: a process for each would take twice as long.

    Not in `test_own_process.py`.
    """
    if request.module.__name__.rpartition(".")[2] != "test_own_process":
        monkeypatch.setattr("toolkit.planning.own_process._is_own", True)
