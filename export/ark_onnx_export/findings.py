"""What calibration found, and where that is kept from export to export."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import ark_asr_onnx
from ark_asr_onnx import files
from ark_asr_onnx.arrays import F32
from ark_asr_onnx.package.contract import file_sha256

from .listen import Heard
from .recipes import PLAIN, Graph, costs
from .smoothing import Site

_FORMAT = 9  # raised when kept findings would be misread


@dataclass(frozen=True, slots=True)
class Finding:
    """What speech says about the input of one site, and about its recipes."""

    site: str
    weights: tuple[str, ...]
    n_weights: int
    channels: int
    rows: int  # of all clips
    largest: float  # magnitude
    outlier_channels: int  # whose largest value is above 20 times the median channel's
    outlier_rows: int  # the same, of the rows that were kept
    strength: float | None  # of the smoothing that was best; None: none was
    errors: dict[str, float]  # recipe -> relative error of the product
    at_output: tuple[float, ...]  # see Calibration; of the recipe PLAIN

    def predicted(self, recipe: str) -> F32:
        """What a recipe does to the output: ``at_output``, scaled by the product's error."""
        share = self.errors[recipe] / max(self.errors[PLAIN.name], 1e-12)
        return np.asarray(self.at_output, np.float32) * np.float32(share)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The findings for one graph.

    The output's error is, for audio, the relative error of the audio embeddings (one figure), for
    the decoder the change of each reference token's log-probability (one figure a token).
    """

    findings: tuple[Finding, ...]
    factors: dict[str, F32]  # site -> how far to scale down each channel of its input


def key(weights: Mapping[str, str], side_files: Iterable[Path], clips: Sequence[Heard]) -> str:
    """Names findings by all that they depend on.

    ``weights`` are the checksums of the checkpoint's weights, ``side_files`` its other files.
    """
    depends_on = [
        _FORMAT,
        [ark_asr_onnx.__version__, torch.__version__],
        sorted(weights.values()),
        {path.name: file_sha256(path) for path in side_files},
        [asdict(clip.tokens) for clip in clips[:1]],
        [(hashlib.sha256(c.waveform.tobytes()).hexdigest(), c.decoded.token_ids) for c in clips],
    ]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def user_cache() -> Path | None:
    """The folder of the user's caches; ``None`` for a user who has no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def place(key: str) -> Path | None:
    """The file of findings that have this key."""
    base = user_cache()
    return base and base / "ark-onnx-export" / f"calibration-{key[:32]}.npz"


def save(found: Mapping[Graph, Calibration], path: Path) -> None:
    """Keep findings, whole or not at all. Raises ``OSError``."""
    record = {graph: [asdict(f) for f in one.findings] for graph, one in found.items()}
    arrays = {f"{g}/{site}": a for g, one in found.items() for site, a in one.factors.items()}
    content = io.BytesIO()
    np.savez(content, findings=np.array(json.dumps(record)), **cast("Any", arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content.getvalue())


def read(path: Path, sites: Mapping[Graph, Sequence[Site]]) -> dict[Graph, Calibration] | None:
    """Kept findings about these sites, if they are there and whole."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            record = json.loads(str(file["findings"]))
            return {
                graph: _calibration(graph, some, record[graph], file)
                for graph, some in sites.items()
            }
    except Exception:  # numpy, zipfile and zlib raise many kinds: they are found again
        return None


def _calibration(
    graph: Graph, sites: Sequence[Site], record: list[dict[str, Any]], arrays: Mapping[str, F32]
) -> Calibration:
    """Findings and factors of one graph; ``ValueError`` for what calibration does not find."""
    findings, factors = list[Finding](), dict[str, F32]()
    for site, raw in zip(sites, record, strict=True):
        tuples = {name: tuple(raw[name]) for name in ("weights", "at_output")}
        finding = Finding(**{**raw, **tuples})
        _check(finding, graph, site)
        findings.append(finding)
        if finding.strength is not None:
            factor = factors[site.name] = arrays[f"{graph}/{site.name}"]
            shape = (finding.channels // site.repeat,)
            if (factor.dtype, factor.shape) != (np.float32, shape) or not (factor > 0).all():
                raise ValueError(f"{site.name}: {factor.dtype}{factor.shape} are no factors")
    return Calibration(tuple(findings), factors)


def _check(finding: Finding, graph: Graph, site: Site) -> None:
    counts = finding.n_weights, finding.channels, finding.rows
    counts += finding.outlier_channels, finding.outlier_rows
    figures = finding.largest, finding.strength or 0.0, *finding.errors.values()
    recipes = costs(graph, finding.channels, finding.n_weights // finding.channels)
    if (
        (finding.site, finding.weights) != (site.name, site.weights)
        or not all(type(count) is int for count in counts)
        or not all(type(figure) is float for figure in (*figures, *finding.at_output))
        or not np.isfinite([*figures, *finding.at_output]).all()
        or finding.errors.keys() != recipes.keys()
        or not finding.at_output
    ):
        raise ValueError(f"{site.name}: {finding} was not found by calibration")
