"""How long the processes of a step talk to each other, and how much of that no computation hides.

A collective takes its bytes over the slowest link of a ring, and a latency for each step of the ring, as NCCL's own
tuning reckons it. It is hidden where it runs beside computation that does not wait for it: DDP's all-reduce beside the
rest of the last backward pass; with FSDP2 a layer's all-gather beside the layer before it, and its reduce-scatter
beside the next one. What is left out: that NCCL's kernels take a share of the GPU from the others.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from toolkit.planning.devices import Links
from toolkit.planning.trace import COLLECTIVES, Communication, Phase

ACHIEVED_LINK_SHARE = 0.8
"""Share of a link's published rate that large collectives reach, in a ring: 370 of 450 GB/s between 8 H100s.
https://github.com/NVIDIA/nccl-tests/issues/212"""
BASE_LATENCY = 8.4e-6
RING_STEP_LATENCY = {"nvlink": 3.4e-6, "pcie": 5.7e-6, "network": 14e-6}
TREE_STEP_LATENCY = {"nvlink": 4.0e-6, "pcie": 4.0e-6, "network": 14e-6}
"""Seconds, of NCCL's protocol for large messages: https://github.com/NVIDIA/nccl/blob/v2.27.3-1/src/graph/tuning.cc."""
DDP_BUCKET_BYTES, DDP_FIRST_BUCKET_BYTES = 25 * 2**20, 2**20
"""torch's defaults. The first bucket is small, so that the first all-reduce begins early."""


@dataclass(frozen=True)
class CommunicationTime:
    """Seconds of one step."""

    total: float
    """Of all collectives, one after the other."""
    exposed: float
    """How much longer they make the step."""


def how_reckoned(links: Links, hosts: int) -> str:
    """What the time of the collectives comes from, in words."""
    return f"a ring, at {ACHIEVED_LINK_SHARE:.0%} of {links.described(hosts)}"


def of_ddp(gradients: int, processes: int) -> Iterator[Communication]:
    """The all-reduces with which DistributedDataParallel ends the last backward pass of a step."""
    ranks = range(processes)
    first = min(gradients, DDP_FIRST_BUCKET_BYTES)
    for size in (first, *_cut(gradients - first, DDP_BUCKET_BYTES)):
        yield Communication("backward", "all-reduce", size, ranks)


def _cut(size: int, at_most: int) -> Iterator[int]:
    whole, rest = divmod(size, at_most)
    yield from (at_most for _ in range(whole))
    if rest:
        yield rest


def by_collective(collectives: Iterable[tuple[Communication, int]]) -> dict[str, int]:
    """The bytes of a step's collectives, each with its count: of what each process reduces, gathers or scatters."""
    totals = dict.fromkeys(map(str, COLLECTIVES), 0)
    for one, count in collectives:
        totals[one.collective] += one.size * count
    return {name: size for name, size in totals.items() if size}


def time_of(
    collectives: Iterable[tuple[Communication, int]],
    *,
    links: Links,
    passes: int,
    beside: Mapping[Phase, float],
) -> CommunicationTime:
    """How long the collectives of a step take, and how much of that is not hidden.

    Args:
        collectives: in the order of the step, each with its count.
        links: those of the devices.
        passes: how often a step goes through these phases.
        beside: seconds of a step's computation that they can run beside, by phase.
    """
    in_phase: dict[Phase, list[tuple[Communication, int]]] = {}
    for one, count in collectives:
        in_phase.setdefault(one.phase, []).append((one, count))
    total = exposed = 0.0
    for phase, those in in_phase.items():
        seconds = sum(seconds_of(one, links) * count for one, count in those)
        # What a phase cannot begin or end without: the first layer's weights, the last layer's gradients.
        edge = those[-1 if phase == "backward" else 0][0]
        waited = passes * seconds_of(edge, links)
        hidden = beside.get(phase, 0.0)
        total += seconds
        exposed += max(seconds - hidden, min(waited, seconds))
    return CommunicationTime(total, exposed)


def seconds_of(one: Communication, links: Links) -> float:
    """How long one collective takes."""
    processes = len(one.ranks)
    if processes == 1:
        return 0.0
    hosts, fewest = _spread(one.ranks, links.per_host)
    bandwidth = links.within_host
    if hosts > 1:  # a ring passes through each host by the ports of its processes there; other groups have the others
        bandwidth = min(bandwidth, links.between_hosts * fewest / links.per_host)
    rounds = 2 if one.collective == "all-reduce" else 1
    moved = rounds * one.size * (processes - 1) / processes
    return _latency(processes, hosts, rounds, links) + moved / (bandwidth * ACHIEVED_LINK_SHARE)


@functools.lru_cache(maxsize=8)
def _spread(ranks: range, per_host: int) -> tuple[int, int]:
    """On how many hosts a group is, and how many of its processes are on the host with the fewest."""
    on_host = Counter(rank // per_host for rank in ranks)
    return len(on_host), min(on_host.values())


def _latency(processes: int, hosts: int, rounds: int, links: Links) -> float:
    ring = (processes - hosts) * RING_STEP_LATENCY[links.kind] + (hosts - 1) * RING_STEP_LATENCY["network"]
    if rounds == 1:
        return BASE_LATENCY + ring
    depth = math.ceil(math.log2(hosts))
    tree = (processes / hosts - 1) * TREE_STEP_LATENCY[links.kind] + depth * TREE_STEP_LATENCY["network"]
    return BASE_LATENCY + 2 * min(ring, tree)
