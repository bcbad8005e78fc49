"""Python's cyclic garbage collector, kept away from the objects of imported libraries.

torch and transformers create 440,000 objects that stay. While they are imported, the collector walks them again and
again and finds nothing: a fifth of the time that the imports take. Each later full collection takes half a second.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def held_for_imports(module: str) -> Iterator[None]:
    """Collect nothing inside the `with` block, and leave what exists at its end out of later collections.

    Objects without references are freed as always. Does nothing if the collector is off, or the module, the last that
    the block imports, is there already.
    """
    if not gc.isenabled() or module in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or the first collections afterwards would walk all of it three times
        gc.enable()


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """At the end of the `with` block, let the collector see again what `held_for_imports` has left out inside it.

    In a notebook that includes objects of the user's, of which some may have become garbage meanwhile.
    """
    frozen_by_others = gc.get_freeze_count() > 0
    try:
        yield
    finally:
        if not frozen_by_others:
            gc.unfreeze()
