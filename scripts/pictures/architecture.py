"""Draw how a checkpoint becomes a package, and how a package turns audio into text.

python scripts/pictures/architecture.py [--out scripts/pictures/architecture.svg]

The words are those of ``ARCHITECTURE.md``. Each box has a title, a remark, and the module or the
file of the package that does it; ``tests/test_pictures.py`` asks whether these exist.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).with_suffix(".svg")

WIDTH = 720
_MARGIN, _PADDING, _GAP, _HEIGHT = 12, 16, 28, 76
_BOX = (WIDTH - 2 * _MARGIN - 2 * _PADDING - 2 * _GAP) / 3  # width of a box; three are a row
_LEFT = _MARGIN + _PADDING
_RIGHT = WIDTH - _LEFT

_STYLE = """\
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
text { font-size: 14px; fill: #1f2328; }
.name { font-size: 17px; font-weight: 600; }
.head { font-size: 19px; font-weight: 700; }
.quiet { fill: #59636e; }
.file { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.file { font-size: 12.5px; }
.page { fill: #ffffff; }
.box { fill: #ffffff; stroke-width: 1.5; }
.maybe { stroke-dasharray: 5 4; }
.band { stroke: none; }
.pool { fill: none; stroke-width: 1.5; stroke-dasharray: 2 3; }
.arrow { fill: none; stroke: #59636e; stroke-width: 1.8; }
.tip { fill: #59636e; }
.export.band { fill: #fff4e0; } .export.box { stroke: #b26a00; } .export.file { fill: #8a4b00; }
.package.band { fill: #e9f6ec; } .package.file { fill: #1a6b32; }
.runtime.band { fill: #e8f1fc; } .runtime.box, .runtime.pool { stroke: #1f6fb8; }
.runtime.file { fill: #0b5394; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.quiet { fill: #9da7b3; }
.page { fill: #0d1117; }
.box { fill: #161b22; }
.arrow { stroke: #9da7b3; }
.tip { fill: #9da7b3; }
.export.band { fill: #2b2210; } .export.box { stroke: #d29922; } .export.file { fill: #e3b341; }
.package.band { fill: #10261a; } .package.file { fill: #7ee787; }
.runtime.band { fill: #0f2137; } .runtime.box, .runtime.pool { stroke: #58a6ff; }
.runtime.file { fill: #79c0ff; }
}
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A step: its name, what it does, and where that is."""

    name: str
    remark: str
    file: str
    is_optional: bool = False


EXPORT = (
    Box("checkpoint", "a folder or a hub's id", "fetch.py"),
    Box("read", "configuration and tensors", "checkpoint.py"),
    Box("listen in torch", "what the reference hears", "oracle.py"),
    Box("calibrate", "the cost of each recipe", "calibrate.py"),
    Box("trace", "graphs in fp32", "trace.py"),
    Box("choose", "a recipe for each matrix", "choose.py"),
    Box("store", "graphs in INT8", "quantize.py"),
    Box("find heads", "that tell times of words", "heads.py"),
    Box("prove", "the runtime against torch", "verify.py"),
)
PACKAGE = (
    ("ark_manifest.json", "what is in the folder, with checksums"),
    ("audio.onnx", "log-mel in, audio embeddings out"),
    ("audio_narrow.onnx", "the same for old CPUs (optional)"),
    ("decoder.onnx", "embeddings in, logits out, with a cache"),
    ("prefill.onnx", "reads long prompts faster (optional)"),
    ("align.onnx", "tells when each word was said (optional)"),
    ("embedding_fp32.data", "a row for each token"),
    ("prefix_fp32.data", "the cache after the prompt's first tokens"),
    ("tokenizer.json", "turns ids into text"),
    ("REPORT.md", "how near the package is to the checkpoint"),
)
AUDIO = (
    Box("source", "blocks of mono at 16 kHz", "audio/sources.py"),
    Box("detector", "finds speech", "audio/vad.py"),
    Box("windows", "cut at pauses, up to 15 s", "audio/split.py"),
)
POOL = (
    Box("log-mel", "a frame each 10 ms", "audio/mel.py"),
    Box("encode", "audio embeddings", "audio.onnx"),
    Box("prefill", "the prompt fills a slot", "decoder.onnx"),
    Box("step", "a token for every slot", "decoder.onnx"),
    Box("second look", "for expected words", "decoding/second_look.py", is_optional=True),
    Box("align", "when each word was said", "align.onnx", is_optional=True),
)
RESULTS = (
    Box("transcript", "for Python", "transcript.py"),
    Box("files", "txt, srt, vtt, tsv, json", "writers.py"),
    Box("HTTP answers", "bodies or events", "server/answers.py"),
)


class Drawing:
    """Shapes from the top of the picture down; ``y`` is where the next one begins."""

    def __init__(self) -> None:
        self.y = float(_MARGIN)
        self.shapes: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """A line of text."""
        self.shapes.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A rectangle with round corners."""
        self.shapes.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            'rx="8"/>'
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """An arrow along points."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        self.shapes.append(f'<path class="arrow" marker-end="url(#tip)" d="M{path}"/>')

    def row(self, boxes: tuple[Box, ...], room: str, *, arrows: bool = True) -> None:
        """Three boxes side by side."""
        for i, box in enumerate(boxes):
            x = _LEFT + i * (_BOX + _GAP)
            kind = f"{room} box maybe" if box.is_optional else f"{room} box"
            self.rect(x, self.y, _BOX, _HEIGHT, kind)
            self.text(x + _BOX / 2, self.y + 25, box.name, "name", "middle")
            self.text(x + _BOX / 2, self.y + 45, box.remark, "quiet", "middle")
            self.text(x + _BOX / 2, self.y + 65, box.file, f"{room} file", "middle")
            if arrows and i:
                self.arrow((x - _GAP, self.y + _HEIGHT / 2), (x - 3, self.y + _HEIGHT / 2))
        self.y += _HEIGHT

    def turn(self) -> None:
        """From the last box of a row to the first one of the next."""
        last, first = _RIGHT - _BOX / 2, _LEFT + _BOX / 2
        middle = self.y + _GAP / 2
        self.arrow((last, self.y), (last, middle), (first, middle), (first, self.y + _GAP - 3))
        self.y += _GAP

    def rows(self, boxes: tuple[Box, ...], room: str) -> None:
        """Rows that are read like lines of text."""
        for i in range(0, len(boxes), 3):
            if i:
                self.turn()
            self.row(boxes[i : i + 3], room)

    def bar(self, name: str, remark: str, file: str, room: str) -> None:
        """A box as wide as three."""
        self.rect(_LEFT, self.y, _RIGHT - _LEFT, 42, f"{room} box")
        self.shapes.append(
            f'<text x="{WIDTH / 2:g}" y="{self.y + 27:g}" text-anchor="middle">'
            f'<tspan class="name">{escape(name)}</tspan>'
            f'<tspan class="quiet" dx="10">{escape(remark)}</tspan>'
            f'<tspan class="{room} file" dx="10">{escape(file)}</tspan></text>'
        )
        self.y += 42

    def down(self, x: float = WIDTH / 2) -> None:
        """An arrow to what comes below."""
        self.arrow((x, self.y), (x, self.y + _GAP - 3))
        self.y += _GAP

    def begin(self, title: str, remark: str) -> tuple[int, float]:
        """Open a band, which :meth:`end` puts behind what came since."""
        opened = len(self.shapes), self.y
        self.text(_LEFT, self.y + 30, title, "head")
        self.text(_RIGHT, self.y + 30, remark, "quiet", "end")
        self.y += 46
        return opened

    def end(self, opened: tuple[int, float], room: str) -> None:
        """Close a band."""
        place, top = opened
        self.y += _PADDING
        after = self.shapes[place:]
        del self.shapes[place:]
        self.rect(_MARGIN, top, WIDTH - 2 * _MARGIN, self.y - top, f"{room} band")
        self.shapes += after


def draw() -> str:
    """The picture as SVG."""
    page = Drawing()
    band = page.begin("ark-onnx-export", "export/; needs torch")
    page.rows(EXPORT, "export")
    page.end(band, "export")
    page.down()

    band = page.begin("a package", "a folder; runtime/PACKAGE.md specifies it")
    for name, remark in PACKAGE:
        page.text(_LEFT, page.y + 14, name, "package file")
        page.text(_LEFT + 180, page.y + 14, remark)
        page.y += 23
    page.end(band, "package")
    page.down()

    band = page.begin("ark_asr_onnx", "runtime/; numpy and onnxruntime, no torch")
    page.bar("callers", "Python, the command ark-asr, HTTP", "transcriber.py", "runtime")
    page.down(_LEFT + _BOX / 2)
    page.row(AUDIO, "runtime")
    page.down(_RIGHT - _BOX / 2)
    page.bar(
        "lines", "one for each caller: its windows wait in order", "decoding/line.py", "runtime"
    )
    page.down()
    top = page.y
    page.text(_LEFT + 10, page.y + 22, "pool", "name")
    remark = "one thread computes for all callers, slots step together"
    page.text(_LEFT + 60, page.y + 22, remark, "quiet")
    page.text(_RIGHT - 10, page.y + 22, "decoding/pool.py", "runtime file", "end")
    page.y += 36
    page.rows(POOL, "runtime")
    page.y += 10
    page.rect(_LEFT - 8, top, _RIGHT - _LEFT + 16, page.y - top, "runtime pool")
    page.down()
    page.bar("segments", "text with times, in the order of the audio", "decoding/job.py", "runtime")
    for column in range(3):
        x = _LEFT + _BOX / 2 + column * (_BOX + _GAP)
        page.arrow((x, page.y), (x, page.y + _GAP - 3))
    page.y += _GAP
    page.row(RESULTS, "runtime", arrows=False)
    page.end(band, "runtime")

    height = page.y + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" role="img">\n'
        "<title>From a checkpoint to a package, and from audio to text</title>\n"
        f"<style>\n{_STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" '
        'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        '<path class="tip" d="M0 0 L8 4 L0 8 Z"/></marker></defs>\n'
        f'<rect class="page" width="{WIDTH}" height="{height:g}" rx="10"/>\n'
        + "\n".join(page.shapes)
        + "\n</svg>\n"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    options.out.write_text(draw(), encoding="utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
