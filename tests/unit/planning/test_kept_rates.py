"""Probes of the machine: what is kept of them for the next start, for how long, and what a busy machine changes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.api import Device
from toolkit.planning import kept_rates, roofline
from toolkit.planning.kept_rates import KEPT_SECONDS, kept

PROCESSOR = Device("cpu", "a processor", 2**33)


class Probe:
    """Counts how often it is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> list[float]:
        self.made += 1
        return [1.5e9, float(self.made)]

    def of(self, device: Device = PROCESSOR, *, busy: bool = False) -> list[float]:
        return kept(device, "memory", self, is_busy=lambda: busy).figures


def age(cache: Path, seconds: float) -> None:
    for file in (cache / "rates").iterdir():
        past = file.stat().st_mtime - seconds
        os.utime(file, (past, past))


def test_the_next_start_probes_nothing_until_a_day_has_passed(cache: Path) -> None:
    probe = Probe()
    assert [probe.of(), probe.of()] == [[1.5e9, 1.0]] * 2
    age(cache, KEPT_SECONDS - 60)
    assert (probe.of(), probe.made) == ([1.5e9, 1.0], 1)
    age(cache, 120)
    assert (probe.of(), probe.made) == ([1.5e9, 2.0], 2)


def test_another_device_another_boot_and_other_threads_are_probed_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    probe = Probe()
    probe.of()
    probe.of(replace(PROCESSOR, name="another"))
    assert probe.made == 2
    threads = torch.get_num_threads()
    monkeypatch.setattr("torch.get_num_threads", lambda: threads + 1)
    probe.of()
    assert probe.made == 3
    monkeypatch.undo()
    monkeypatch.setenv("TOOLKIT_CACHE", str(cache))
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(kept_rates, "BOOT", tmp_path / "boot_id")
    probe.of()
    assert probe.made == 4


def test_what_other_programs_disturbed_is_not_kept(cache: Path) -> None:
    probe = Probe()
    assert [probe.of(busy=True), probe.of(), probe.of(busy=True)] == [[1.5e9, 1.0], [1.5e9, 2.0], [1.5e9, 2.0]]


@pytest.mark.parametrize("content", ["", "{", '["fast"]', "17"])
def test_a_damaged_file_is_replaced(cache: Path, content: str) -> None:
    probe = Probe()
    probe.of()
    (file,) = (cache / "rates").iterdir()
    file.write_text(content)
    assert [probe.of(), probe.of()] == [[1.5e9, 2.0]] * 2


def test_a_cache_that_cannot_be_written_costs_only_the_probe(cache: Path) -> None:
    cache.write_text("a file, not a folder")
    probe = Probe()
    assert [probe.of(), probe.of()] == [[1.5e9, 1.0], [1.5e9, 2.0]]


def test_a_machine_that_was_busy_while_it_was_measured_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROBE_SECONDS", "BUSY_PROBE_SECONDS"):
        monkeypatch.setattr(roofline, name, 0.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    roofline.product_rate.cache_clear()
    told = "busy (load 9.0 on 2 cores): the time may be up to 5.0 times shorter"
    # Once a quiet machine has been measured, its figures are those of a busy one, too.
    for load, busy in ((9.0, True), (1.2, False), (9.0, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, load, load))
        source = roofline.measured.__wrapped__(PROCESSOR).source
        assert (told in source) == ("busy" in source) == busy
