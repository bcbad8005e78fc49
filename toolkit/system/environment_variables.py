"""Environment variables that would change a run behind its recipe's back.

accelerate and torch read precision, sharding and gradient accumulation from variables that take precedence over the
Trainer's arguments (accelerate 1.15: `parse_choice_from_env("ACCELERATE_MIXED_PRECISION")`). A variable left over from
another job would give different weights while the screen shows the recipe's settings.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Variables of accelerate: those that `accelerate launch` sets, and those that its plugins read."""
NAMES = frozenset(
    {
        "FORK_LAUNCHED",
        "XLA_USE_BF16",
        "XLA_DOWNCAST_BF16",
        "NVIDIA_TF32_OVERRIDE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "DNNL_DEFAULT_FPMATH_MODE",
    }
)
"""Others: most make matrix products use another precision than `training.precision`."""
THREADS = "OMP_NUM_THREADS"
"""Left to the user; but OpenMP and accelerate require a number."""


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Remove these variables from the environment, say which, and restore them afterwards.

    Those that the libraries have set for themselves in the meantime are removed.
    """
    ours = {name: os.environ.pop(name) for name in disturbing(os.environ)}
    if ours:
        names = ", ".join(sorted(ours))
        logging.getLogger("toolkit").warning("ignored, because the recipe decides: %s (set in the environment)", names)
    threads = os.environ.get(THREADS)
    if threads and not (threads.isdecimal() and int(threads)):
        ours[THREADS] = os.environ.pop(THREADS)
        logging.getLogger("toolkit").warning("ignored, because it is not a number of threads: %s=%s", THREADS, threads)
    try:
        yield
    finally:
        for name in disturbing(os.environ):
            del os.environ[name]
        os.environ.update(ours)


def disturbing(environ: Mapping[str, str]) -> list[str]:
    """The variables of an environment that a run sets aside."""
    return [name for name in environ if name.startswith(PREFIXES) or name in NAMES]
