"""What probes have measured of this machine, kept in the cache: the next start would wait a second to find the same.

A figure holds for a device, torch's version and threads, the processors at hand and this boot of the machine, and for a
day: long enough for a series of starts, and too short for a changed cooling or neighbour to matter for long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.errors import UnavailableError
from toolkit.system.cache import cache_folder, entry_made
from toolkit.system.device import Device
from toolkit.system.threads import processors

KEPT_SECONDS = 24 * 3600.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Probed:
    """The figures of a probe."""

    figures: list[float]
    now: bool
    """Whether it was made just now, and not by an earlier start."""


def kept(device: Device, what: str, measure: Callable[[], list[float]], *, is_busy: Callable[[], bool]) -> Probed:
    """The figures of an earlier probe, or those of one made now.

    Args:
        device: what is probed.
        what: the probe's name, which is part of a file name.
        measure: makes the probe.
        is_busy: whether other programs disturb it; then its figures are used and not kept.
    """
    try:
        file = cache_folder() / "rates" / f"{what}-{_digest(device)}.json"
    except UnavailableError:  # no cache: the run says so where it needs one
        return Probed(measure(), now=True)
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing or damaged
        if 0 <= time.time() - file.stat().st_mtime < KEPT_SECONDS:
            return Probed([float(figure) for figure in json.loads(file.read_text(encoding="utf-8"))], now=False)
    figures, undisturbed = measure(), not is_busy()
    if undisturbed:
        with contextlib.suppress(OSError, UnavailableError), entry_made(file) as staging:
            staging.write_text(json.dumps(figures), encoding="utf-8")
    return Probed(figures, now=True)


def _digest(device: Device) -> str:
    """Of all that the figures depend on."""
    import torch

    boot = BOOT.read_text(encoding="ascii") if BOOT.exists() else ""
    known = [asdict(device), torch.__version__, torch.get_num_threads(), processors(), boot]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:24]
