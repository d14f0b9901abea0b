"""Whatever is damaged gives a text, with a warning where audio is missing, or a clear error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from conftest import DEMO, ROOT

import ark_asr_onnx

pytest.importorskip("resource")  # of POSIX
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc"
)

from . import cases as made  # noqa: E402
from .cases import Case  # noqa: E402
from .judge import Child, Judged, judge_all  # noqa: E402

SEED, JOBS = 16, 2


def wrong(kind: str, cases: Iterable[Case]) -> list[str]:
    """What was found, a line each."""
    judged = list(judge_all(kind, cases, JOBS))
    assert judged
    assert any(one.outcome == "transcript" for one in judged)
    return [f"{one.case.label}: {f.what}: {f.group}" for one in judged for f in one.findings]


def numbered(case: Callable[[int], Case], n: int) -> Iterable[Case]:
    return map(case, range(n))


def test_damaged_audio_is_heard_or_refused_and_what_is_missing_is_said() -> None:
    cases = made.audio_cases(SEED)
    assert wrong("audio", numbered(cases, len(cases.seeds) + 250)) == []


def test_a_damaged_native_package_is_opened_or_refused(tmp_path: Path) -> None:
    for name in made.package_files(DEMO):
        shutil.copy2(DEMO / name, tmp_path / name)
    assert wrong("native", numbered(made.PackageCases("native", SEED, tmp_path), 100)) == []


def test_a_damaged_published_package_is_opened_or_refused(tiny_published_package: Path) -> None:
    cases = made.PackageCases("published", SEED, tiny_published_package)
    assert wrong("published", numbered(cases, 60)) == []


def test_a_damaged_prepared_folder_costs_no_more_than_its_making(tmp_path: Path) -> None:
    ark_asr_onnx.prepare(DEMO, tmp_path, threads=1)
    assert wrong("prepared", numbered(made.PreparedCases(SEED, tmp_path), 40)) == []


def test_a_damaged_list_is_worked_through_or_refused() -> None:
    assert wrong("records", numbered(made.RecordCases(SEED), 100)) == []


def test_a_damaged_request_is_answered() -> None:
    for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(name)
    assert wrong("http", numbered(made.HttpCases(SEED), 150)) == []


@pytest.mark.parametrize("what", ["crash", "hang", "foreign", "memory", "output", "slow"])
def test_the_judge_sees_what_must_not_be(what: str, tmp_path: Path) -> None:
    child = Child("broken", tmp_path, idle_seconds=3.0)
    try:
        for does in (what, "nothing"):
            judged: Judged = child.judge(Case("broken", "", {}, {"does": does, "damage": ""}))
            assert [finding.what for finding in judged.findings] == ([what] if does == what else [])
    finally:
        child.close()


def heard(**how: object) -> dict[str, object]:
    """What a child tells of a way, all well but for ``how``."""
    return {
        "outcome": "transcript", "text": "a", "duration": 2.0, "warnings": [], "seconds": 0.1,
        "cpu_seconds": 0.1, "megabytes": 1.0, "written": "", **how,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "path", "other", "found"),
    [
        ("truncate", {}, {}, []),
        ("truncate", {"duration": 1.9}, {"duration": 1.9}, ["loss"]),
        ("truncate", {"duration": 1.9, "warnings": ["cut"]}, {"warnings": ["cut"]}, []),
        ("append", {}, {}, ["loss"]),
        ("append", {"warnings": ["more"]}, {"warnings": ["more"]}, []),
        ("append", {"duration": 2.5}, {}, []),
        ("join", {"duration": 1.5}, {}, ["loss"]),
        ("intact", {"warnings": ["odd"]}, {"warnings": ["odd"]}, ["alarm"]),
        ("flip", {}, {"text": "b"}, ["differs"]),
        ("flip", {"warnings": ["cut"]}, {}, ["differs"]),
        ("flip", {"outcome": "error", "message": ""}, {}, ["differs"]),
    ],
)
def test_missing_audio_and_differing_ways_are_seen(
    damage: str, path: dict[str, object], other: dict[str, object], found: list[str]
) -> None:
    from .judge import judged

    facts = {
        "damage": damage, "format": "WAV", "says_length": True, "is_single": True, "more": 9,
        "seconds": 2.0,
    }  # fmt: skip
    ways = {"path": heard(**path), "bytes": heard(**other)}
    findings = judged(Case("audio", "", {}, facts), ways, []).findings
    assert [finding.what for finding in findings] == found


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )


def test_a_long_run_is_a_table_and_its_findings_can_be_repeated(tmp_path: Path) -> None:
    done = run("fuzz.py", "--kind", "records", "--cases", 3, "--jobs", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| kind | cases | transcripts | errors | crash |" in done.stdout
    assert "| records | 3 |" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--transcriptions", 8),
        ("--hours", 0.01),
        ("--hours", 0.01, "--by", "stream"),
        ("--kills", 2, "--of", "batch"),
        ("--kills", 2, "--of", "prepare"),
    ],
)
def test_a_short_soak_is_flat_and_right(arguments: tuple[object, ...]) -> None:
    done = run("soak.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flat" in done.stdout or "0 wrong" in done.stdout
