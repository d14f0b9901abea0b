"""The commands as a person types them: stdout holds transcripts only, errors are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DEMO, ROOT, Sample

import ark_asr_onnx
from ark_asr_onnx.commands import cli, infer

SCRIPT = ROOT / "infer_ark_audio_onnx.py"


@pytest.fixture(autouse=True)
def no_model_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARK_ASR_MODEL", raising=False)


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The published script's name, run in a fresh interpreter from some folder."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ARK_ASR_MODEL")}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_script_prints_transcripts_and_nothing_else(
    samples: list[Sample], tmp_path: Path
) -> None:
    first, second = samples[:2]
    result = run("--audio", first.path, "--audio", second.path, cwd=tmp_path)
    assert result.stdout == f"{first.text}\n{second.text}\n"
    assert result.stderr == ""
    assert result.returncode == 0


def test_the_script_takes_the_published_flags_in_both_spellings(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = str(samples[0].path), samples[0].text
    for flags in (
        ["--audio", path, "--model-dir", str(DEMO), "--max-new-tokens", "128"],
        ["--asr_audio", path, "--runtime-root", str(DEMO), "--asr_max_new_tokens", "128"],
        [f"--audio={path}", "--model_dir", str(DEMO), "--begin_time", "-1", "--end_time", "-1"],
        ["--audio", path, "--max_audio_seconds=30", "--task", "asr", "--threads", "1"],
        ["--audio", path, "--main-model-precision", "int8"],
        ["--audio", path, "--asr_block_token_id_from", "100000"],
        ["--audio", path, "--asr_block_token_id_from", "-1"],
    ):
        assert infer.infer_main(ROOT, flags) == 0
        assert capsys.readouterr().out == f"{text}\n"


def test_values_keep_their_underscores(
    samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a_b.flac"
    path.write_bytes(samples[0].path.read_bytes())
    assert infer.infer_main(ROOT, [f"--audio={path}"]) == 0
    assert capsys.readouterr().out == f"{samples[0].text}\n"


def test_the_script_uses_its_own_folder_when_that_is_a_package(
    samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ark_manifest.json").write_text("{}")
    assert infer.infer_main(tmp_path, ["--audio", str(samples[0].path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_a_wrong_precision_is_refused(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--audio", str(samples[0].path), "--main-model-precision", "fp32"]
    assert infer.infer_main(ROOT, flags) == 1
    assert "is int8, --main-model-precision asks for fp32" in capsys.readouterr().err


def test_audio_over_the_limit_is_refused_not_cut(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--audio", str(samples[0].path), "--max-audio-seconds", "0.5"]
    assert infer.infer_main(ROOT, flags) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "longer than the 0.5 s that are allowed" in captured.err


def test_one_bad_file_does_not_stop_the_others(
    samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "notes.wav"
    fake.write_text("this is not audio")
    (empty := tmp_path / "folder").mkdir()
    files = [str(fake), str(samples[0].path), str(empty), str(tmp_path / "absent.wav")]
    assert cli.main(["transcribe", "--model", str(DEMO), *files]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{samples[0].text}\n"
    lines = captured.err.splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == ["error"] * 3
    assert "not readable as audio" in lines[0]
    assert "is a folder" in lines[1]
    assert "no such file" in lines[2]
    assert lines[3:] == ["3 of 4 files failed"]


def test_json_output_holds_segments_tokens_and_timings(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["transcribe", "-m", str(DEMO), "-f", "json", str(samples[0].path)]
    assert cli.main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["text"] == samples[0].text
    assert data["audio"] == str(samples[0].path)
    assert set(data) == {
        "audio", "text", "segments", "duration", "timings", "finish_reason", "speech_seconds",
        "covered_seconds", "warnings",
    }  # fmt: skip


def test_verbose_shows_the_time_of_each_stage(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transcribe", "-v", "-m", str(DEMO), str(samples[0].path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{samples[0].text}\n"
    for word in ("RTFx", "features", "encode", "prefill", "ms/token"):
        assert word in captured.err
    assert "words" not in captured.err
    words = ["transcribe", "-v", "--words", "-f", "json", "-m", str(DEMO), str(samples[0].path)]
    assert cli.main(words) == 0
    assert "ms/token), words " in capsys.readouterr().err


def test_text_cut_by_the_token_limit_is_warned_about(
    samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["transcribe", "-m", str(DEMO), "--max-new-tokens", "1", str(samples[0].path)]
    assert cli.main(command) == 0
    assert "raise --max-new-tokens" in capsys.readouterr().err


def test_a_part_is_selected_with_begin_and_end(
    samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waveform, rate = soundfile.read(samples[0].path, dtype="float32")
    path = tmp_path / "padded.wav"
    quiet = np.zeros(35 * rate, np.float32)
    soundfile.write(path, np.concatenate([quiet, waveform, quiet]), rate)
    end = str(35 + len(waveform) / rate)
    command = ["transcribe", "-m", str(DEMO), "--begin", "35", "--end", end, str(path)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{samples[0].text}\n"


def test_the_model_may_be_named_by_the_environment(samples: list[Sample], tmp_path: Path) -> None:
    result = run("--audio", samples[0].path, cwd=tmp_path, ARK_ASR_MODEL=str(tmp_path))
    assert result.returncode == 1
    assert "no ark_manifest.json" in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_model_says_how_to_name_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARK_ASR_MODEL", raising=False)
    for command in (["transcribe", "a.wav"], ["inspect"]):
        assert cli.main(command) == 1
        assert "pass --model DIR or set ARK_ASR_MODEL" in capsys.readouterr().err


def test_inspect_tells_what_a_package_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--model", str(DEMO), "--verify"]) == 0
    out = capsys.readouterr().out
    for words in ("native layout", "int8", "Please transcribe this audio.", "checked: all"):
        assert words in out


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_wrong_usage_exits_with_2(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["transcribe", "--max-new-tokens", value, "a.wav"])
    assert exit_info.value.code == 2
    assert "--max-new-tokens" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_wrong_usage(
    value: str, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        infer.infer_main(ROOT, ["--audio", str(samples[0].path), f"--max-audio-seconds={value}"])
    assert exit_info.value.code == 2
    assert "must be positive" in capsys.readouterr().err


def test_audio_may_come_through_a_pipe(samples: list[Sample]) -> None:
    command = f"cat {samples[0].path} | {sys.executable} {SCRIPT} --audio /dev/stdin"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == (f"{samples[0].text}\n", "")


def test_a_full_disk_behind_stdout_is_one_line(samples: list[Sample]) -> None:
    command = f"{sys.executable} {SCRIPT} --audio {samples[0].path} > /dev/full"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: the output cannot be written (No space left on device)\n"


def test_the_script_runs_where_the_project_is_not_installed(
    samples: list[Sample], tmp_path: Path
) -> None:
    """``-S`` skips the editable install's path file; libraries come from PYTHONPATH."""
    libraries = str(Path(soundfile.__file__).parent)
    probe = [sys.executable, "-S", "-c", "import ark_asr_onnx"]
    environment = {**os.environ, "PYTHONPATH": libraries}
    alone = subprocess.run(probe, cwd=tmp_path, env=environment, capture_output=True, check=False)
    if alone.returncode == 0:
        pytest.skip("the project is installed as a wheel here")
    result = subprocess.run(
        [sys.executable, "-S", SCRIPT, "--audio", samples[0].path],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == (f"{samples[0].text}\n", "")


def test_ctrl_c_is_one_word_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ark_asr_onnx, "open_package", interrupted)
    assert cli.main(["inspect", "-m", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_traceback(samples: list[Sample], tmp_path: Path) -> None:
    files = [part for sample in samples for part in ("--audio", str(sample.path))]
    with subprocess.Popen(
        [sys.executable, SCRIPT, *files * 3],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 1
