"""How long an export will take, and how much memory and disk: known before it starts.

Products with the network's matrices take most of the time. They are counted from the shapes of the
matrices and from the speech that goes through them; two short products tell how fast this machine
is. What else takes time was measured beside them (``benchmarks/full_size.py`` at 0.6B), and is
counted in the same units.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .calibrate import PROBE_CLIPS, PROBE_FRAMES, VARIANTS
from .heads import SEQUENCES
from .parity import AWKWARD_FRAMES, PREFILL_LENGTHS
from .probes import PROBE_TOKENS
from .shapes import Shape, Shapes, count
from .space import MAX_ROWS

_FRAMES = 50  # rows of the encoder for a second of audio
_AUDIO_TOKENS, _PROMPT = 12.5, 25  # rows of a prompt: for a second of audio, and beside it
_SINGLE_WORDS = [2.0] * (2 * SEQUENCES)  # seconds of each sequence
_SINGLE_WORDS_TOKENS = 9  # for each
# What Speed multiplies: matrices of a layer, and as many weights as a part of a head, whose memory
# the system gives anew each time.
_PROBES, _PROBE_ROWS = [*[(896, 4864)] * 6, (896, 6 * 4864)], 256

# Measured at 0.6B. The first are in units of reading and widening all weights of the part.
_READ, _TRACE, _STORE, _ROUND = 5, 20, 20, 100
_TRY = {"audio": 130, "decoder": 25}
_OPEN = 8  # a graph in 8 bits
_EXACT_GRAPH = {"audio": 0.7, "decoder": 0.15}  # time of a graph in fp32, as a share of torch's
_GRAPH = {"audio": 0.5, "decoder": 0.07}  # the same of a graph in 8 bits
_START = 25.0  # seconds, libraries and checksums
_BETWEEN = 1.06  # of all stages: what is done between them
_LIBRARIES = 0.65e9  # bytes of memory
_PUBLISHED = 20  # bytes of memory for each weight of the largest graph, in upstream's way


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast torch multiplies with weights of two bytes on this machine."""

    weight: float  # seconds to read and widen one weight
    product: float  # seconds to multiply it with one number, and to add

    @classmethod
    def measured(cls) -> Speed:
        """Takes about a second."""
        weights = [torch.ones(n_out, n_in, dtype=torch.bfloat16) for n_in, n_out in _PROBES]
        n_weights = sum(weight.numel() for weight in weights)

        def seconds(n_rows: int) -> float:
            rows, taken = torch.ones(n_rows, weights[0].shape[1]), list[float]()
            for _ in range(4):
                start = time.perf_counter()
                for weight in weights:
                    F.linear(rows, weight.float())
                taken.append(time.perf_counter() - start)
            return statistics.median(taken[1:]) / n_weights

        with torch.inference_mode():
            one, many = seconds(1), seconds(_PROBE_ROWS)
        product = max(many - one, 0.0) / (_PROBE_ROWS - 1)
        return cls(max(one - product, 0.0), product)

    def of(self, weights: int, rows: float) -> float:
        """Seconds of a product of so many rows."""
        return weights * (self.weight + rows * self.product)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be exported, and what it will hear."""

    shapes: Shapes
    graphs: Sequence[tuple[str, Sequence[Shape]]]  # files and their matrices, in order
    probes: Sequence[float]  # seconds of each clip
    calibration: Sequence[float]  # the same, of further clips; none: there is no calibration
    is_planned: bool  # recipes are known: calibration does not try any
    is_int8: bool
    is_native: bool  # in our layout


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an export takes."""

    stages: tuple[tuple[str, float], ...]  # labels, and seconds
    memory: int  # bytes, largest resident set, pages of mapped files included

    @classmethod
    def of(cls, job: Job, speed: Speed) -> Forecast:
        """Count what a job consists of."""
        largest = max(count(matrices) for _, matrices in job.graphs)
        memory = _PUBLISHED * largest
        if job.is_native:  # the graph in fp32, mapped from its file, and the head of torch
            memory = 4 * (largest + count([job.shapes.table]))
        return cls(tuple(_stages(job, speed)), int(_LIBRARIES + memory))

    @property
    def seconds(self) -> float:
        """Of all stages, and of what is between them."""
        return _START + _BETWEEN * sum(seconds for _, seconds in self.stages)

    def text(self, disk: int, free: int | None) -> str:
        """For people, in one line, with bytes of disk and, where known, of free memory."""
        calibration = sum(s for label, s in self.stages if label.startswith("calibrate"))
        part = f" (calibration: {_minutes(calibration)})" if calibration > 60 else ""
        rest = ""
        if free is not None and free < self.memory:
            rest = f"; {_gigabytes(free)} of memory are free: close other programs"
        return (
            f"this export takes about {_minutes(self.seconds)}{part}, {_gigabytes(self.memory)} of "
            f"memory and {_gigabytes(disk)} of disk{rest}"
        )


def _minutes(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    if minutes < 100:
        return "a minute" if minutes == 1 else f"{minutes} minutes"
    return f"{round(minutes / 60)} hours"


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes > 5e7 else f"{math.ceil(n_bytes / 1e6)} MB"


class _Clock:
    """Seconds of what is done with the two halves of a network."""

    def __init__(self, shapes: Shapes, speed: Speed) -> None:
        self.encoder, self.decoder = count(shapes.audio), count(shapes.decoder)
        self.speed = speed

    def encode(self, clips: Sequence[float], copies: int = 1) -> float:
        """Torch's encoder, on clips of so many seconds."""
        return sum(self.speed.of(self.encoder, copies * _FRAMES * clip) for clip in clips)

    def prompt(self, clips: Sequence[float], tokens: int = 0, copies: int = 1) -> float:
        """Torch's decoder on prompts, with tokens that are known."""
        rows = (copies * (_PROMPT + _AUDIO_TOKENS * clip + tokens) for clip in clips)
        return sum(self.speed.of(self.decoder, n) for n in rows)

    def steps(self, n: int) -> float:
        """Torch's decoder, token by token."""
        return n * self.speed.of(self.decoder, 1)


def _stages(job: Job, speed: Speed) -> Iterator[tuple[str, float]]:
    """Every stage of the pipeline, by its label."""
    clock, n_probes = _Clock(job.shapes, speed), len(job.probes)
    all_weights = clock.encoder + clock.decoder + count([job.shapes.table])
    yield "read weights", _READ * all_weights * speed.weight
    yield "torch reference, audio", clock.encode(job.probes)
    yield "torch reference, text", clock.prompt(job.probes) + clock.steps(PROBE_TOKENS * n_probes)
    if job.calibration:
        yield from _calibration(job, clock)
    for file, shapes in job.graphs:
        yield from _graph(job, clock, file, shapes)
    if job.is_native:
        words = clock.prompt(_SINGLE_WORDS, 2 * _SINGLE_WORDS_TOKENS)  # read twice
        yield "single words, audio", clock.encode(_SINGLE_WORDS)
        yield "single words, text", words + clock.steps(_SINGLE_WORDS_TOKENS * len(_SINGLE_WORDS))
    encoded, written = clock.encode(job.probes), clock.steps(PROBE_TOKENS * n_probes)
    yield "verify with the runtime", 2 * (_GRAPH["audio"] * encoded + _GRAPH["decoder"] * written)


def _calibration(job: Job, clock: _Clock) -> Iterator[tuple[str, float]]:
    clips, n = [*job.probes, *job.calibration], len(job.calibration)
    yield "calibrate: torch reference, audio", clock.encode(job.calibration)
    text = clock.prompt(job.calibration) + clock.steps(PROBE_TOKENS * n)
    yield "calibrate: torch reference, text", text
    yield "calibrate: listen, audio", clock.encode(clips)
    if job.is_planned:
        return
    yield "calibrate: recipes, audio", _TRY["audio"] * clock.encoder * clock.speed.weight
    # What comes before a matrix is not computed again: on average that is half of the encoder.
    cut = [min(clip, PROBE_FRAMES / 100) for clip in clips]
    n_groups = len(job.shapes.audio) / VARIANTS
    yield "calibrate: at the output, audio", n_groups / 2 * clock.encode(cut, VARIANTS)
    yield "calibrate: listen, decoder", clock.prompt(clips, PROBE_TOKENS)
    yield "calibrate: recipes, decoder", _TRY["decoder"] * clock.decoder * clock.speed.weight
    few = [sum(clips) / len(clips)] * PROBE_CLIPS
    n_groups = len(job.shapes.decoder) / VARIANTS
    yield "calibrate: at the output, decoder", n_groups * clock.prompt(few, PROBE_TOKENS, VARIANTS)


def _graph(
    job: Job, clock: _Clock, file: str, shapes: Sequence[Shape]
) -> Iterator[tuple[str, float]]:
    """One graph: traced, compared, stored in 8 bits and compared again."""
    n, speed, is_decoder = count(shapes), clock.speed, shapes is job.shapes.decoder
    clips = [*job.probes, *job.calibration]
    if is_decoder:
        part, cases = "decoder", sum(speed.of(n, rows) for rows in PREFILL_LENGTHS)
        compared, weighed = (clock.steps(PROBE_TOKENS * len(some)) for some in (job.probes, clips))
    else:
        part, cases = "audio", sum(speed.of(n, frames / 2) for frames in AWKWARD_FRAMES)
        compared, weighed = cases, clock.encode(clips)
    opened = _OPEN * n * speed.weight
    yield f"trace {file}", 5 + 0.1 * len(shapes) + _TRACE * n * speed.weight
    yield f"torch for {file}", cases
    yield f"compare {file} fp32", _EXACT_GRAPH[part] * compared
    if not job.is_int8:
        return
    stored = _STORE * n * speed.weight
    if job.calibration and not is_decoder:
        stored += sum(_rounding(*shape) for shape in shapes) * speed.product
        stored += _ROUND * n * speed.weight
    yield f"quantise {file}", stored
    if job.is_native:
        yield f"weigh {file}", opened + _GRAPH[part] * weighed
    yield f"compare {file} int8", opened + _GRAPH[part] * compared


def _rounding(n_in: int, n_out: int) -> float:
    """Multiplications of rounding a matrix by what it reads: :mod:`feedback`."""
    return 1.5 * n_in**3 + (MAX_ROWS + n_out / 2) * n_in**2
