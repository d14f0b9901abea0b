"""Real speech through the network: what each matrix product reads, and what each recipe costs.

Two passes in torch. The first collects, clip after clip, the ranges of every product's input and
some of its rows, and tries every recipe on those. The second stores one product at a time in 8 bits
and sees what that does to the output of its graph: some products may err a lot and change nothing,
others decide everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ark_asr_onnx.package.contract import Tokens

from .checkpoint import Network
from .figures import relative
from .findings import Calibration, Finding
from .listen import Heard
from .mask import blocked
from .products import product
from .recipes import PLAIN, RECIPES, SMOOTHED_FOR, Graph, costs
from .reference import lengths
from .smoothing import F32, Order, Site, best_factor

Progress = Callable[[str, Sequence[Any]], Any]  # label, items -> the items

_STRENGTHS = (0.35, 0.5, 0.65, 0.8)
_WORTH = 0.9  # smoothing must bring the error of a product at least to this share
_MAX_ROWS = 1024  # of each input, kept as examples
_TRIED_ROWS = 192  # of those, to try the recipes on
_MAX_COLUMNS = 1024  # of each weight, tried
_OUTLIER = 20.0  # times the median channel or row
_VARIANTS = 8  # networks with one product changed that run side by side
_PROBE_FRAMES, _PROBE_CLIPS = 400, 3  # audio of the second pass: of each clip, for the decoder


class Listener:
    """The first pass: the network on calibration clips, and what its products read.

    ``prefix`` holds the keys and values of the prompt's first positions.
    """

    def __init__(
        self,
        network: Network,
        tokens: Tokens,
        prefix: Sequence[Tensor],
        clips: Sequence[Heard],
        sites: Mapping[Graph, Sequence[Site]],
        progress: Progress,
    ) -> None:
        self.sites, self.clips = sites, clips
        self.runner = runner = _Runner(network, tokens, prefix)
        self.watched = {
            site.name: _Watched(runner.module(site.modules[0])) for g in sites for site in sites[g]
        }
        with (
            torch.inference_mode(),
            _hooks([(w.module, w.see) for w in self.watched.values()]),
        ):
            for clip in progress("calibrate: listen", clips):
                runner.audio(clip.log_mel)
                runner.decoder(clip)

    def order(self, site: Site) -> Order | None:
        """A site's channels from the largest to the smallest, where they can be moved."""
        if not site.movers:
            return None
        return self.watched[site.name].largest.argsort(descending=True).numpy()

    def orders(self) -> dict[str, Order]:
        """Those of all sites that have one."""
        found = {site.name: self.order(site) for some in self.sites.values() for site in some}
        return {name: order for name, order in found.items() if order is not None}

    def examples(self, factors: Mapping[str, F32]) -> dict[str, F32]:
        """Weight of ``audio.onnx`` -> rows that it is multiplied with, folded."""
        examples = dict[str, F32]()
        for site in self.sites["audio"]:
            rows = self.watched[site.name].rows
            folded = _fold(rows, factors.get(site.name), self.order(site))
            examples |= dict.fromkeys(site.weights, folded.numpy())
        return examples


def calibrate(listener: Listener, progress: Progress) -> dict[Graph, Calibration]:
    """Both passes' findings."""
    found: dict[Graph, Calibration] = {}
    runner = listener.runner
    with torch.inference_mode():
        for graph, some in listener.sites.items():
            findings, factors = [], dict[str, F32]()
            for site in progress(f"calibrate: recipes, {graph}", some):
                watched = listener.watched[site.name]
                order = listener.order(site)
                finding, factor = _try_recipes(site, runner, watched, graph, order)
                findings.append(finding)
                if factor is not None:
                    factors[site.name] = factor.numpy()
            changes = {site.name: (factors.get(site.name), listener.order(site)) for site in some}
            at_output = _at_output(runner, graph, some, changes, listener.clips, progress)
            findings = [replace(f, at_output=at_output[f.site]) for f in findings]
            found[graph] = Calibration(tuple(findings), factors)
    return found


def _fold(rows: Tensor, factor: F32 | None, order: Order | None) -> Tensor:
    """Rows as the graph has them."""
    if order is not None:
        rows = rows[..., torch.from_numpy(order)]
    if factor is not None:
        rows = rows / torch.from_numpy(factor).repeat(rows.shape[-1] // len(factor))
    return rows


class _Runner:
    """Both halves of the network on calibration clips, several copies side by side."""

    def __init__(self, network: Network, tokens: Tokens, prefix: Sequence[Tensor]) -> None:
        self.network, self.tokens = network, tokens
        self.past = list(zip(prefix[::2], prefix[1::2], strict=True))
        self.closed = torch.from_numpy(blocked(tokens, len(network.table)))

    def module(self, name: str) -> nn.Module:
        part = (
            self.network.decoder if name.startswith(("model.", "lm_head")) else self.network.tower
        )
        return part.get_submodule(name)

    def audio(self, log_mel: F32, copies: int = 1) -> Tensor:
        """``[copies, N, hidden]``."""
        return self.network.tower(torch.from_numpy(log_mel).expand(copies, -1, -1))

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


class _Watched:
    """The inputs of one module: ranges of all, some rows."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.rows, self.seen = torch.empty(0), 0
        self.largest = torch.empty(0)
        self._keys = torch.empty(0)
        self._generator = torch.Generator().manual_seed(0)

    def see(self, module: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        """A forward hook: keep the largest values, and rows drawn at random."""
        rows = _rows(module, inputs[0]).flatten(0, 1)
        largest = rows.abs().amax(dim=0)
        if not self.seen:
            self.largest, self.rows = largest, rows[:0]
        self.largest = torch.maximum(self.largest, largest)
        self.seen += len(rows)
        keys = torch.rand(len(rows), generator=self._generator)
        keys[rows.abs().amax(dim=1).argmax()] = 2  # the loudest stays
        rows, keys = torch.cat((self.rows, rows)), torch.cat((self._keys, keys))
        kept = keys.topk(min(_MAX_ROWS, len(keys))).indices
        self.rows, self._keys = rows[kept], keys[kept]


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """A module's input as the rows ``[B, n, n_in]`` of a matrix product."""
    if not isinstance(module, nn.Conv1d):
        return x
    padded, stride = F.pad(x, (1, 1)), module.stride[0]
    taps = [padded[:, :, i : padded.shape[2] - 2 + i : stride] for i in range(3)]
    return torch.cat(taps, dim=1).transpose(1, 2)


def _matrix(module: nn.Module) -> Tensor:
    """A module's weight ``[n_out, n_in]`` in fp32, for :func:`_rows`."""
    weight = cast("Tensor", module.weight).float()
    return weight.transpose(1, 2).flatten(1) if isinstance(module, nn.Conv1d) else weight


def _try_recipes(
    site: Site, runner: _Runner, watched: _Watched, graph: Graph, order: Order | None
) -> tuple[Finding, Tensor | None]:
    """Every recipe on some of the rows that were kept, with the best smoothing."""
    whole = torch.cat([_matrix(runner.module(name)) for name in site.modules])
    whole = _fold(whole, None, order)
    weight = whole[:: -(-len(whole) // _MAX_COLUMNS)]
    rows = _fold(watched.rows[:_TRIED_ROWS], None, order)  # the loudest is the first
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
        factor = best_factor(watched.largest, whole, candidate, site.repeat).repeat(site.repeat)
        if (found := error(judge, factor)) < lowest:
            lowest, strength, best = found, candidate, factor
    loudest = rows.abs().amax(dim=1)
    finding = Finding(
        site=site.name,
        weights=site.weights,
        n_weights=whole.numel(),
        channels=whole.shape[1],
        rows=watched.seen,
        largest=float(watched.largest.max()),
        outlier_channels=int((watched.largest > _OUTLIER * watched.largest.median()).sum()),
        outlier_rows=int((loudest > _OUTLIER * loudest.median()).sum()),
        strength=strength,
        errors={recipe: error(recipe, best) for recipe in costs(graph, *whole.T.shape)},
        at_output=(),
    )
    return finding, None if best is None else best[: len(best) // site.repeat]


def _at_output(
    runner: _Runner,
    graph: Graph,
    sites: Sequence[Site],
    changes: Mapping[str, tuple[F32 | None, Order | None]],
    clips: Sequence[Heard],
    progress: Progress,
) -> dict[str, tuple[float, ...]]:
    """For each site, what its storing in 8 bits changes at the graph's output."""
    n_sure = 0
    if graph == "audio":
        mels = [clip.log_mel[:, :, :_PROBE_FRAMES] for clip in clips]
        runs = [lambda copies, mel=mel: runner.audio(mel, copies) for mel in mels]
    else:
        # Where the model is sure, nothing changes much whatever is stored how: taken for nothing.
        by_doubt = sorted(clips, key=lambda clip: float(runner.decoder(clip).mean()))
        doubtful, sure = by_doubt[:_PROBE_CLIPS], by_doubt[_PROBE_CLIPS:]
        n_sure = sum(len(clip.decoded.token_ids) for clip in sure)
        runs = [lambda copies, clip=clip: runner.decoder(clip, copies) for clip in doubtful]
    found: dict[str, tuple[float, ...]] = {}
    groups = [sites[i : i + _VARIANTS - 1] for i in range(0, len(sites), _VARIANTS - 1)]
    for group in progress(f"calibrate: at the output, {graph}", groups):
        hooks = [
            (runner.module(name), _changed(i + 1, *changes[site.name]))
            for i, site in enumerate(group)
            for name in site.modules
        ]
        with _hooks(hooks):
            outputs = [run(1 + len(group)).numpy() for run in runs]
        for i, site in enumerate(group):
            if graph == "audio":
                found[site.name] = tuple(relative(y[0], y[i + 1]) for y in outputs)
            else:
                each = np.concatenate([np.abs(y[i + 1] - y[0]) for y in outputs]).tolist()
                found[site.name] = (*each, *[0.0] * n_sure)
    return found


def _changed(row: int, factor: F32 | None, order: Order | None) -> Callable[..., Tensor]:
    """A forward hook that stores a module in 8 bits for one row of the batch."""

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = _fold(_rows(module, inputs[0][row : row + 1]), factor, order)
        weight = _fold(_matrix(module), None if factor is None else np.float32(1) / factor, order)
        y = product(x, weight, PLAIN)
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
