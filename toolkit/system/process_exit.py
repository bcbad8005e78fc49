"""The end of a command's process, without the finalization of the interpreter.

While Python finalizes, a thread of C++ that needs the GIL is ended where it stands, and if that is in a destructor, the
process aborts: status 134 after everything has gone well. gloo's threads do so if one still has to drop the tensor of
the last collective, and pyarrow's while they read for a stream (https://github.com/pytorch/pytorch/issues/38228).
Finalization has nothing else to offer: it collects garbage for seconds once torch is imported, and triton 3.9 (torch
2.15) lists what is then left as leaked.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
from collections.abc import Iterator

FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


@contextlib.contextmanager
def without_finalization() -> Iterator[None]:
    """Let the process end, with the status of the `with` block, once its threads and exit handlers have.

    What of them was registered before the block is not called.
    """
    status = 1  # of an exception, whose traceback the interpreter prints

    def leave() -> None:
        _flush_files()
        os._exit(status)

    atexit.register(leave)
    try:
        yield
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise


def _flush_files() -> None:
    """Write out what files that were never closed, a plugin's log say, still buffer."""
    gc.unfreeze()  # what is frozen is not listed
    for thing in gc.get_objects():
        if type(thing) in FILES:  # isinstance would ask proxies, which import what they stand for
            with contextlib.suppress(Exception):
                thing.flush()
