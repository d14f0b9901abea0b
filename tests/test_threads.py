"""The default number of threads, on made-up file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ark_asr_onnx.model import threads


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    siblings = "devices/system/cpu/cpu{}/topology/thread_siblings_list"
    write(tmp_path, {siblings.format(i): f"{i % 2},{i % 2 + 2}\n" for i in range(4)})
    assert len({threads._core(cpu, tmp_path) for cpu in range(4)}) == 2
    assert len({threads._core(cpu, tmp_path) for cpu in (0, 2)}) == 1
    assert len({threads._core(cpu, tmp_path) for cpu in (7, 8)}) == 2  # unknown to the system


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({}, "0::/\n", float("inf")),
        ({"cpu.max": "max 100000\n"}, "0::/\n", float("inf")),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 2.0),
        ({"cpu.max": "100000 100000"}, "0::/docker/unseen/here\n", 1.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/\n1:name=systemd:/\n", float("inf")),
        ({"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"},
         "4:cpu,cpuacct:/x\n", 0.5),
        ({"cpu.max": "damaged"}, "0::/\n", float("inf")),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(
    tmp_path: Path, files: dict[str, str], membership: str, quota: float
) -> None:
    write(tmp_path, {"groups/" + name: text for name, text in files.items()} | {"own": membership})
    assert threads._quota(tmp_path / "own", tmp_path / "groups") == quota


def test_less_than_one_cpu_is_still_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_quota", lambda *_: 0.5)
    assert threads.default_threads() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_the_affinity_of_the_process_counts() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert threads.default_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_many_cores_are_not_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_allowed_cpus", lambda: set(range(1000, 1064)))
    monkeypatch.setattr(threads, "_quota", lambda *_: float("inf"))
    assert threads.default_threads() == 8
