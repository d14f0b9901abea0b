"""Real speech through the network: what each matrix product reads, and what each recipe costs.

Each graph is passed twice in torch. The first pass collects, clip after clip, the ranges of every
product's input and some of its rows; every recipe is tried on those. The second pass stores one
product at a time in 8 bits and sees what that does to the output of its graph: some products may
err a lot and change nothing, others decide everything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.package.contract import Tokens

from .checkpoint import Network
from .figures import relative
from .findings import Calibration, Finding
from .listen import Heard
from .mask import blocked
from .modeling import AudioTower
from .modeling.audio import State
from .products import product
from .quantize import RUN
from .recipes import PLAIN, RECIPES, SMOOTHED_FOR, Graph, costs
from .reference import lengths
from .samples import Sample, fold_rows
from .smoothing import Order, Site, best_factor

Progress = Callable[[str, Sequence[Any]], Any]  # label, items -> the items
_Change = tuple[F32 | None, Order | None]  # factors and order of a site

_STRENGTHS = (0.35, 0.5, 0.65, 0.8)
_WORTH = 0.9  # smoothing must bring the error of a product at least to this share
_TRIED_ROWS = 192  # of each sample
_MAX_COLUMNS = 1024  # of each weight, tried
_OUTLIER = 20.0  # times the median channel or row
VARIANTS = 8  # networks with one product changed that run side by side
PROBE_FRAMES, PROBE_CLIPS = 400, 3  # audio of the second pass: of each clip, for the decoder


class Runner:
    """Both halves of the network on calibration clips, several copies side by side.

    ``prefix`` holds the keys and values of the prompt's first positions.
    """

    def __init__(self, network: Network, tokens: Tokens, prefix: Sequence[Tensor]) -> None:
        self.network, self.tokens = network, tokens
        self.past = list(zip(prefix[::2], prefix[1::2], strict=True))
        self.closed = torch.from_numpy(blocked(tokens, len(network.table)))

    def module(self, name: str) -> nn.Module:
        """A module of either half, by the name of its weight."""
        part = (
            self.network.decoder if name.startswith(("model.", "lm_head")) else self.network.tower
        )
        return part.get_submodule(name)

    def run(self, graph: Graph, clip: Heard) -> None:
        """One half on a whole clip."""
        if graph == "audio":
            self.network.tower(torch.from_numpy(clip.log_mel))
        else:
            self.decoder(clip)

    def decoder(self, clip: Heard, copies: int = 1) -> Tensor:
        """Log-probabilities ``[copies, n]`` of the reference's tokens, teacher-forced."""
        ids = clip.decoded.token_ids
        prompt = self.network.prompt(clip.tokens, torch.from_numpy(clip.audio_embeds))
        embeds = torch.cat((prompt, self.network.embed(ids[:-1])[None]), dim=1)
        n_cached = len(self.tokens.prefix)
        x = embeds[:, n_cached:].expand(copies, -1, -1)
        past = [tuple(c.expand(copies, -1, -1, -1) for c in pair) for pair in self.past]
        hidden, _ = self.network.decoder.hidden(
            x, *lengths(embeds.shape[1], copies), cast("Any", past)
        )
        logits = self.network.decoder.lm_head(hidden[:, -len(ids) :])
        logprobs = logits.masked_fill(self.closed, -torch.inf).log_softmax(dim=2)
        return logprobs[:, torch.arange(len(ids)), list(ids)]


def collect(
    runner: Runner,
    graph: Graph,
    sites: Sequence[Site],
    clips: Sequence[Heard],
    folder: Path,
    progress: Progress,
) -> dict[str, Sample]:
    """The first pass: what each site reads. Rows are kept in a new folder."""
    folder.mkdir()
    samples = {site.name: Sample(folder / f"{site.name}.rows") for site in sites}

    def watch(sample: Sample) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda module, inputs, _: sample.add(_rows(module, inputs[0]).flatten(0, 1))

    pairs = [(runner.module(site.modules[0]), watch(samples[site.name])) for site in sites]
    with torch.inference_mode(), _hooks(pairs):
        for clip in progress(f"calibrate: listen, {graph}", clips):
            runner.run(graph, clip)
    return samples


def calibrate(
    runner: Runner,
    graph: Graph,
    sites: Sequence[Site],
    samples: Mapping[str, Sample],
    clips: Sequence[Heard],
    progress: Progress,
) -> Calibration:
    """Recipes tried on the samples, then the second pass."""
    findings: list[Finding] = []
    factors: dict[str, F32] = {}
    runner.network.page_out()
    with torch.inference_mode():
        for site in progress(f"calibrate: recipes, {graph}", sites):
            finding, factor = _try_recipes(site, runner, samples[site.name], graph)
            findings.append(finding)
            if factor is not None:
                factors[site.name] = factor.numpy()
        changes: dict[str, _Change] = {
            site.name: (factors.get(site.name), samples[site.name].order(site)) for site in sites
        }
        runner.network.page_out()
        at_output = _at_output(runner, graph, sites, changes, clips, progress)
    return Calibration(
        tuple(replace(finding, at_output=at_output[finding.site]) for finding in findings), factors
    )


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """A module's input as the rows ``[B, n, n_in]`` of a matrix product."""
    if not isinstance(module, nn.Conv1d):
        return x
    padded, stride = F.pad(x, (1, 1)), module.stride[0]
    taps = [padded[:, :, i : padded.shape[2] - 2 + i : stride] for i in range(3)]
    return torch.cat(taps, dim=1).transpose(1, 2)


def _matrix(weight: Tensor) -> Tensor:
    """A weight of a module as ``[n_out, n_in]`` in fp32, for :func:`_rows`."""
    return (weight.transpose(1, 2).flatten(1) if weight.ndim == 3 else weight).float()


def _try_recipes(
    site: Site, runner: Runner, sample: Sample, graph: Graph
) -> tuple[Finding, Tensor | None]:
    """Every recipe on some of the rows that were kept, with the best smoothing."""
    order = sample.order(site)
    parts = [_matrix(cast("Tensor", runner.module(name).weight)) for name in site.modules]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    whole = fold_rows(whole, None, order)
    weight = whole[:: -(-len(whole) // _MAX_COLUMNS)]
    rows = fold_rows(sample.rows(_TRIED_ROWS), None, order)  # the loudest is the first
    exact = rows @ weight.T
    norm = float(exact.norm()) or 1.0

    def error(recipe: str, factor: Tensor | None) -> float:
        x, w = (rows, weight) if factor is None else (rows / factor, weight * factor)
        found = product(x, w, RECIPES[recipe], after_gelu=site.after_gelu)
        return float((found - exact).norm()) / norm

    judge = SMOOTHED_FOR[graph]
    strength, best = None, None
    lowest = _WORTH * error(judge, None)
    for candidate in _STRENGTHS if site.writers else ():
        factor = best_factor(sample.largest, whole, candidate, site.repeat).repeat(site.repeat)
        if (found := error(judge, factor)) < lowest:
            lowest, strength, best = found, candidate, factor
    loudest = rows.abs().amax(dim=1)
    finding = Finding(
        site=site.name,
        weights=site.weights,
        n_weights=whole.numel(),
        channels=whole.shape[1],
        rows=sample.seen,
        largest=float(sample.largest.max()),
        outlier_channels=int((sample.largest > _OUTLIER * sample.largest.median()).sum()),
        outlier_rows=int((loudest > _OUTLIER * loudest.median()).sum()),
        strength=strength,
        errors={recipe: error(recipe, best) for recipe in costs(graph, *whole.T.shape)},
        at_output=(),
    )
    return finding, None if best is None else best[: len(best) // site.repeat]


def _at_output(
    runner: Runner,
    graph: Graph,
    sites: Sequence[Site],
    changes: Mapping[str, _Change],
    clips: Sequence[Heard],
    progress: Progress,
) -> dict[str, tuple[float, ...]]:
    """For each site, what its storing in 8 bits changes at the graph's output."""
    n_sure = 0
    passages: list[_Passage] = []
    if graph == "audio":
        tower = runner.network.tower
        passages = [_Passage(tower, clip.log_mel[:, :, :PROBE_FRAMES]) for clip in clips]
        runs = [passage.run for passage in passages]
    else:
        # Where the model is sure, nothing changes much whatever is stored how: taken for nothing.
        by_doubt = sorted(clips, key=lambda clip: float(runner.decoder(clip).mean()))
        doubtful, sure = by_doubt[:PROBE_CLIPS], by_doubt[PROBE_CLIPS:]
        n_sure = sum(len(clip.decoded.token_ids) for clip in sure)
        runs = [partial(runner.decoder, clip) for clip in doubtful]
    exact = [run(1)[0].numpy() for run in runs]
    found: dict[str, tuple[float, ...]] = {}
    groups = [sites[i : i + VARIANTS] for i in range(0, len(sites), VARIANTS)]
    for group in progress(f"calibrate: at the output, {graph}", groups):
        for passage in passages:
            passage.advance(group[0])
        hooks = [
            (runner.module(name), _changed(i, *changes[site.name]))
            for i, site in enumerate(group)
            for name in site.modules
        ]
        with _hooks(hooks):
            outputs = [run(len(group)).numpy() for run in runs]
        for i, site in enumerate(group):
            pairs = [(a, b[i]) for a, b in zip(exact, outputs, strict=True)]
            if graph == "audio":
                found[site.name] = tuple(relative(a, b) for a, b in pairs)
            else:
                each = np.concatenate([np.abs(b - a) for a, b in pairs]).tolist()
                found[site.name] = (*each, *[0.0] * n_sure)
    return found


class _Passage:
    """A clip on its way through the encoder, up to the first site that is changed.

    What comes before is the same for all changes of a group, and of all groups after it.
    """

    def __init__(self, tower: AudioTower, log_mel: F32) -> None:
        self.tower, self.log_mel = tower, torch.from_numpy(log_mel)
        self.state: State | None = None  # None: nothing has run
        self.layer = 0  # the next one

    def advance(self, site: Site) -> None:
        """Run, unchanged, the layers before that of a site."""
        layer = re.search(r"\.layers\.(\d+)\.", site.name)
        if layer is None and self.state is None:  # a convolution
            return
        until = int(layer.group(1)) if layer else self.tower.config.n_layers
        state = self.state or self.tower.enter(self.log_mel)
        self.state, self.layer = self.tower.through(state, self.layer, until), until

    def run(self, copies: int) -> Tensor:
        """``audio_embeds [copies, N, hidden]``."""
        tower = self.tower
        if self.state is None:
            return tower(self.log_mel.expand(copies, -1, -1))
        x, delta = self.state
        delta = None if delta is None else delta.expand(copies, -1, -1)
        state = tower.through((x.expand(copies, -1, -1), delta), self.layer)
        return tower.adapt(tower.merge(tower.leave(state)))


def _changed(row: int, factor: F32 | None, order: Order | None) -> Callable[..., Tensor]:
    """A forward hook that stores a module in 8 bits for one row of the batch."""

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = fold_rows(_rows(module, inputs[0][row : row + 1]), factor, order)
        inverse = None if factor is None else np.float32(1) / factor
        runs = cast("Tensor", module.weight).split(RUN)
        y = torch.cat([product(x, fold_rows(_matrix(w), inverse, order), PLAIN) for w in runs], -1)
        bias = cast("Tensor | None", module.bias)
        y = y if bias is None else y + bias
        output[row : row + 1] = y.transpose(1, 2) if isinstance(module, nn.Conv1d) else y
        return output

    return hook


@contextlib.contextmanager
def _hooks(pairs: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
