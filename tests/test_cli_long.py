"""Long and many files on the command line: outputs, flags, partial results, manifests."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import DEMO, ROOT, Sample, near

import ark_asr_onnx
from ark_asr_onnx import Job, Segment
from ark_asr_onnx.audio import containers, sources
from ark_asr_onnx.commands import cli, infer
from ark_asr_onnx.decoding.line import Line
from ark_asr_onnx.writers import WRITERS, to_srt, to_vtt

RATE = 16000
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def meeting(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of half a minute: the samples with silence between them."""
    parts: list[np.ndarray] = []
    for sample in samples:
        parts += [sources.read(sample.path), np.zeros(3 * RATE, np.float32)]
    path = tmp_path_factory.mktemp("audio") / "meeting.wav"
    soundfile.write(path, np.concatenate(parts), RATE)
    return path


def ark(*arguments: object) -> int:
    return cli.main([str(a) for a in (arguments[0], "-m", DEMO, *arguments[1:])])


# Outputs ------------------------------------------------------------------------------------------


def test_a_long_file_is_a_line_for_each_part(
    meeting: Path, samples: list[Sample], capsys: Capture
) -> None:
    assert ark("transcribe", meeting) == 0
    assert capsys.readouterr() == ("".join(f"{s.text}\n" for s in samples), "")


@pytest.mark.parametrize("kind", ["srt", "vtt", "tsv"])
def test_subtitles_go_to_standard_output_or_to_a_folder(
    kind: str, meeting: Path, tmp_path: Path, capsys: Capture
) -> None:
    expected = WRITERS[kind](ark_asr_onnx.load(DEMO).transcribe(meeting))
    assert expected.count("\n") > 5
    assert ark("transcribe", "-f", kind, meeting) == 0
    assert capsys.readouterr() == (expected, "")
    assert ark("transcribe", "-f", kind, "-o", tmp_path / "out" / "new", meeting) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out" / "new" / f"meeting.{kind}").read_bytes() == expected.encode()


def test_all_formats_are_written_for_every_file(
    meeting: Path, samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    files = [meeting, samples[0].path]
    assert ark("transcribe", "-f", "all", "-o", tmp_path, *files) == 0
    assert capsys.readouterr() == ("", "")
    names = {f"{path.stem}.{kind}" for path in files for kind in WRITERS}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "meeting.json").read_text())["finish_reason"] == "stop"
    assert (tmp_path / f"{samples[0].path.stem}.txt").read_text() == f"{samples[0].text}\n"


def test_json_is_a_line_for_each_file_and_jsonl_for_each_part(
    meeting: Path, samples: list[Sample], capsys: Capture
) -> None:
    assert ark("transcribe", "-f", "json", meeting, samples[0].path) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["audio"], second["text"]) == (str(meeting), samples[0].text)
    assert ark("transcribe", "-f", "jsonl", meeting, samples[0].path) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [*(s.text for s in samples), samples[0].text]
    assert {row["audio"] for row in rows} == {str(meeting), str(samples[0].path)}
    assert all(row["start"] < row["end"] for row in rows)


def test_words_have_their_times_in_json(
    meeting: Path, samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    assert ark("transcribe", "--words", "-f", "json", meeting) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert ark("transcribe", "--words", "-f", "jsonl", meeting) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for found, row, sample in zip(segments, rows, samples, strict=True):
        words = found["words"]
        assert [list(word) for word in words] == [["word", "start", "end", "probability"]] * len(
            words
        )
        assert [word["word"] for word in words] == sample.text.split()
        assert (row["start"], row["end"]) == (words[0]["start"], words[-1]["end"])
        assert row["words"] == near(words)
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    assert ark("transcribe", "--words", "-f", "json", tmp_path / "silence.wav") == 0
    assert json.loads(capsys.readouterr().out)["segments"][0]["words"] == []
    assert ark("transcribe", "-f", "json", meeting) == 0
    assert '"words"' not in capsys.readouterr().out


def test_subtitles_of_words_are_those_of_the_library(
    meeting: Path, tmp_path: Path, capsys: Capture
) -> None:
    transcript = ark_asr_onnx.load(DEMO).transcribe(meeting, words=True)
    layout = ark_asr_onnx.CueLayout(max_line_width=20)
    limits = ("--max-line-width", 20)
    assert ark("transcribe", "-f", "srt", *limits, meeting) == 0
    assert capsys.readouterr() == (to_srt(transcript, layout), "")
    assert ark("transcribe", "-f", "vtt", "--inline-times", meeting) == 0
    assert capsys.readouterr() == (to_vtt(transcript, inline_times=True), "")
    assert ark("transcribe", "-f", "all", "--inline-times", *limits, "-o", tmp_path, meeting) == 0
    written = {path.suffix[1:]: path.read_text() for path in tmp_path.iterdir()}
    assert written["srt"] == to_srt(transcript, layout)
    assert written["vtt"] == to_vtt(transcript, layout, inline_times=True)
    assert written["txt"] == WRITERS["txt"](transcript)
    assert json.loads(written["json"])["segments"][0]["words"][0]["word"] == "enter"
    limits = ("--max-line-count", 1, "--max-cue-seconds", 1)
    assert ark("transcribe", "-f", "vtt", *limits, meeting) == 0
    layout = ark_asr_onnx.CueLayout(max_line_count=1, max_cue_seconds=1)
    assert capsys.readouterr() == (to_vtt(transcript, layout), "")


def test_a_model_without_times_of_words_says_so_once(
    meeting: Path, tiny_package: Path, capsys: Capture
) -> None:
    arguments = [
        "transcribe",
        "-m",
        str(tiny_package),
        "-f",
        "jsonl",
        "--words",
        *[str(meeting)] * 2,
    ]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("cannot tell when words are said") == err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("-f", "srt", "a.wav", "b.wav"), ("-f", "all", "a.wav")])
def test_what_needs_a_folder_says_so(arguments: tuple[str, ...], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        ark("transcribe", *arguments)
    assert exit_info.value.code == 2
    assert "needs -o DIR" in capsys.readouterr().err


@pytest.mark.parametrize("stem", ["{}", "{}.partial"])
def test_two_files_of_one_name_are_refused_before_any_work(
    stem: str, samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / f"{stem.format(samples[0].path.stem)}.wav"
    other.write_bytes(samples[0].path.read_bytes())
    assert ark("transcribe", "-o", tmp_path / "out", samples[0].path, other) == 1
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_is_one_line(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    assert ark("transcribe", "-o", tmp_path / "file", samples[0].path) == 1
    assert "no folder that could be written" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_before_the_model_opens(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    path = samples[0].path
    (long := tmp_path / f"{'n' * 251}.au").write_bytes(path.read_bytes())
    (taken := tmp_path / "taken" / f"{path.stem}.srt").mkdir(parents=True)
    (linked := tmp_path / "linked").mkdir()
    (linked / f"{path.stem}.srt").symlink_to("/proc/nowhere")
    for options, name, words in (
        (("-f", "srt", "-o", "/proc"), path, "/proc: cannot be written (No such file"),
        (("-f", "json", "-o", tmp_path / "out"), long, f"{'n' * 251}.json: cannot be written ("),
        (("-f", "all", "-o", tmp_path / "out"), long, f"{'n' * 251}.json: cannot be written ("),
        (("-f", "srt", "-o", tmp_path / "taken"), path, f"{taken}: is a folder"),
        (("-f", "srt", "-o", linked), path, "/proc: cannot be written ("),
    ):
        assert cli.main(["transcribe", "-m", "nosuch", *map(str, (*options, name))]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    # A name that leaves no room for anything beside it is no hindrance.
    assert ark("transcribe", "-f", "srt", "-o", tmp_path / "out", long) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"{'n' * 251}.srt"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["txt", "srt", "json", "jsonl", "all"])
@pytest.mark.parametrize("trouble", ["folder removed", "disk full"])
def test_a_text_that_cannot_be_written_in_the_end_goes_to_standard_output(
    kind: str, trouble: str, samples: list[Sample], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    (old := tmp_path / "out" / f"{samples[0].path.stem}.{kind}").parent.mkdir()
    if trouble == "disk full":
        old.write_text("an earlier run")
        for name in WRITERS:
            (old.with_suffix(f".{name}")).symlink_to("/dev/full") if kind == "all" else None
    following = Job.__next__

    def broken(job: Job) -> Segment:
        if trouble == "folder removed" and old.parent.exists():
            old.parent.rmdir()
        return following(job)

    monkeypatch.setattr(Job, "__next__", broken)
    if trouble == "disk full" and kind != "all":

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
    assert ark("transcribe", "-f", kind, "-o", old.parent, samples[0].path, "absent.wav") == 1
    captured = capsys.readouterr()
    assert captured.out.count(samples[0].text) >= (len(WRITERS) if kind == "all" else 1)
    first, *others = captured.err.splitlines()
    assert "cannot be written (No" in first
    assert first.endswith("the text is on standard output instead")
    assert others == ["error: absent.wav: no such file", "2 of 2 files failed"]
    if trouble == "disk full" and kind != "all":
        assert old.read_text() == "an earlier run"


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_json_names_its_audio_in_files_as_on_standard_output(
    kind: str, meeting: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert ark("transcribe", "-f", kind, meeting) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ark("transcribe", "-f", kind, "-o", tmp_path, meeting) == 0
    lines = (tmp_path / f"meeting.{kind}").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    for row in (*printed, *written):
        row.pop("timings", None)
    assert written == near(printed)
    assert {row["audio"] for row in written} == {str(meeting)}


# Inputs -------------------------------------------------------------------------------------------


def test_folders_and_patterns_are_the_audio_files_in_them(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    for sample in samples[:3]:
        (tmp_path / sample.path.name).write_bytes(sample.path.read_bytes())
    (tmp_path / "notes.txt").write_text("not audio")
    expected = "".join(f"{s.text}\n" for s in samples[:3])
    for given in (tmp_path, tmp_path / "*.flac"):
        assert ark("transcribe", given) == 0
        assert capsys.readouterr().out == expected


def test_what_a_folder_holds_besides_audio_is_left_out_and_said(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(containers, "has_media", lambda: False)
    folder = tmp_path / "mix [1]"
    (folder / "sub").mkdir(parents=True)
    (folder / "x.wav").mkdir()
    for name in ("a.flac", "memo.m4a", "noext", "._a.wav", ".hidden.flac", "sub/b.flac"):
        (folder / name).write_bytes(samples[0].path.read_bytes())
    os.mkfifo(folder / "pipe.wav")
    (folder / "dangling.wav").symlink_to("nowhere")
    assert ark("transcribe", folder) == 0
    assert capsys.readouterr() == (
        f"{samples[0].text}\n",
        f"{folder}: left out 2 (._a.wav, …) as hidden, 2 (dangling.wav, …) as no regular files, "
        "1 (memo.m4a) for want of pip install 'ark-asr-onnx[media]', 1 (noext) for the ending, "
        f"2 (sub, …) as sub-folders; '{tmp_path}/mix [[]1]/**/*' takes what is in sub-folders\n",
    )
    assert ark("transcribe", f"{tmp_path}/mix [[]1]/**/*") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{samples[0].text}\n" * 2
    assert captured.err.count("\n") == 1
    assert "sub-folders" not in captured.err
    for pattern, words in (
        ("*.m4a", "only 1 (memo.m4a) for want of pip install 'ark-asr-onnx[media]'"),
        ("*ext", "only 1 (noext) for the ending"),
        ("pipe*", "only 1 (pipe.wav) as no regular files"),
    ):
        assert ark("transcribe", tmp_path / "mix ?1]" / pattern) == 1
        assert f"{pattern}: matches no audio files, {words}\n" in capsys.readouterr().err
    assert ark("transcribe", tmp_path / "mix ?1]" / "*.xyz") == 1
    assert "*.xyz: no such file" in capsys.readouterr().err
    assert ark("transcribe", tmp_path / "mix ?1]" / ".hidden*", folder / ".hidden.flac") == 0
    monkeypatch.setattr(containers, "has_media", lambda: True)
    assert ark("transcribe", tmp_path / "mix ?1]" / "*.m4a") == 0


def test_a_folder_that_cannot_be_read_is_named(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read everything
    assert ark("transcribe", tmp_path, samples[0].path) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{samples[0].text}\n"
    assert captured.err.splitlines()[0] == f"error: {tmp_path}: cannot be read (Permission denied)"


def test_a_file_that_breaks_off_keeps_what_was_heard(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    broken = np.concatenate([sources.read(s.path) for s in samples] * 2)
    broken[-RATE] = np.nan
    path = tmp_path / "broken.wav"
    soundfile.write(path, broken, RATE, subtype="FLOAT")
    assert ark("transcribe", path, samples[0].path) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) > 1
    assert captured.out.splitlines()[-1] == samples[0].text
    assert "is NaN or infinite" in captured.err
    assert captured.err.endswith("1 of 2 files failed\n")


def test_doubtful_audio_is_a_warning_and_strict_makes_it_a_status(
    meeting: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(meeting.read_bytes()[:600_000])
    for options, status in (([], 0), (["--strict"], 3)):
        assert ark("transcribe", *options, path, meeting) == status
        captured = capsys.readouterr()
        assert captured.out.startswith("enter nine eighty nine\n")
        assert captured.err.startswith(f"warning: {path}: cut off: its header says 33.30 s, ")
        assert captured.err.count("\n") == 1
        flags = ["--audio", str(path), "--model-dir", str(DEMO), *options]
        assert infer.infer_main(ROOT, flags) == status
        assert capsys.readouterr().err == captured.err


@pytest.mark.parametrize(
    "arguments",
    [("--begin", "-1"), ("--begin", "nan"), ("--begin", "5", "--end", "3"), ("--threads", "99999"),
     ("--channels", "99"), ("--rate", "99999999"), ("--threads", "2.0"), ("--begin", "1e999"),
     ("--end", "inf"), ("--slots", "zwei"), ("--pause", "nan"), ("--channels", "1.5"),
     ("--max-new-tokens", "9" * 5000), ("--max-line-width", "0"), ("--max-line-count", "-1"),
     ("--max-cue-seconds", "0")],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_wrong_usage(
    arguments: tuple[str, ...], meeting: Path, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        ark("transcribe", *arguments, meeting)
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert arguments[0] in err
    assert arguments[-1][:40] in err
    assert len(err) < 2500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", 8000), "--rate: for - alone"),
        (("--channels", 1, "--partial", 1), "--channels, --partial: for - alone"),
        (("--no-vad", "--pause", 1), "--no-vad looks for no speech"),
        (("--no-vad", "--split-short"), "--no-vad looks for no speech"),
        (("--window", 0.5), "--window: window_seconds is 0.5"),
        (("--words",), "--words: for a format that has times"),
        (("--inline-times",), "--inline-times: for -f vtt or all, txt has no such times"),
        (("--inline-times", "-f", "srt"), "--inline-times: for -f vtt or all, srt has"),
        (("--max-line-width", 20), "--max-cue-seconds: for -f srt, vtt or all, txt has no cues"),
        (("--max-line-count", 1, "-f", "json"), "for -f srt, vtt or all, json has no cues"),
        (("--max-cue-seconds", 4, "-f", "tsv"), "for -f srt, vtt or all, tsv has no cues"),
        (("--max-cue-seconds", 0.01, "-f", "srt"), "--max-cue-seconds: max_cue_seconds is 0.01"),
    ],
)
def test_options_without_an_effect_are_wrong_usage(
    arguments: tuple[object, ...], words: str, meeting: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    monkeypatch.delenv("ARK_ASR_MODEL", raising=False)  # told without a model as well
    with pytest.raises(SystemExit, match="2"):
        cli.main(["transcribe", *map(str, arguments), str(meeting)])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("mic", "--slots", "2"), ("mic", "--split-short"), ("inspect", "--threads", "2")]
)
def test_options_that_a_command_has_no_use_for_are_not_there(
    command: tuple[str, ...], capsys: Capture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "-m", str(DEMO)])
    assert f"unrecognized arguments: {command[1]}" in capsys.readouterr().err


def test_a_model_whose_name_cannot_be_is_named(capsys: Capture) -> None:
    assert cli.main(["inspect", "-m", "x" * 300]) == 1
    assert "File name too long" in capsys.readouterr().err


def test_a_clip_that_is_too_short_is_named(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "click.wav"
    soundfile.write(path, np.zeros(100), RATE)
    assert ark("transcribe", path) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: too short, 100 samples")


# Doubt --------------------------------------------------------------------------------------------


def test_doubtful_parts_are_named_and_strict_makes_them_a_status(
    meeting: Path, capsys: Capture
) -> None:
    for options, status in (([], 0), (["--strict"], 3)):
        assert ark("transcribe", "--max-new-tokens", 3, *options, meeting) == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 5  # 'enter sixty six' is three
        assert all("stopped after 3 tokens, the text may be cut" in line for line in lines)
        assert lines[0].startswith(f"warning: {meeting}: 0.")
    assert ark("transcribe", "--strict", meeting) == 0


@pytest.mark.parametrize(("reason", "words"), [("loop", "repeat itself"), ("empty", "no text")])
def test_every_doubt_has_its_words(
    reason: Any, words: str, meeting: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    original = Line.finish

    def doubtful(line: Line, place: Any, result: Any) -> None:
        original(line, place, replace(result, finish_reason=reason))

    monkeypatch.setattr(Line, "finish", doubtful)
    assert ark("transcribe", "--strict", meeting) == 3
    assert words in capsys.readouterr().err


def test_windows_can_be_chosen(meeting: Path, capsys: Capture) -> None:
    assert ark("transcribe", "--window", 30, "--pause", 5, "-f", "jsonl", meeting) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # 33 s without a pause of 5
    assert ark("transcribe", "--no-vad", "--window", 10, "-f", "jsonl", meeting) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["start"] for row in rows[1:]] == [row["end"] for row in rows[:-1]]
    with pytest.raises(SystemExit, match="2"):
        ark("transcribe", "--window", 31, meeting)
    assert (
        "--window: window_seconds is 31, this model hears at most 30 s" in capsys.readouterr().err
    )


# Stopping -----------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_finished(
    meeting: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    original = Job.__next__
    given: list[Segment] = []

    def interrupted(job: Job) -> Segment:
        if len(given) == 2:
            raise KeyboardInterrupt
        given.append(original(job))
        return given[-1]

    monkeypatch.setattr(Job, "__next__", interrupted)
    assert ark("transcribe", "-f", "srt", "-o", tmp_path, meeting, samples[0].path) == 130
    (written,) = tmp_path.iterdir()
    assert written.name == "meeting.partial.srt"
    said = f"{meeting}: what is finished is in {written}\ninterrupted\n"
    assert capsys.readouterr().err == said
    # What was finished in the background meanwhile is kept as well.
    assert all(s.text in written.read_text() for s in samples[:2])


@pytest.mark.usefixtures("ctrl_c_counts")
def test_a_real_ctrl_c_ends_the_command_within_a_step(
    meeting: Path, samples: list[Sample], tmp_path: Path
) -> None:
    long = tmp_path / "long.wav"
    soundfile.write(long, np.tile(sources.read(meeting), 60), RATE)
    command = [sys.executable, "-m", "ark_asr_onnx", "transcribe", "-m", str(DEMO), str(long)]
    environment = {**os.environ, "PYTHONPATH": str(Path(ark_asr_onnx.__file__).parent.parent)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"{samples[0].text}\n"
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert rest.count("\n") < 300  # of 360


def test_a_terminal_sees_how_far_it_is(meeting: Path, samples: list[Sample]) -> None:
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "ark_asr_onnx", "transcribe", "-m", str(DEMO), str(meeting)]
    environment = {**os.environ, "PYTHONPATH": str(Path(ark_asr_onnx.__file__).parent.parent)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=writer, env=environment, check=True
    )
    os.close(writer)
    shown = os.read(reader, 100_000).decode()
    os.close(reader)
    assert done.stdout.decode() == "".join(f"{s.text}\n" for s in samples)
    assert "of 0:33" in shown
    assert shown.endswith("\r\033[K")  # nothing is left of it


# Manifests ----------------------------------------------------------------------------------------


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_batch_writes_a_row_for_each_record(
    meeting: Path, samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    rows: list[dict[str, Any]] = [
        {"audio": str(s.path), "text": s.text, "speaker": "é"} for s in samples
    ]
    rows[1:1] = [{"audio": str(meeting), "begin_time": 0, "end_time": 5.2}, {"audio": "absent.wav"}]
    manifest, out = write_manifest(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert ark("batch", "--input", manifest, "--output", out) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "8 of 8 rows written" in captured.err
    assert "1 rows have an error" in captured.err
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["pred_text"] for r in found if r["text"]] == [s.text for s in samples]
    assert found[1]["pred_text"] == samples[0].text
    assert "no such file" in found[2]["error"]
    assert found[0]["speaker"] == "é"
    before = out.read_bytes()
    assert ark("batch", "--input", manifest, "--output", out) == 1
    assert out.read_bytes() == before
    err = capsys.readouterr().err
    assert "7 of 8 rows are there already" in err
    assert "1 of 8 rows written" in err
    assert "1 of them again: they were missing, had failed or were of other audio" in err
    soundfile.write(tmp_path / "absent.wav", sources.read(samples[0].path), RATE)
    rows[0]["speaker"] = "è"
    assert ark("batch", "--input", write_manifest(manifest, rows), "--output", out) == 0
    err = capsys.readouterr().err
    assert "1 rows have another text or other fields now" in err
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["audio"] for row in found] == [row["audio"] for row in rows]
    assert found[2]["pred_text"] == samples[0].text
    assert found[0]["speaker"] == "è"


def test_batch_writes_words_where_they_are_asked_for(samples: list[Sample], tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "in.jsonl", [{"audio": str(samples[0].path)}])
    assert ark("batch", "--words", "--input", manifest, "--output", tmp_path / "out.jsonl") == 0
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert " ".join(word["word"] for word in row["pred_words"]) == samples[0].text


def test_batch_refuses_rows_of_another_model_or_other_options(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    manifest = write_manifest(tmp_path / "in.jsonl", [{"audio": str(samples[0].path)}])
    batch = ("batch", "--input", manifest, "--output", out := tmp_path / "out.jsonl")
    assert ark(*batch) == 0
    before = out.read_bytes()
    # The same model, wherever it lies; and another one.
    for name in ("copy", "other"):
        shutil.copytree(
            DEMO, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint", "recipe")
        )
    path = tmp_path / "other" / "ark_manifest.json"
    raw = json.loads(path.read_text())
    raw["tokens"]["block_from_id"] -= 1
    path.write_text(json.dumps(raw))
    capsys.readouterr()
    for options, status, complaint in (
        (("-m", tmp_path / "copy", "--workers", "2", "--slots", "3", "--threads", "1"), 0, ""),
        (("-m", tmp_path / "other"), 1, "out.jsonl: was made with another model ("),
        (("--max-new-tokens", "1", "--no-retry"), 1, "another max_new_tokens (256, now 1)"),
        (("--no-vad",), 1, "another vad ("),
    ):
        assert cli.main([str(x) for x in (*batch, "-m", DEMO, *options)]) == status
        err = capsys.readouterr().err
        assert complaint in err
        if status:
            assert err.count("\n") == 1
            assert "--overwrite" in err
        assert out.read_bytes() == before
    assert ark(*batch, "--max-new-tokens", "1", "--overwrite") == 0
    assert json.loads(out.read_text())["finish_reason"] == "length"


def test_workers_share_graphs_that_are_not_prepared_yet(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    rows = [{"audio": str(s.path)} for s in samples]
    manifest = write_manifest(tmp_path / "in.jsonl", rows)
    options = ("--workers", 2, "--prepared-dir", tmp_path / "prepared")
    assert ark("batch", "--input", manifest, "--output", tmp_path / "out.jsonl", *options) == 0
    assert "warning" not in capsys.readouterr().err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["pred_text"] for row in found] == [s.text for s in samples]
    assert len([x for x in (tmp_path / "prepared").iterdir() if x.is_dir()]) == 1


def test_evaluate_scores_and_compares(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    rows = [{"audio": str(s.path), "text": s.text} for s in samples]
    rows[3]["text"] = "something else"
    manifest, out = write_manifest(tmp_path / "refs.jsonl", rows), tmp_path / "rows.jsonl"
    options = ("--input", manifest, "--no-normalize", "--output", out)
    assert ark("evaluate", *options, "--against", DEMO) == 0
    name, printed = capsys.readouterr().out.split("\n", 1)
    assert name == str(DEMO)
    assert "6 rows" in printed
    assert "RTFx" in printed
    assert "+0.00 points" in printed
    assert "p = 1" in printed
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[0]["ref_text"] == "something else"
    assert found[0]["wer_errors"] > 0 == found[1]["wer_errors"]
    scored = ("--input", out, "--no-normalize")  # what was transcribed is not done again
    assert cli.main(["evaluate", *map(str, scored)]) == 0
    again = capsys.readouterr().out
    assert again.split("(")[0] == printed.split("(")[0]  # not the interval: the rows are sorted now
    assert "RTFx" not in again


@pytest.mark.parametrize("window", ["0.5", "40"])
def test_a_window_that_cannot_be_leaves_the_output_alone(
    window: str, samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    manifest = write_manifest(tmp_path / "in.jsonl", [{"audio": str(samples[0].path)}])
    (out := tmp_path / "out.jsonl").write_text("precious")
    options = ("--output", out, "--overwrite", "--window", window)
    with pytest.raises(SystemExit, match="2"):
        ark("batch", "--input", manifest, *options)
    assert "error: --window: window_seconds is" in capsys.readouterr().err
    assert out.read_text() == "precious"


def test_what_cannot_be_written_or_compared_is_told_before_the_work(
    samples: list[Sample], tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    manifest = write_manifest(
        tmp_path / "refs.jsonl", [{"audio": str(samples[0].path), "text": samples[0].text}]
    )
    (kept := tmp_path / "rows.jsonl").write_text("kept")
    nowhere = ("--against", tmp_path / "nowhere", "--output", kept)
    before = sorted(tmp_path.iterdir())
    for options in (("--output", tmp_path), nowhere):
        assert ark("evaluate", "--input", manifest, *options) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
    for command in ("evaluate", "batch"):  # before a model is looked for
        for name in (".", "none/rows.jsonl", "n" * 300, "in.jsonl/rows"):
            options = ("--input", manifest, "--output", tmp_path / name, "--overwrite")
            options = options[: None if command == "batch" else 4]
            assert cli.main([command, "-m", "nowhere", *map(str, options)]) == 1
            captured = capsys.readouterr()
            assert "cannot be written (" in captured.err
            assert captured.err.count("\n") == 1
    assert kept.read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == before


def test_scores_are_said_and_rows_are_somewhere_when_they_cannot_be_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    rows = [{"audio": "a.wav", "text": "a b", "pred_text": "a"}]
    manifest = write_manifest(tmp_path / "refs.jsonl", rows)
    (out := tmp_path / "rows.jsonl").write_text("old")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert ark("evaluate", "--input", manifest, "--output", out, "--against", DEMO) == 1
    captured = capsys.readouterr()
    assert "WER 50.00 %" in captured.out
    assert "fewer word errors" in captured.out
    (line,) = (x for x in captured.err.splitlines() if "No space" in x)
    said, elsewhere = line.split("; the rows are in ")
    assert said == f"error: {out}: cannot be written (No space left on device)"
    assert json.loads(Path(elsewhere).read_text())["wer_errors"] == 1
    assert out.read_text() == "old"
    assert ark("evaluate", "--input", manifest, "--output", out) == 0
    assert json.loads(out.read_text())["wer_errors"] == 1


def test_failures_count_wherever_they_were(
    samples: list[Sample], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    monkeypatch.delenv("ARK_ASR_MODEL", raising=False)
    rows = [
        {"audio": str(samples[0].path), "text": samples[0].text, "pred_text": samples[0].text},
        {
            "audio": "absent.wav",
            "text": "a b",
            "pred_text": "",
            "error": "absent.wav: no such file",
        },
    ]
    manifest = write_manifest(tmp_path / "refs.jsonl", rows)
    assert cli.main(["evaluate", "--input", str(manifest)]) == 1  # without a model: only scored
    assert "error: absent.wav: no such file" in capsys.readouterr().err
    out = tmp_path / "rows.jsonl"
    assert ark("evaluate", "--input", manifest, "--output", out) == 1
    assert f"error: {tmp_path / 'absent.wav'}: no such file" in capsys.readouterr().err
    assert "no such file" in json.loads(out.read_text().splitlines()[0])["error"]
    (tmp_path / "absent.wav").write_bytes(samples[0].path.read_bytes())
    assert ark("evaluate", "--input", manifest, "--output", out) == 0  # it is done again
    row = json.loads(out.read_text().splitlines()[0])
    assert row["pred_text"] == samples[0].text
    assert "error" not in row
    (tmp_path / "absent.wav").unlink()
    capsys.readouterr()
    rows[1].pop("error")
    manifest = write_manifest(tmp_path / "refs.jsonl", rows)
    assert ark("evaluate", "--input", manifest) == 0
    assert ark("evaluate", "--input", manifest, "--against", DEMO) == 1
    assert "absent.wav: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no lines"),
        ('{"audio": "a.wav"}', "text is missing"),
        ("[]", "must be a JSON object"),
        ('{"audio": "a.wav", "text": "b", "language": "xx"}', ":1: language 'xx' is unknown"),
    ],
)
def test_a_bad_manifest_is_one_line(
    line: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    manifest = tmp_path / "refs.jsonl"
    manifest.write_text(line)
    assert ark("evaluate", "--input", manifest) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
