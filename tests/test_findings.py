"""What calibration found is kept for the same model and audio, and made again if it is damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from ark_asr_onnx.package.contract import file_sha256
from ark_onnx_export import calibrate, findings, smoothing
from ark_onnx_export.checkpoint import Checkpoint, open_checkpoint, open_text
from ark_onnx_export.cli import main
from ark_onnx_export.engines import Decoded
from ark_onnx_export.findings import Calibration
from ark_onnx_export.listen import Heard
from ark_onnx_export.smoothing import Graph, Site


def export(checkpoint: Path, out: Path) -> Path:
    assert main(["--ckpt", str(checkpoint), "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def kept(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The findings of one export, which lies beside their folder."""
    base = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base))
        export(tiny_checkpoint, base / "package")
    (path,) = (base / "ark-onnx-export").iterdir()
    return path


@pytest.fixture
def sites(tiny_checkpoint: Path) -> dict[Graph, list[Site]]:
    return smoothing.sites(open_checkpoint(tiny_checkpoint).config)


def same(a: dict[Graph, Calibration], b: dict[Graph, Calibration]) -> bool:
    return all(
        a[graph].findings == b[graph].findings
        and a[graph].factors.keys() == b[graph].factors.keys()
        and all(np.array_equal(a[graph].factors[n], b[graph].factors[n]) for n in a[graph].factors)
        for graph in a
    )


def test_findings_are_kept_and_used_again(
    tiny_checkpoint: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(calibrate, "calibrate", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parents[1]))
    again, first = export(tiny_checkpoint, tmp_path / "again"), kept.parents[1] / "package"
    for name in ("audio.onnx.data", "decoder.onnx.data"):
        assert (again / name).read_bytes() == (first / name).read_bytes()


def test_an_empty_cache_is_made_again_by_the_next_export(
    tiny_checkpoint: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    emptied = tmp_path / "ark-onnx-export" / kept.name
    emptied.parent.mkdir()
    emptied.touch()
    export(tiny_checkpoint, tmp_path / "package")
    assert emptied.read_bytes() == kept.read_bytes()
    assert [path.name for path in emptied.parent.iterdir()] == [kept.name]


def test_a_damaged_cache_is_not_used(
    kept: Path, tmp_path: Path, sites: dict[Graph, list[Site]]
) -> None:
    whole = findings.read(kept, sites)
    assert whole and sum(len(one.factors) for one in whole.values()) > 0
    content, path = kept.read_bytes(), tmp_path / "damaged.npz"
    assert findings.read(path, sites) is None
    for end in (0, 1, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert findings.read(path, sites) is None, end
    generator = random.Random(0)
    for _ in range(300):
        at, damaged = generator.randrange(len(content)), bytearray(content)
        damaged[at : at + generator.choice([1, 1, 8])] = generator.randbytes(1)
        path.write_bytes(damaged)
        found = findings.read(path, sites)
        assert found is None or same(found, whole), at  # some bytes of a ZIP say nothing


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda finding: finding.pop(key)


ODD: dict[str, Callable[[dict[str, Any]], object]] = {
    "a figure is missing": without("largest"),
    "a figure is new": lambda f: f.update(colour=1),
    "a figure is text": lambda f: f.update(largest="1"),
    "a figure is no number": lambda f: f.update(largest=float("nan")),
    "a count is text": lambda f: f.update(rows="1"),
    "no channels": lambda f: f.update(channels=0),
    "other weights": lambda f: f.update(weights=["a"]),
    "another site": lambda f: f.update(site="a"),
    "a recipe is missing": lambda f: f["errors"].popitem(),
    "an error is infinite": lambda f: f["errors"].update(blocks8=float("inf")),
    "errors are a list": lambda f: f.update(errors=[1.0]),
    "nothing at the output": lambda f: f.update(at_output=[]),
    "text at the output": lambda f: f.update(at_output=["a"]),
}


@pytest.mark.parametrize("case", ODD)
def test_a_cache_of_other_content_is_not_used(
    kept: Path, tmp_path: Path, sites: dict[Graph, list[Site]], case: str
) -> None:
    with np.load(kept) as file:
        arrays = dict(file)
    record = json.loads(str(arrays.pop("findings")))
    ODD[case](record["decoder"][1])
    path = tmp_path / "odd.npz"
    np.savez(path, findings=np.array(json.dumps(record)), **arrays)
    assert findings.read(path, sites) is None


@pytest.mark.parametrize("record", ["[]", "{}", "1", "[" * 10**5, '{"audio": [], "decoder": []}'])
def test_a_cache_of_another_form_is_not_used(
    tmp_path: Path, sites: dict[Graph, list[Site]], record: str
) -> None:
    path = tmp_path / "odd.npz"
    np.savez(path, findings=np.array(record))
    assert findings.read(path, sites) is None


@pytest.mark.parametrize(
    "odd", [np.zeros(3, "f4"), np.full(64, -1, "f4"), np.ones(64), np.array("a")]
)
def test_factors_that_are_none_are_not_used(
    kept: Path, tmp_path: Path, sites: dict[Graph, list[Site]], odd: np.ndarray
) -> None:
    with np.load(kept) as file:
        arrays = dict(file)
    name = next(name for name in arrays if name.startswith("decoder/"))
    assert arrays[name].shape == (64,)
    path = tmp_path / "odd.npz"
    np.savez(path, **{**arrays, name: odd})
    assert findings.read(path, sites) is None


@pytest.mark.skipif(os.name != "posix", reason="a limit of file sizes")
def test_a_disk_that_refuses_keeps_no_part(
    kept: Path, tmp_path: Path, sites: dict[Graph, list[Site]]
) -> None:
    import resource

    whole = findings.read(kept, sites)
    assert whole
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            findings.save(whole, tmp_path / "kept.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def key_of(checkpoint: Path, n_samples: int = 400, instruction: str = "Transcribe.") -> str:
    """The key of an export that heard one short clip."""
    opened: Checkpoint = open_checkpoint(checkpoint)
    _, tokens = open_text(opened, instruction)
    nothing = np.zeros(1, np.float32)
    decoded = Decoded((1, 2), nothing, "")
    waveform = np.zeros(n_samples, np.float32)
    clip = Heard("a", waveform, nothing, nothing, tokens, decoded)
    weights = {path.name: file_sha256(path) for path in opened.files}
    return findings.key(weights, opened.side_files, [clip])


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "rms_norm_eps", 1e-5),
        ("config.json", "rope_theta", 10000.0),
        ("processor_config.json", "audio_dtype", "float32"),
        ("preprocessor_config.json", "dither", 1.0),
        ("generation_config.json", "eos_token_id", 1),
        ("tokenizer.json", "padding", None),
    ],
)
def test_a_model_that_changed_has_findings_of_its_own(
    tiny_checkpoint: Path, tmp_path: Path, file: str, key: str, value: object
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / file
    before = key_of(checkpoint)
    assert before == key_of(checkpoint) == key_of(tiny_checkpoint)
    read = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**read, key: value}), encoding="utf-8")
    assert key_of(checkpoint) != before


def test_other_audio_and_other_words_have_findings_of_their_own(tiny_checkpoint: Path) -> None:
    keys = {key_of(tiny_checkpoint), key_of(tiny_checkpoint, 500)}
    assert len({*keys, key_of(tiny_checkpoint, instruction="Write it down.")}) == 3


@pytest.mark.parametrize("named", ["", "relative/folder"])
def test_a_folder_that_is_none_is_not_used(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", "/somewhere")
    assert findings.user_cache() == Path("/somewhere/.cache")
