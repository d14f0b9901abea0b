"""A small application that can be frozen: the text of each audio file, on a line.

    python examples/frozen_app.py MODEL AUDIO ...

MODEL is the folder of a package. Ship it beside the program, not in it: a program in one file
would unpack it at each start. `examples/freeze.py` freezes this application with PyInstaller.
"""

from __future__ import annotations

import sys

import ark_asr_onnx


def main() -> int:
    """Transcribe the files that are named; exit status 1 where one of them failed."""
    model, *audio = sys.argv[1:]
    status = 0
    try:
        with ark_asr_onnx.load(model) as transcriber:
            for result in transcriber.transcribe_many(audio):
                if isinstance(result, ark_asr_onnx.ArkError):
                    print(f"error: {result}", file=sys.stderr)
                    status = 1
                else:
                    print(result.text)
    except ark_asr_onnx.PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
