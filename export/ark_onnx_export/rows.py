"""Products of rows of bytes: the fastest there are, and what makes them exact enough.

Activations have one scale a row, weights one an output. Two things go wrong with that on a real
network, and both are mended in the order and number of the inputs, so that the product stays one:

- *Places.* A few channels are much larger than the others and set the scale of all. Such a channel
  is given ``m`` places instead of one, each with an m-th of its value: the scale can be an m-th,
  and its weight, as the mean of ``m`` codes, is m times as fine.
- *Segments.* Behind a GELU a row has a few large values and many small ones that matter. Channels
  are sorted by size at export, and each run of them has a scale of its own.

Weights are rounded with :mod:`feedback`.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.arrays import F32

from .feedback import round_weights
from .recipes import Recipe

Codes = npt.NDArray[np.int8]

GELU_FLOOR = 0.17  # no GELU is below -0.17: what it gives needs no codes there
_ALIGNED = 16  # further places come in this number: kernels read so many bytes at once
_PEAK = 4.0  # largest weight of an output, in standard deviations: about, for dividing the places
_TRIED = 40  # scales that are weighed against each other


def places(rows: F32, recipe: Recipe, *, unsigned: bool) -> npt.NDArray[np.int64]:
    """How many places each input has: ``[n_in]``.

    ``rows [n, n_in]`` are examples; ``unsigned`` ones are all positive. Weighed are the rounding of
    the activations, which the largest value of a row decides, and that of the weights, which
    matters where inputs are strong.
    """
    n_in = rows.shape[1]
    n_places = -(-round(recipe.extra * n_in) // _ALIGNED) * _ALIGNED
    found = np.ones(n_in, np.int64)
    if not n_places:
        return found
    sizes = np.abs(rows)
    largest, squares = sizes.max(axis=0), np.square(rows).mean(axis=0)
    steps = recipe.levels.activations * (2 if unsigned else 1)
    least = np.inf
    for bound in np.linspace(largest.max(), np.median(largest), _TRIED):
        tried = np.maximum(np.ceil(largest / max(float(bound), 1e-20)), 1).astype(np.int64)
        left = n_places - int(tried.sum() - n_in)
        if left < 0:
            break
        _hand_out(tried, squares, left)
        activations = n_in * float(np.square((sizes / tried).max(axis=1)).mean()) / steps**2
        weights = _PEAK**2 * float((squares / tried**2).sum()) / recipe.levels.weights**2
        if activations + weights < least:
            least, found = activations + weights, tried
    return found


def _hand_out(tried: npt.NDArray[np.int64], squares: F32, left: int) -> None:
    """Give the places that are left to the inputs whose weights gain most."""
    while left > 0:
        gains = squares * (1 / tried**2 - 1 / (tried + 1) ** 2)
        some = min(left, max(1, left // 4))
        tried[np.argpartition(-gains, some - 1)[:some]] += 1
        left -= some


def store(
    weight: F32, recipe: Recipe, counts: npt.NDArray[np.int64], rows: F32 | None
) -> tuple[list[tuple[Codes, F32]], F32]:
    """Codes ``[places, n_out]`` and scales ``[n_out]`` of each segment, and what they stand for.

    ``weight`` and what is restored are ``[n_in, n_out]``, ``counts [n_in]`` as :func:`places` gives
    them. In a segment the first place of every input comes first, then the :func:`further` ones.
    """
    level, segments = recipe.levels.weights, parts(len(weight), recipe)
    scales = [np.abs(weight[part]).max(axis=0) / np.float32(level) for part in segments]
    widths = [part.stop - part.start for part in segments]
    steps = np.repeat(np.stack(scales), widths, axis=0) / counts[:, None].astype(np.float32)
    steps = steps.astype(np.float32, copy=False)
    totals = round_weights(weight, steps, (counts * level).astype(np.float32), rows)
    stored: list[tuple[Codes, F32]] = []
    for part, scale in zip(segments, scales, strict=True):
        inputs, turns = further(counts[part])
        whole, shares = totals[part].astype(np.int64), counts[part][:, None]
        others = (whole[inputs] + turns[:, None]) // shares[inputs]
        codes = np.concatenate((whole // shares, others)).astype(np.int8)
        stored.append((codes, scale.astype(np.float32)))
    return stored, (totals * steps).astype(np.float32)


def further(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each place beyond the first: its input, and its number (1, 2, …)."""
    inputs = np.repeat(np.arange(len(counts)), counts - 1)
    begins = np.cumsum(counts - 1) - (counts - 1)
    return inputs, np.arange(len(inputs)) - begins[inputs] + 1


def offsets(counts: npt.NDArray[np.int64]) -> F32:
    """What is added, in steps, to the value in each :func:`further` place before it is rounded.

    Then the places of an input do not all round alike: their codes add up to ``m`` times the value,
    rounded once (Hermite's identity), and an offset that is the same for all rows.
    """
    inputs, turns = further(counts)
    shares = turns / counts[inputs]
    # A little less: the largest value of a row is a whole number of steps, a half on top a tie.
    return (0.999 * (shares - (shares > 0.5))).astype(np.float32)


def parts(n_in: int, recipe: Recipe) -> list[slice]:
    """The segments of the inputs."""
    bounds = np.linspace(0, n_in, min(recipe.segments, n_in) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
