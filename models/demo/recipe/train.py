"""Train the demo model from random weights on two CPU cores and write its checkpoint folder.

    python models/demo/recipe/train.py --speech SPEECH --out OUT --minutes 90 --seed 1

Two single-thread processes each take their own batches and average gradients. The schedule depends
on the fraction done: of ``--steps``, which makes runs with the same seed equal, or of
``--minutes``, which also holds on a busy machine. A number in the file ``OUT/minutes`` replaces
``--minutes`` during the run. ``OUT/state.pt`` lets the same command continue after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / name) for name in ("runtime", "export", "benchmarks")]

import numpy as np  # noqa: E402  (the source roots come first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from checkpoint import (  # noqa: E402
    build_tokenizer,
    evaluate,
    model_config,
    prompt_ids,
    save,
    shipped_weights,
)
from disturb import N_MELS, power_spectrum, to_log_mel  # noqa: E402
from network import Batch, Dropout, Trainee, align, initialise  # noqa: E402
from optimise import Optimisers, Rates, lr_scale_at  # noqa: E402
from outside import add_speech  # noqa: E402
from speech_mix import Clip, Example, SpeechMix, cut_between_words, read_split  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402

from ark_asr_onnx.audio.mel import mel_filters  # noqa: E402
from ark_onnx_export.config import ArkConfig  # noqa: E402

N_PROCESSES = 2
SHARE_ALIKE = frozenset({"FSDD"})  # its licence would bind the weights: for evaluation only
STORED = torch.bfloat16
BATCH_FRAMES = 5600  # padded mel frames of a batch in one process, 56 s
POOL = 64  # examples that are drawn together, then sorted by length
LONGEST = 14.0  # seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of the command line."""

    speech: Path
    out: Path
    minutes: float  # training time, evaluations included
    steps: int  # 0: `minutes` decides
    seed: int
    rates: Rates = field(default_factory=Rates)
    dropout: float = 0.1
    smoothing: float = 0.1
    ctc_weight: float = 0.5
    ramp: float = 0.02  # fraction of the plan from single words to whole sentences
    cut_at: tuple[float, ...] = (0.2, 0.35, 0.6)  # fractions at which sentences are aligned and cut
    report_every: float = 0.05  # fraction between evaluations


@dataclass
class Progress:
    """The progress of the training; saved with the state."""

    step: int = 0
    seconds: float = 0.0
    reported: int = 0  # evaluations done
    cut: int = 0  # alignments done
    history: list[dict[str, Any]] = field(default_factory=list)

    def fraction(self, plan: Plan) -> float:
        """Share of the plan that is done, 0 to 1; the same in every process."""
        if plan.steps:
            return min(1.0, self.step / plan.steps)
        override = plan.out / "minutes"
        minutes = float(override.read_text()) if override.exists() else plan.minutes
        shared = torch.tensor([self.seconds / (60.0 * minutes)])
        dist.broadcast(shared, 0)
        return min(1.0, float(shared))


class Supply:
    """Batches of similar length from a :class:`SpeechMix`, with words as token ids."""

    def __init__(self, mix: SpeechMix, tokenizer: Tokenizer, rng: np.random.Generator) -> None:
        self.mix, self._rng = mix, rng
        self._tokenizer = tokenizer
        self._ready: list[list[Example]] = []

    def next(self, max_seconds: float) -> Batch:
        """The next batch, of at most about :data:`BATCH_FRAMES` padded frames."""
        if not self._ready:
            pool = self.mix.examples(POOL, max_seconds)
            pool.sort(key=lambda e: e.log_mel.shape[1])
            batch: list[Example] = []
            for example in pool:
                if batch and (len(batch) + 1) * example.log_mel.shape[1] > BATCH_FRAMES:
                    self._ready.append(batch)
                    batch = []
                batch.append(example)
            self._ready.append(batch)
            self._rng.shuffle(self._ready)
        return collate(self._ready.pop(), self._tokenizer)


def collate(examples: list[Example], tokenizer: Tokenizer) -> Batch:
    """Pad examples to a batch."""
    mels = [torch.from_numpy(np.ascontiguousarray(e.log_mel.T)) for e in examples]
    padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2)
    ids = tuple(tuple(tokenizer.encode(f" {w}").ids[0] for w in e.words) for e in examples)
    return Batch(padded.contiguous(), torch.tensor([len(m) for m in mels]), ids)


class Run:
    """One process of the training."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.started = time.monotonic()
        self.progress = Progress()
        self.sentences = read_split(plan.speech, "sentences", "train")
        words = read_split(plan.speech, "words", "train")
        words += read_split(plan.speech, "digits", "train", SHARE_ALIKE)
        texts = [" ".join(clip.words) for clip in self.sentences + words]
        self.tokenizer = build_tokenizer(texts)
        self.config = model_config(self.tokenizer)
        generator = torch.Generator().manual_seed(plan.seed)
        end = self.tokenizer.token_to_id("<|im_end|>")
        self.model = Trainee(ArkConfig.from_json(self.config), prompt_ids(self.tokenizer), end)
        initialise(self.model, *_mel_statistics(self.sentences[::6] + words[::6]), generator)
        self.optimisers = Optimisers(self.model, plan.rates)
        state_path = plan.out / "state.pt"
        if state_path.exists():
            self._resume(torch.load(state_path, weights_only=True))
        rng = np.random.default_rng([plan.seed, rank, self.progress.step])
        mix = SpeechMix(self.sentences + [c for c in words if len(c.words) > 1], words, rng)
        self.supply = Supply(mix, self.tokenizer, rng)
        draws = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
        self.drop = Dropout(plan.dropout, draws)

    def train(self) -> None:
        """The loop: batch, step, and alignments and reports when they are due."""
        plan, progress = self.plan, self.progress
        base_seconds, losses = progress.seconds, []
        while (done := progress.fraction(plan)) < 1.0:
            if progress.cut < len(plan.cut_at) and done >= plan.cut_at[progress.cut]:
                progress.cut += 1
                self.supply.mix.use_cuts(self._cut_sentences())
            if done >= (progress.reported + 1) * plan.report_every:
                progress.reported = int(done / plan.report_every)
                self._report(done)
            longest = 1.3 + (LONGEST - 1.3) * min(1.0, done / plan.ramp)
            decoder_loss, ctc, norm = self._step(self.supply.next(longest), lr_scale_at(done))
            progress.step += 1
            progress.seconds = base_seconds + time.monotonic() - self.started
            losses.append((decoder_loss, ctc, norm))
            if progress.step % 50 == 0:
                means = np.mean(losses, axis=0)
                losses.clear()
                self._log(
                    f"step {progress.step} {progress.seconds:.0f}s {100 * done:.1f}% "
                    f"decoder {means[0]:.3f} ctc {means[1]:.3f} norm {means[2]:.2f}"
                )
        self._report(1.0)

    def _step(self, batch: Batch, lr_scale: float) -> tuple[float, float, float]:
        for p in self.optimisers.params:
            p.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            decoder_loss, ctc = self.model.losses(batch, self.drop, self.plan.smoothing)
        (decoder_loss + self.plan.ctc_weight * ctc).backward()
        norm = self.optimisers.step(lr_scale, self.progress.step)
        return float(decoder_loss.detach()), float(ctc.detach()), norm

    @torch.no_grad()
    def _cut_sentences(self) -> list[Clip]:
        """The sentences that CTC aligns with confidence, with cuts between their words."""
        self.optimisers.swap_average()
        silent, cut = Dropout(0.0, torch.Generator()), []
        for clip in self.sentences[self.rank :: N_PROCESSES]:
            mel = to_log_mel(power_spectrum(clip.waveform), mel_filters(N_MELS))
            batch = collate([Example(mel, clip.words)], self.tokenizer)
            embeds, n_audio = self.model.embed_audio(batch.log_mel, batch.n_frames, silent)
            n_rows, n_words = int(n_audio[0]), len(clip.words)
            if n_rows < 2 * n_words:
                continue
            rows, score = align(self.model.ctc_log_probs(embeds)[0, :n_rows], batch.words[0])
            if min(rows) >= 0 and score * n_rows > -0.7 * n_words:
                found = cut_between_words(clip, [0.08 * row + 0.04 for row in rows])
                cut += [found] if found else []
        self.optimisers.swap_average()
        gathered: list[list[Clip] | None] = [None] * N_PROCESSES
        dist.all_gather_object(gathered, cut)
        self._log(f"cut {sum(map(len, gathered))} of {len(self.sentences)} sentences")
        return [clip for part in gathered for clip in part]

    def _report(self, done: float) -> None:
        """Write the averaged weights as a checkpoint, score them on dev, save the state."""
        self.optimisers.swap_average()
        folders = ("words", "digits") if self.rank else ("sentences",)
        full = done == 1.0 or self.progress.reported % 4 == 0
        scores = {}
        if self.rank == 0:
            weights = shipped_weights(self.model, STORED)
            save(self.plan.out, weights, self.config, self.tokenizer, STORED)
        for folder in folders if full or self.rank == 0 else ():
            clips = read_split(self.plan.speech, folder, "dev")
            score = evaluate(self.model, self.tokenizer, clips, STORED)
            scores[folder] = round(score.wer, 2)
            if self.rank == 0:
                for reference, text in score.pairs[:: max(1, len(score.pairs) // 6)]:
                    self._log(f"  {reference!r} heard as {text!r}")
        self.optimisers.swap_average()
        gathered: list[dict[str, float] | None] = [None] * N_PROCESSES
        dist.all_gather_object(gathered, scores)
        scores = {k: v for part in gathered for k, v in part.items()}
        line = {"step": self.progress.step, "seconds": round(self.progress.seconds), **scores}
        self.progress.history.append(line)
        self._log(f"dev {100 * done:.0f}% {json.dumps(line)}")
        if self.rank == 0:
            self._save_state()

    def _save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "progress": asdict(self.progress),
            **self.optimisers.state(),
        }
        path = self.plan.out / "state.pt"
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimisers.load(state)
        self.progress = Progress(**state["progress"])
        # Cuts are not saved, so make them again at once.
        self.progress = replace(self.progress, cut=max(0, self.progress.cut - 1))

    def _log(self, line: str) -> None:
        if self.rank == 0:
            print(time.strftime("%H:%M:%S"), line, flush=True)


def _mel_statistics(clips: list[Clip]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[n_mels]`` of the log-mel of ``clips``."""
    filters = mel_filters(N_MELS)
    frames = np.concatenate([to_log_mel(power_spectrum(c.waveform), filters) for c in clips], 1)
    return torch.from_numpy(frames.mean(axis=1)), torch.from_numpy(frames.std(axis=1))


def _work(rank: int, plan: Plan) -> None:
    """Body of one process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{plan.out.resolve()}/join", rank=rank, world_size=N_PROCESSES
    )
    Run(plan, rank).train()
    dist.destroy_process_group()


def main() -> None:
    """Parse the command line and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folders = ("sentences", "words", "digits")
    add_speech(parser, *(f"{name}/{split}" for name in folders for split in ("train", "dev")))
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--minutes", type=float, default=90.0, help="length of the schedule")
    parser.add_argument("--steps", type=int, default=0, help="length in steps, reproducible")
    parser.add_argument("--seed", type=int, default=1)
    plan = Plan(**vars(parser.parse_args()))
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "join").unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.multiprocessing.spawn(_work, args=(plan,), nprocs=N_PROCESSES)
    (plan.out / "join").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
