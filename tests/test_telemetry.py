"""onnxruntime's telemetry is off, whatever the environment says, and its lines are not heard."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import DEMO, ROOT, Sample

# It looks up its host ten seconds after the import.
USE = """
import multiprocessing, os, sys, time
import ark_asr_onnx

def use():
    print(ark_asr_onnx.load(sys.argv[1], threads=1).transcribe(sys.argv[2]).text, flush=True)

if __name__ == "__main__":
    use()
    for way in sys.argv[3:]:
        child = multiprocessing.get_context(way).Process(target=use)
        child.start()
        child.join()
        assert child.exitcode == 0
    time.sleep(15)
"""


def environment(home: Path, telemetry: str | None) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    found |= {"HOME": str(home)} | (
        {} if telemetry is None else {"ORT_DISABLE_TELEMETRY": telemetry}
    )
    return found | {"PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), *sys.path])}


@pytest.mark.skipif(os.name != "posix", reason="forks of POSIX")
@pytest.mark.parametrize("telemetry", [None, "0", "", "1", "true"])
def test_no_file_is_written_and_children_end(
    tmp_path: Path, samples: list[Sample], telemetry: str | None
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = tmp_path / "use.py"
    script.write_text(USE.replace("time.sleep(15)", "pass"))
    found = subprocess.run(
        [sys.executable, "-B", script, DEMO, samples[0].path, "fork", "spawn", "forkserver"],
        env=environment(home, telemetry), capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert found.stdout == f"{samples[0].text}\n" * 4
    assert list(home.rglob("*")) == []


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_no_host_is_looked_up(tmp_path: Path, samples: list[Sample]) -> None:
    script, trace = tmp_path / "use.py", tmp_path / "trace"
    script.write_text(USE)
    subprocess.run(
        ["strace", "-f", "-e", "trace=socket,connect,openat", "-o", trace, sys.executable, script,
         DEMO, samples[0].path],
        env=environment(tmp_path, "0"), check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    lines = trace.read_text(errors="replace").splitlines()
    assert any("audio.onnx" in line for line in lines)
    assert [line for line in lines if "socket(" in line or "resolv.conf" in line] == []


def test_events_are_off_where_the_host_imports_onnxruntime_first() -> None:
    code = """
import onnxruntime, os
disable, calls = onnxruntime.disable_telemetry_events, []
onnxruntime.disable_telemetry_events = lambda: calls.append(disable())
import ark_asr_onnx
print(calls, os.environ["ORT_DISABLE_TELEMETRY"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[None] 1\n"


SYSTEM = """
mount -t tmpfs none "$0" && mkdir -p "$0"/class/drm/card0/device "$0"/class/accel/accel0 &&
mount --bind "$0" /sys && exec "$@"
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs another /sys, which root can mount"
)
def test_lines_about_devices_are_not_heard_and_those_of_others_are(tmp_path: Path) -> None:
    folder = tmp_path / "sys"
    folder.mkdir()
    code = textwrap.dedent(
        """
        import os, sys, threading, time
        is_over = False
        def write():
            for i in range(3000):
                os.write(2, b"line %d\\n" % i)
                time.sleep(0.0001)
        thread = threading.Thread(target=write)
        thread.start()
        import MODULE
        thread.join()
        """
    )
    said: dict[str, list[str]] = {}
    for module in ("onnxruntime", "ark_asr_onnx"):
        found = subprocess.run(
            ["unshare", "-m", "sh", "-c", SYSTEM, folder, sys.executable, "-c",
             code.replace("MODULE", module)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if found.returncode:
            pytest.skip("nothing can be mounted here")
        said[module] = found.stderr.splitlines()
    assert sorted(said["ark_asr_onnx"]) == sorted(f"line {i}" for i in range(3000))
    if len(said["onnxruntime"]) == 3000:
        pytest.skip("this onnxruntime says nothing of devices")
