"""The number of threads: the physical cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_DEFAULT_THREADS = 8  # decoding is limited by memory bandwidth; more threads only wait


def default_threads() -> int:
    """Physical cores in this process's affinity, at most its cgroup's quota and at most 8.

    Two threads on one core share its multipliers and its path to memory. If the system does not
    say which logical CPUs share a core (outside Linux), each logical CPU counts.
    """
    cpus = _allowed_cpus()
    cores = {_core(cpu, Path("/sys")) for cpu in cpus}
    quota = _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return max(1, int(min(len(cores), quota, _MAX_DEFAULT_THREADS)))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _core(cpu: int, sys: Path) -> str:
    """A name for the core of a logical CPU: the list of its threads, or the CPU itself."""
    threads = sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _text(threads) or f"cpu{cpu}"


def _quota(membership: Path, root: Path) -> float:
    """CPUs that the control groups (version 2 or 1) allow; infinity for no limit."""
    limits = [float("inf")]
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        base = root if version_2 else root / "cpu"
        folder = base / path.lstrip("/")
        # Each group is limited by those above it. In a container the path may be the host's.
        for group in [folder, *folder.parents]:
            limits.append(_limit_2(group) if version_2 else _limit_1(group))
            if group == base:
                break
    return min(limits)


def _limit_2(group: Path) -> float:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return float(quota) / float(period) if quota.isdigit() and period.isdigit() else float("inf")


def _limit_1(group: Path) -> float:
    quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    return float(quota) / float(period) if quota.isdigit() and period.isdigit() else float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
