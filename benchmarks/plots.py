"""Draw the pictures of ``results/`` from its tables, and curves from what ``compare.py`` wrote.

python benchmarks/plots.py [FILE.json] [--out benchmarks/results]

The tables are read from ``results/*.md``; a picture carries their checksum, which
``tests/test_pictures.py`` compares. ``lengths.svg`` and ``memory.svg`` have too many figures for a
table: they need the file of ``compare.py --out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, str]
Table = list[Row]

OURS, THEIRS, THIRD, PALE = "#1f6fb8", "#c2542d", "#7a4fa3", "#93bfe6"
PAPER, INK, GREY = "#ffffff", "#1f2328", "#818b98"
# The same where the reader's system is dark.
_DARK = {
    OURS: "#58a6ff", THEIRS: "#f0883e", THIRD: "#c297f5", PALE: "#2f5f92",
    PAPER: "#0d1117", INK: "#e6edf3", GREY: "#8b949e",
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ark-asr",  # the same file from the same figures
    "svg.fonttype": "none",  # text stays text
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 2,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


def bars(figure: Figure, table: Table) -> None:
    """How many times as fast, against the published package and other engines."""
    wanted = ("decode", "prefill", "encoder", "whole clip")
    rows = [r for r in table if r["what"].startswith(wanted) and "roofline" not in r["what"]]
    axes = figure.subplots()
    for i, row in enumerate(rows):
        last = row["what"].split(", ")[-1]
        is_other = last != row["what"] and not re.match(r"\d|rows", last)
        colour = GREY if is_other else PALE if "everywhere" in last else OURS
        axes.barh(i, number(row["ratio"]), color=colour)
        beside(axes, i, row["ratio"])
        if row["target"]:
            mark(axes, i, number(row["target"]))
    name_rows(axes, [row["what"] for row in rows])
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xlabel("times as fast; right of 1, ours is faster")
    for label, colour in (
        ("against the published package", OURS),
        ("the same, our fastest recipe everywhere", PALE),
        ("against the engine in the row", GREY),
    ):
        axes.barh(0, 0, color=colour, label=label)
    axes.plot([], [], color=THEIRS, linewidth=3, label="target")
    figure.legend(loc="outside lower center", ncols=2)


def hotwords(figure: Figure, demo: Table, real: Table) -> None:
    """Expected words that are misheard, and other words that are wrong, by the strength."""
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (name, rows) in enumerate((("Demo", demo), ("Real network", real))):
        strengths = [0.0 if row["strength"] == "none" else number(row["strength"]) for row in rows]
        for label, colour, cells in (
            ("each clip has a list of its own", OURS, ("each clip: misheard", "elsewhere")),
            ("one list for all clips", THEIRS, ("for all: misheard", "elsewhere 2")),
        ):
            for axes, cell in zip(panels[:, column], cells, strict=True):
                values = [share(row[cell]) for row in rows]
                axes.plot(strengths, values, "o-", color=colour, markersize=5, label=label)
        for axes in panels[:, column]:
            default(axes, 2)
        panels[0, column].set_title(name)
        panels[1, column].set_xlabel("strength, nats a word")
    panels[0, 0].set_ylabel("expected words\nmisheard, %")
    panels[1, 0].set_ylabel("other words\nwrong, %")
    for axes in panels[:, 0]:
        axes.set_ylim(bottom=0)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def word_times(figure: Figure, demo: Table, real: Table) -> None:
    """How near the starts and ends of words are to the true ones."""
    axes = figure.subplots()
    rows = [*demo, *real]
    for i, row in enumerate(rows):
        begin = 0.0
        for column, colour in (("within 0.1 s", OURS), ("within 0.2 s", PALE)):
            end = number(row[column])
            axes.barh(i, end - begin, left=begin, color=colour, label=column if not i else None)
            begin = end
            if target := re.search(r"\((\d+)", row[column]):
                mark(axes, i, float(target[1]))
        beside(axes, i, f"{number(row['median']):.0f} ms")
    name_rows(axes, [re.sub(r"(.) \(.*|(?<=r) (?=with)", r"\1\n", row[""]).strip() for row in rows])
    axes.annotate("median", (1, 1), xycoords="axes fraction", xytext=(8, 0), va="bottom",
                  textcoords="offset points", fontweight="bold")  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_xlabel("starts and ends of words so near to the true ones, %")
    axes.plot([], [], color=THEIRS, linewidth=3, label="targets")
    figure.legend(loc="outside lower center", ncols=3)


def recipes(figure: Figure, closeness: Table, times: Table, engines: Table) -> None:
    """Error and time of our recipes, and of other engines with the same weights."""
    error = "error of the audio embeddings, median clip"
    errors = {row["package"].split(" ")[0]: number(row[error]) for row in closeness}
    recipes = [
        (row["package"], errors[row["package"].split(" ")[0]], number(row["15 s"])) for row in times
    ]
    peers = [
        (row["engine"], number(row["its own error"]), number(row["encoder, padded to 30 s"]))
        for row in engines
    ]
    panels = figure.subplots(2, 2, sharey="row", height_ratios=(len(recipes), len(peers)))
    for line, rows in enumerate((recipes, peers)):
        for axes, values, form in (
            (panels[line, 0], [e for _, e, _ in rows], "{:.1f} %"),
            (panels[line, 1], [t for _, _, t in rows], "{:.2f}" + (" s" if line else "")),
        ):
            colours = [OURS if name.startswith(("auto", "ours")) else GREY for name, *_ in rows]
            drawn = axes.barh(range(len(rows)), values, color=colours)
            axes.bar_label(drawn, [form.format(v) for v in values], padding=4)
            axes.margins(x=0.3)
            axes.spines["bottom"].set_visible(False)
            axes.set_xticks([])
        name_rows(panels[line, 0], [name.replace(", ", ",\n") for name, *_ in rows])
        panels[line, 1].tick_params(axis="y", length=0)
    for axes, title in zip(
        panels.flat,
        ("Our recipes: error", "time, 15 s (rows7 = 1)", "Engines: error", "time, 30 s"),
        strict=True,
    ):
        axes.set_title(title)
    panels[1, 0].set_xlabel("shorter bars are better")


def windows(figure: Figure, table: Table) -> None:
    """Errors of the demo on ten minutes, by the length of the longest window."""
    axes = figure.subplots()
    seconds = [number(row["longest window"]) for row in table]
    for column, colour in (
        ("no pauses, as it was before", GREY),
        ("WER, no pauses at all", THEIRS),
        ("WER, pauses of 0.8 to 2 s", OURS),
    ):
        values = [number(row[column]) for row in table]
        axes.plot(seconds, values, "o-", color=colour, label=column.removeprefix("WER, "))
    axes.set_xticks(seconds)
    axes.set_xlabel("longest window, s")
    axes.set_ylabel("word error rate, %")
    axes.set_ylim(bottom=0)
    default(axes, 15)
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)


def lengths(figure: Figure, record: dict[str, Any]) -> None:
    """Cost of the stages, by the length of the clip."""
    axes = figure.subplots()
    rows = record["findings"]["lengths"]
    seconds = [row["seconds"] for row in rows]
    # About three tokens a second of speech.
    for label, colour, values in (
        ("encoder", OURS, [1e3 * row["encode"] / row["seconds"] for row in rows]),
        ("prompt", THEIRS, [1e3 * row["prefill"] / row["seconds"] for row in rows]),
        ("text, 3 tokens for each second", THIRD, [1e3 * 3 * row["step"] for row in rows]),
    ):
        axes.plot(seconds, values, "o-", color=colour, label=label)
    axes.set_xlabel("length of the clip, s")
    axes.set_ylabel("time for each second\nof audio, ms")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3)


def memory(figure: Figure, record: dict[str, Any]) -> None:
    """Memory of a process that transcribes 30 s of audio (96 tokens), over time."""
    axes = figure.subplots()
    for name, label, colour in (
        ("published", "published package", THEIRS),
        ("unprepared", "ours", THIRD),
        ("native", "ours, prepared", OURS),
    ):
        series = record["findings"]["memory"][name]
        times = [t for t, _, _ in series]
        axes.plot(times, [a + f for _, a, f in series], color=colour, label=label)
        axes.plot(times, [a for _, a, _ in series], color=colour, linestyle=":")
    axes.plot([], [], color=GREY, label="resident, files included")
    axes.plot([], [], color=GREY, linestyle=":", label="anonymous, without files")
    axes.set_xlabel("seconds since the process started")
    axes.set_ylabel("memory, MB")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)


def number(cell: str) -> float:
    """The first number of a cell."""
    found = re.search(r"\d+(?:\.\d+)?", cell.replace(",", ""))
    if found is None:
        raise SystemExit(f"there is no number in {cell!r}")
    return float(found[0])


def share(cell: str) -> float:
    """``3 of 12`` in percent."""
    part, whole = cell.split(" of ")
    return 100 * float(part) / float(whole)


def name_rows(axes: Axes, names: list[str]) -> None:
    """The names of bars, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def beside(axes: Axes, row: int, words: str) -> None:
    """Words at the right end of a row."""
    axes.annotate(words, (1, row), xycoords=("axes fraction", "data"), xytext=(8, 0),
                  textcoords="offset points", va="center")  # fmt: skip


def mark(axes: Axes, row: int, target: float) -> None:
    """The target of a row."""
    axes.plot([target] * 2, [row - 0.42, row + 0.42], color=THEIRS, linewidth=3)


def default(axes: Axes, x: float) -> None:
    """Where the default is."""
    axes.axvline(x, color=GREY, linewidth=1, linestyle=":")
    axes.annotate("default", (x, 0), xycoords=("data", "axes fraction"), xytext=(4, 4),
                  textcoords="offset points", color=GREY, fontsize=10)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """How a picture is drawn from the tables of a page, and how high it is, in inches."""

    draw: Callable[..., None]
    height: float
    page: str = ""
    columns: tuple[tuple[str, ...], ...] = ()  # of tables

    def tables(self) -> list[Table]:
        """The tables that have these columns, in the order of the page."""
        text = (RESULTS / self.page).read_text(encoding="utf-8")
        blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
        tables = [_table(block) for block in blocks]
        found: list[Table] = []
        for columns in self.columns:
            fit = [t for t in tables if t and set(columns) <= set(t[0]) and t not in found]
            if not fit:
                raise SystemExit(f"{RESULTS / self.page}: no table has {', '.join(columns)}")
            found.append(fit[0])
        return found

    def checksum(self) -> str:
        """That of the tables."""
        return hashlib.sha256(json.dumps(self.tables()).encode()).hexdigest()[:16]


def _table(block: str) -> Table:
    """Rows of a Markdown table, cells without emphasis; a column's second name ends in 2."""
    cells = [
        [re.sub(r"[*`\\]", "", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in block.splitlines()
    ]
    head = [f"{c} 2" if c in cells[0][:i] else c for i, c in enumerate(cells[0])]
    return [dict(zip(head, row, strict=True)) for row in cells[2:]]


_HEARD = ("strength", "each clip: misheard", "for all: misheard")
_BORDERS = ("words", "median", "within 0.1 s", "within 0.2 s")
PICTURES = {
    "bars": Picture(bars, 6.4, "README.md", (("what", "ratio", "target"),)),
    "hotwords": Picture(hotwords, 5, "hotwords.md", (_HEARD, _HEARD)),
    "recipes": Picture(
        recipes, 5.2, "real_int8.md",
        (
            ("package", "error of the audio embeddings, median clip"),
            ("package", "15 s", "products"),
            ("engine", "encoder, padded to 30 s", "its own error"),
        ),
    ),
    "windows": Picture(windows, 3.8, "long_form.md", (("longest window",),)),
    "word_times": Picture(word_times, 4.2, "word_times.md", (_BORDERS, _BORDERS)),
}  # fmt: skip
CURVES = {"lengths": Picture(lengths, 3.8), "memory": Picture(memory, 4.2)}


def save(picture: Picture, path: Path, *drawn: object, identifier: str | None = None) -> None:
    """Draw and write a picture, which is dark where the reader's system is."""
    figure = Figure(figsize=(7, picture.height), layout="constrained")
    picture.draw(figure, *drawn)
    figure.savefig(path, metadata={"Date": None, "Creator": None, "Identifier": identifier})
    rules = [
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important; }}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    ]
    style = "\n".join(("@media (prefers-color-scheme: dark) {", *rules, "}"))
    title = (picture.draw.__doc__ or "").strip().rstrip(".")
    text = path.read_text(encoding="utf-8").replace("</style>", f"\n{style}\n</style>", 1)
    path.write_text(
        re.sub(r"(<svg [^>]*>)", rf"\1\n <title>{title}</title>", text, count=1), "utf-8"
    )
    print(path)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path, nargs="?", help="of compare.py --out: for the curves")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    matplotlib.rcParams.update(_STYLE)
    for name, picture in PICTURES.items():
        place = options.out / f"{name}.svg"
        save(picture, place, *picture.tables(), identifier=picture.checksum())
    if options.record:
        record = cast("dict[str, Any]", json.loads(options.record.read_text()))
        for name, picture in CURVES.items():
            save(picture, options.out / f"{name}.svg", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
