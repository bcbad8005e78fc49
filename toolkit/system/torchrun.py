"""torchrun, with the exit status of the run: `python -m toolkit.system.torchrun`, and torchrun's own options.

torchrun itself ends with status 1, whatever its processes end with, and with a traceback of its own below the message
of the one that failed. A batch system has to tell an invalid recipe (2), which another try does not mend, from a run
that was stopped (143), which goes on where it was.

And where hosts come and go, the processes of each round meet at a store of that round.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """How a group of processes has ended that torch's elastic launcher started."""

    exit_status: int
    """0; the status of the first process that failed; or 128 + n, if signal n ended the launcher, or that process."""
    failed: Mapping[int, int] = field(default_factory=dict)
    """The status of each rank that has failed; -n if signal n ended it."""


def outcome(launch: Callable[[], object]) -> Outcome:
    """Have torch's elastic launcher start a group of processes, and wait for its end."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch()
    except ChildFailedError as failed:
        status = failed.get_first_failure()[1].exitcode
        statuses = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        return Outcome(status if status >= 0 else 128 - status, statuses)
    except SignalException as stopped:
        return Outcome(128 + stopped.sigval)
    return Outcome(0)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun in this process, and return the exit status of the group."""
    # Otherwise a launcher keeps the address of the first round's host of rank 0, which may be the one that was lost.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    from torch.distributed import run

    return outcome(lambda: run.main(list(arguments))).exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
