"""Run the first commands of the README and the manual, and draw the terminal that shows them.

python scripts/pictures/terminal.py [--out scripts/pictures/terminal.svg]

Nothing in the picture is typed by hand but the commands. rich (of the extra ``dev``) draws.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_suffix(".svg")
# Each is short enough for a line of the picture; \ goes on in the next one.
COMMANDS = (
    "python infer_ark_audio_onnx.py \\\n    --audio models/demo/samples/an68-meht-b.flac",
    "ark-asr transcribe --model models/demo models/demo/samples/*.flac",
    "ark-asr transcribe --model models/demo --format vtt --inline-times \\\n"
    "    models/demo/samples/an149-fclc-b.flac",
    "ark-asr inspect --model models/demo | head -n 5",
)
WIDTH = 82  # columns
_THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [(1, 4, 9), (255, 123, 114), (126, 231, 135), (242, 204, 96),
     (121, 192, 255), (210, 168, 255), (86, 211, 218), (177, 186, 196)],
)  # fmt: skip
# That of rich, but for fonts: a picture in a page may not load any.
_SVG = """\
<svg viewBox="0 0 {width} {height}" width="{width}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>ark-asr in a terminal</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 17px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def record() -> list[tuple[str, str]]:
    """Each command, and what it prints now, standard error included."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ARK_ASR_")}
    environment["PATH"] = path
    found: list[tuple[str, str]] = []
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=ROOT, env=environment, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        found.append((command, done.stdout))
    return found


def draw(recorded: list[tuple[str, str]]) -> str:
    """The terminal as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    for i, (command, output) in enumerate(recorded):
        text = Text("\n" if i else "", overflow="fold")
        text.append("$ ", "bold green").append(command, "bold").append("\n")
        text.append(output.rstrip("\n"))
        text.highlight_regex(r"<?\d\d:\d\d[:.\d]*>?( --> [\d:.]+)?", "cyan")
        console.print(text)
    return console.export_svg(title="ark-asr", theme=_THEME, code_format=_SVG, unique_id="ark-asr")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    options.out.write_text(draw(record()), encoding="utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
