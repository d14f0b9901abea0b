"""Damaged inputs for a long time: does anything crash, hang, grow, or silently lose audio?

    python benchmarks/fuzz.py --minutes 60 [--kind audio|package|records|http|all] [--seed 0]
        [--cases N] [--jobs 2] [--out fuzz-findings]
    python benchmarks/fuzz.py --repeat fuzz-findings/audio-0-1234

Inputs are made and judged as in ``tests/attacks``, whose short run has the same cases; texts have
at most 8 tokens, for speed. ``package`` is the demo, with and without a prepared folder, and a tiny
package of the published layout. The kinds share the time, and a kind ends early after ``--cases``.
Findings are written into ``--out``, with the smallest inputs of each group. Exit status 1 if there
are any.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("runtime", "export", "benchmarks", "tests")]

from attacks import cases as made  # noqa: E402  (the source roots come first)
from attacks.cases import Case  # noqa: E402
from attacks.judge import Child, Finding, Judged, judge_all  # noqa: E402
from attacks.seeds import DEMO  # noqa: E402

KINDS = {
    "audio": ("audio",),
    "package": ("native", "published", "prepared"),
    "records": ("records",),
    "http": ("http",),
}
_FIGURES = ("crash", "hang", "foreign", "slow", "memory", "output", "differs", "loss", "alarm")
_KEPT = 3  # inputs of a group


@dataclass
class Tally:
    """The results of the cases of one kind."""

    n: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)  # cases with such a finding
    groups: dict[tuple[str, str], list[tuple[int, int, Judged, Finding]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    sizes: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: float = 0.0

    def add(self, number: int, judged: Judged) -> None:
        """Count a case, and keep it if it is among the smallest of its group."""
        self.n += 1
        self.outcomes[judged.outcome] += 1
        self.slowest = max(self.slowest, judged.cpu_seconds)
        self.largest = max(self.largest, judged.megabytes)
        self.findings.update({finding.what for finding in judged.findings})
        size = sum(len(content) for content in judged.case.files.values())
        for finding in judged.findings:
            key = (finding.what, finding.group)
            self.sizes[key] += 1
            kept = self.groups[key]
            kept.append((size, number, judged, finding))
            kept.sort(key=lambda item: item[:2])
            del kept[_KEPT:]


def base_of(kind: str, work: Path) -> Path:
    """An intact package of a layout, or a prepared folder of the demo, made if needed."""
    target = work / kind
    if target.exists():
        return target
    if kind == "native":
        for name in made.package_files(DEMO):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(DEMO / name, target / name)
    elif kind == "prepared":
        import ark_asr_onnx

        ark_asr_onnx.prepare(DEMO, target, threads=1)
    else:
        from make_checkpoint import make_checkpoint

        from ark_onnx_export.cli import main as export

        checkpoint = make_checkpoint(work / "checkpoint", seed=0)
        status = export(["--ckpt", str(checkpoint), "--out", str(target), "--layout", "published",
                         "--quiet"])  # fmt: skip
        if status:
            raise SystemExit(f"the published package could not be made: status {status}")
    return target


def cases_of(kind: str, seed: int, work: Path) -> Callable[[int], Case]:
    """A function that gives a case by its number."""
    if kind == "audio":
        return made.audio_cases(seed, variants=4)
    if kind == "records":
        return made.RecordCases(seed)
    if kind == "http":
        return made.HttpCases(seed)
    folder = base_of(kind, work)
    if kind == "prepared":
        return made.PreparedCases(seed, folder)
    return made.PackageCases(kind, seed, folder)


def fuzz(kind: str, options: argparse.Namespace, seconds: float, work: Path) -> Tally:
    """Run cases of one kind until the time or their number is reached."""
    case, tally, until = cases_of(kind, options.seed, work), Tally(), time.monotonic() + seconds
    numbers: dict[int, int] = {}

    def until_then() -> Iterator[Case]:
        number = options.first
        while time.monotonic() < until and (
            options.cases is None or number < options.first + options.cases
        ):
            made_one = case(number)
            numbers[id(made_one)] = number
            yield made_one
            number += 1

    for judged in judge_all(kind, until_then(), options.jobs):
        number = numbers.pop(id(judged.case))
        tally.add(number, judged)
        if tally.n % 1000 == 0:
            print(f"{kind}: {tally.n} cases, {sum(tally.findings.values())} findings",
                  file=sys.stderr, flush=True)  # fmt: skip
    return tally


def write(tally: Tally, kind: str, options: argparse.Namespace) -> None:
    """Write the smallest inputs of each group, and their findings."""
    for group in tally.groups.values():
        for _, number, judged, finding in group:
            folder = options.out / f"{kind}-{options.seed}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "files").mkdir(parents=True)
            places: dict[str, str] = {}
            for name, content in judged.case.files.items():
                if isinstance(content, bytes):
                    (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / "files" / name).write_bytes(content)
                else:
                    places[name] = content
            case = {"kind": kind, "label": judged.case.label, "places": places,
                    "facts": judged.case.facts}  # fmt: skip
            (folder / "case.json").write_text(json.dumps(case, indent=2), "utf-8")
            lines = [judged.case.label, f"python benchmarks/fuzz.py --repeat {folder}", ""]
            lines += [f"{f.what}: {f.group}\n{f.detail}\n" for f in judged.findings]
            (folder / "finding.txt").write_text("\n".join(lines), "utf-8", "backslashreplace")
            del finding


def repeat(folder: Path, work: Path) -> int:
    """Run one case again, from its written folder."""
    case = json.loads((folder / "case.json").read_text("utf-8"))
    kind, facts = case["kind"], case["facts"]
    files: dict[str, bytes | str] = dict(case["places"])
    for path in (folder / "files").rglob("*"):
        if path.is_file():
            files[str(path.relative_to(folder / "files"))] = path.read_bytes()
    if "base" in facts:
        facts["base"] = str(base_of(kind, work))
    child = Child(kind, work)
    try:
        judged = child.judge(Case(kind, case["label"], files, facts))
    finally:
        child.close()
    print(case["label"])
    for way, found in judged.ways.items():
        print(f"{way}: {found}")
    for finding in judged.findings:
        print(f"{finding.what}: {finding.group}\n{finding.detail}")
    return int(bool(judged.findings))


def table(tallies: dict[str, Tally]) -> str:
    """A Markdown table with a row for each kind."""
    names = ("cases", "transcripts", "errors", *_FIGURES, "slowest, s", "largest, MB")
    lines = [f"| kind | {' | '.join(names)} |", f"| --- |{' --: |' * len(names)}"]
    for kind, tally in tallies.items():
        figures = [tally.n, tally.outcomes["transcript"], tally.outcomes["error"]]
        figures += [tally.findings[name] for name in _FIGURES]
        cells = [*map(str, figures), f"{tally.slowest:.1f}", f"{tally.largest:.0f}"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=1.0, help="of all kinds together")
    add("--kind", choices=(*KINDS, "all"), default="all")
    add("--seed", type=int, default=0)
    add("--first", type=int, default=0, help="number of the first case")
    add("--cases", type=int, help="at most so many of each kind")
    add("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    add("--out", type=Path, default=Path("fuzz-findings"))
    add("--repeat", type=Path, metavar="FOLDER", help="one case that was written there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if options.repeat is not None:
            return repeat(options.repeat, Path(folder))
        kinds = [k for name, some in KINDS.items() if options.kind in (name, "all") for k in some]
        tallies: dict[str, Tally] = {}
        for kind in kinds:
            seconds = 60 * options.minutes / len(kinds)
            tallies[kind] = fuzz(kind, options, seconds, Path(folder))
            write(tallies[kind], kind, options)
    print(table(tallies))
    n = 0
    for kind, tally in tallies.items():
        for (what, group), size in tally.sizes.most_common():
            number = tally.groups[what, group][0][1]
            print(f"{kind}: {what}, {size} times, for one {options.out}/{kind}-{options.seed}-"
                  f"{number}: {group}")  # fmt: skip
            n += size
    return int(n > 0)


if __name__ == "__main__":
    sys.exit(main())
