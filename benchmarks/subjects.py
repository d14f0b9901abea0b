"""The engines to measure, each in a separate process: our runtime, the published one, and peers.

    python benchmarks/subjects.py NAME JSON [QUESTION ARGUMENT ...]

lab.py starts it and sends the questions.
A subject reads one JSON line per question from stdin and answers with one on stdout. Times are
measured in this process, so they do not include the pipe. Peers run under another Python, without
our dependencies, so each subject imports its modules when it starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# The 0.6B model's shapes, for peers that do not read our packages.
HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCABULARY = 896, 24, 14, 2, 4864, 151936
D_MODEL, ENCODER_LAYERS, ENCODER_HEADS, ENCODER_INNER, MELS = 1280, 32, 20, 5120, 128
AUDIO: dict[str, Any] = {
    "n_mels": MELS, "d_model": D_MODEL, "n_layers": ENCODER_LAYERS, "n_heads": ENCODER_HEADS,
    "ffn_dim": ENCODER_INNER, "merge_factor": 4, "max_frames": 3000, "n_stored_positions": 1500,
}  # fmt: skip
_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS,
    "n_kv_heads": KV_HEADS, "head_dim": 64, "ffn_dim": INNER, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_positions": 32768, "tie_word_embeddings": True,
}  # fmt: skip
_SCALE = 0.02  # of random embeddings


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


class Native:
    """A package of ours in our runtime; ``prepared`` is a folder of packed graphs."""

    def __init__(self, model: str, threads: int, prepared: str | None = None) -> None:
        import ark_asr_onnx

        self.transcriber = ark_asr_onnx.load(model, threads=threads, prepared_dir=prepared)
        self.sizes = self.transcriber.manifest.sizes
        self.model: Any = self.transcriber.model  # Any: parts below the seam are used
        self.decoding: Any = None

    def encode(self, frames: int) -> float:
        """Seconds from a log-mel of ``frames`` frames to audio embeddings."""
        log_mel = _noise(1, self.sizes.n_mels, frames)
        return _seconds(lambda: self.model.encode(log_mel))

    def prefill(self, positions: int) -> float:
        """Seconds for a prompt of ``positions``, up to the first logits."""
        rest = positions - self.model.n_cached  # the cached ones are in the package
        embeds = _SCALE * _noise(1, rest, self.sizes.hidden_size)
        self.decoding = self.model.decoder.start(1, positions + 256)
        return _seconds(lambda: self.decoding.prefill(0, embeds))

    def steps(self, n: int) -> list[float]:
        """Seconds of each of ``n`` steps after the last prefill."""
        embeds = _SCALE * _noise(1, 1, self.sizes.hidden_size)
        return [_seconds(lambda: self.decoding.step(embeds)) for _ in range(n)]

    def batch(self, slots: int, positions: int, n: int) -> list[float]:
        """Seconds of each step of several utterances together, each after its own prompt."""
        decoding = self.model.decoder.start(slots, positions + n)
        embeds = _SCALE * _noise(1, positions - self.model.n_cached, self.sizes.hidden_size)
        for slot in range(slots):
            decoding.prefill(slot, embeds)
        step = np.repeat(embeds[:, :1], slots, axis=0)
        return [_seconds(lambda: decoding.step(step)) for _ in range(n)]

    def clip(self, path: str, tokens: int) -> dict[str, Any]:
        """Times from a file to exactly ``tokens`` tokens; end of turn is blocked."""
        from ark_asr_onnx.audio import mel, sources
        from ark_asr_onnx.decoding import greedy

        begin = time.perf_counter()
        manifest, model = self.transcriber.manifest, self.model
        mask = greedy.token_mask(manifest.tokens, self.sizes.n_logits)
        mask[list(manifest.tokens.eos)] = -np.inf
        log_mel = mel.log_mel(sources.read(path), self.sizes.n_mels)
        marks = [time.perf_counter()]
        embeds = model.encode(log_mel)
        marks.append(time.perf_counter())
        decoding = model.start(1, model.n_prompt(log_mel.shape[2]) + tokens)
        ids = [greedy.choose(decoding.prefill(0, embeds), mask)[0]]
        marks.append(time.perf_counter())
        for _ in range(tokens - 1):
            logits = decoding.step(np.array(ids[-1:]))[0]
            ids.append(greedy.choose(logits, mask)[0])
        marks.append(time.perf_counter())
        return _clip(begin, marks, ids)

    def idle(self, seconds: float) -> float:
        """CPU time over wall time while waiting after work."""
        self.encode(100)
        cpu = time.process_time()
        time.sleep(seconds)
        return (time.process_time() - cpu) / seconds


class Published:
    """The published INT8 folder, used as its script uses it.

    transformers computes the features; all graphs run in default sessions; the embedding graph runs
    for every token; each step passes 48 whole caches of 2048 positions through Python and writes
    the deltas back.
    """

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime as ort
        from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

        folder = Path(model)
        config = json.loads((folder / "config.json").read_text())
        self.kv = (
            config["num_key_value_heads"],
            config["hidden_size"] // config["num_attention_heads"],
        )
        self.layers, self.hidden = config["num_hidden_layers"], config["hidden_size"]
        self.mels = config["whisper_config"]["num_mel_bins"]
        self.extractor = WhisperFeatureExtractor(feature_size=self.mels)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3

        def opened(name: str) -> Any:
            return ort.InferenceSession(
                str(folder / name), options, providers=["CPUExecutionProvider"]
            )

        self.encoder = opened("audio_encoder_whisper_int8.onnx")
        self.adapter = opened("audio_encoder_adapter_int8.onnx")
        self.embedding = opened("embedding_fp32.onnx")
        self.llm = opened("llm_kv_cpu_fp32_int8.onnx")
        self.capacity = self.llm.get_inputs()[1].shape[1]
        self.audio_token = config["audio_token_id"]
        self.caches: list[Any] = []
        self.length = 0

    def _embed(self, ids: list[int]) -> Any:
        return self.embedding.run(None, {"input_ids": np.array([ids], np.int64)})[0]

    def _audio(self, features: Any) -> Any:
        encoded = self.encoder.run(None, {"audios": features})[0]
        groups = encoded.shape[1] // 4
        merged = encoded[:, : groups * 4].reshape(1, groups, -1)
        return self.adapter.run(None, {"merged_audio_features": merged})[0]

    def _start(self) -> None:
        shape = (1, self.capacity, *self.kv)
        self.caches = [np.zeros(shape, np.float32) for _ in range(2 * self.layers)]
        self.length = 0

    def _call(self, embeds: Any) -> Any:
        begin, end = self.length, self.length + embeds.shape[1]
        mask = np.zeros((1, self.capacity), np.int64)
        mask[:, :end] = 1
        feeds = {
            "inputs_embeds": embeds, "attention_mask": mask,
            "cache_position": np.arange(begin, end, dtype=np.int64),
        }  # fmt: skip
        for i in range(self.layers):
            feeds[f"cache_key_{i}"], feeds[f"cache_value_{i}"] = self.caches[2 * i : 2 * i + 2]
        logits, *deltas = self.llm.run(None, feeds)
        for cache, delta in zip(self.caches, deltas, strict=True):
            cache[:, begin:end] = delta
        self.length = end
        return logits[0, -1]

    def encode(self, frames: int) -> float:
        """As :meth:`Native.encode`."""
        features = _noise(1, self.mels, frames)
        return _seconds(lambda: self._audio(features))

    def prefill(self, positions: int) -> float:
        """As :meth:`Native.prefill`."""
        embeds = _SCALE * _noise(1, positions, self.hidden)
        self._start()
        return _seconds(lambda: self._call(embeds))

    def steps(self, n: int) -> list[float]:
        """As :meth:`Native.steps`."""
        embeds = _SCALE * _noise(1, 1, self.hidden)
        return [_seconds(lambda: self._call(embeds)) for _ in range(n)]

    def text(self, path: str, tokens: str) -> str:
        """The text that the published script prints, of ``tokens`` tokens."""
        return self.tokenizer.decode(self.clip(path, int(tokens))["ids"], skip_special_tokens=True)

    def clip(self, path: str, tokens: int) -> dict[str, Any]:
        """As :meth:`Native.clip`."""
        import librosa

        begin = time.perf_counter()
        waveform, _ = librosa.load(path, sr=16000)
        features = self.extractor(
            waveform, sampling_rate=16000, padding="longest", return_tensors="pt"
        ).input_features.numpy()
        marks = [time.perf_counter()]
        audio = self._audio(features)
        marks.append(time.perf_counter())
        text = "<|user|><|begin_of_audio|>" + "<|audio|>" * audio.shape[1]
        text += "<|end_of_audio|>Please transcribe this audio.<|assistant|>"
        prompt = self.tokenizer.encode(text)
        embeds = self._embed(prompt)
        embeds[0, np.array(prompt) == self.audio_token] = audio[0]
        first_special = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self._start()
        ids: list[int] = []
        logits = self._call(embeds)
        for i in range(tokens):
            logits[first_special:] = -np.inf
            ids.append(int(logits.argmax()))
            if i == 0:
                marks.append(time.perf_counter())
            if i < tokens - 1:
                logits = self._call(self._embed(ids[-1:]))
        marks.append(time.perf_counter())
        return _clip(begin, marks, ids)


def _clip(begin: float, marks: list[float], ids: list[int]) -> dict[str, Any]:
    stages = np.diff([begin, *marks])
    return {
        "total": marks[-1] - begin, "ids": ids,
        **dict(zip(("features", "encode", "prefill", "decode"), map(float, stages), strict=True)),
    }  # fmt: skip


class GenAI:
    """onnxruntime-genai's own Qwen2 graph, from its model builder."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime_genai as og

        path = Path(model) / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config))
        self.og, self.model = og, og.Model(model)
        self.generator: Any = None

    def prefill(self, positions: int) -> float:
        """As :meth:`Native.prefill`; the embedding is in the graph."""
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=positions + 256, do_sample=False)
        self.generator = self.og.Generator(self.model, parameters)
        ids = np.random.default_rng(0).integers(0, 150000, positions).astype(np.int32)
        return _seconds(lambda: self.generator.append_tokens(ids))

    def steps(self, n: int) -> list[float]:
        """As :meth:`Native.steps`; the choice of the token is included."""
        self.generator.generate_next_token()
        return [_seconds(self.generator.generate_next_token) for _ in range(n)]


class LlamaCpp:
    """llama.cpp through llama-cpp-python, Q8_0."""

    def __init__(self, model: str, threads: int) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(
            model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_batch=512,
            verbose=False,
        )  # fmt: skip

    def prefill(self, positions: int) -> float:
        """As :meth:`Native.prefill`."""
        ids = np.random.default_rng(0).integers(0, 150000, positions).tolist()
        self.llama.reset()
        return _seconds(lambda: self.llama.eval(ids))

    def steps(self, n: int) -> list[float]:
        """As :meth:`Native.steps`."""
        return [_seconds(lambda i=i: self.llama.eval([100 + i])) for i in range(n)]


class CTranslate2:
    """CTranslate2's Whisper-large-v3 encoder in INT8."""

    def __init__(self, model: str, threads: int) -> None:
        import ctranslate2

        self.storage = ctranslate2.StorageView
        self.model = ctranslate2.models.Whisper(
            model, device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1
        )

    def encode(self, frames: int) -> float:
        """As :meth:`Native.encode`."""
        features = self.storage.from_array(_noise(1, MELS, frames))
        return _seconds(lambda: np.array(self.model.encode(features)))


class OpenVINO:
    """OpenVINO's CPU plugin on the encoder of openvino_encoder.py, in one of its variants."""

    def __init__(self, model: str, variant: str, threads: int) -> None:
        from openvino_encoder import VARIANTS, compiled

        kind, settings = VARIANTS[variant]
        self.network = compiled(Path(model) / f"{kind}.xml", settings, threads)

    def encode(self, frames: int) -> float:
        """As :meth:`Native.encode`."""
        log_mel = _noise(1, MELS, frames)
        return _seconds(lambda: self.network([log_mel]))

    def encode_file(self, log_mel: str) -> float:
        """The same for a stored log-mel."""
        numbers = np.load(log_mel)
        return _seconds(lambda: self.network([numbers]))

    def save(self, log_mel: str, out: str) -> None:
        """Audio embeddings of a stored log-mel, into a file."""
        np.save(out, self.network([np.load(log_mel)])[0])


class Torch:
    """torch with dynamically quantised INT8 linear layers, on random weights of the true shapes."""

    def __init__(self, part: str, threads: int) -> None:
        import torch
        from torch import nn

        from ark_onnx_export.config import AudioConfig, DecoderConfig
        from ark_onnx_export.modeling import AudioTower, Decoder

        torch.set_num_threads(threads)
        self.torch = torch
        if part == "encoder":
            self.module: Any = AudioTower(AudioConfig(**AUDIO), HIDDEN)
        else:
            self.module = Decoder(DecoderConfig(**_DECODER), 1024)
        for parent in list(self.module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):  # replaced, since ours computes in any type
                    plain = nn.Linear(
                        child.in_features, child.out_features, bias=child.bias is not None
                    )
                    nn.init.normal_(plain.weight, std=0.02)
                    setattr(parent, name, plain)
        with warnings.catch_warnings(action="ignore"):  # it warns that it is deprecated
            self.module = torch.ao.quantization.quantize_dynamic(self.module.eval(), {nn.Linear})
        self.past: Any = None

    def encode(self, frames: int) -> float:
        """As :meth:`Native.encode`."""
        x = self.torch.from_numpy(_noise(1, MELS, frames))
        with self.torch.inference_mode():
            return _seconds(lambda: self.module(x))

    def _run(self, embeds: Any) -> None:
        held = self.past[0][0].shape[2] + embeds.shape[1]
        lengths = self.torch.tensor([held - 1]), self.torch.tensor(held)
        with self.torch.inference_mode():
            _, self.past = self.module(embeds, *lengths, self.past)

    def prefill(self, positions: int) -> float:
        """As :meth:`Native.prefill`."""
        self.past = self.module.empty_past()
        embeds = self.torch.from_numpy(_SCALE * _noise(1, positions, HIDDEN))
        return _seconds(lambda: self._run(embeds))

    def steps(self, n: int) -> list[float]:
        """As :meth:`Native.steps`."""
        embeds = self.torch.from_numpy(_SCALE * _noise(1, 1, HIDDEN))
        return [_seconds(lambda: self._run(embeds)) for _ in range(n)]


def _real(name: str) -> Callable[..., Any]:
    def start(**arguments: Any) -> Any:
        return getattr(import_module("real_subjects"), name)(**arguments)

    return start


SUBJECTS: dict[str, Callable[..., Any]] = {
    "native": Native,
    "published": Published,
    "genai": GenAI,
    "llamacpp": LlamaCpp,
    "ctranslate2": CTranslate2,
    "openvino": OpenVINO,
    "torch": Torch,
    "transcriber": _real("Transcriber"),
    "whisper": _real("Whisper"),
}


def main() -> int:
    """Answer questions until stdin ends."""
    if sys.argv[1:2] in ([], ["-h"], ["--help"]):  # importing argparse would slow cold starts
        print(f"{__doc__}\nNAME is one of {', '.join(SUBJECTS)}.")
        return int(not sys.argv[1:])
    if sys.argv[3:]:  # a whole process for one question, as a user would start it
        print(getattr(SUBJECTS[sys.argv[1]](**json.loads(sys.argv[2])), sys.argv[3])(*sys.argv[4:]))
        return 0
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that lines of libraries are not taken for answers
    subject = SUBJECTS[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print(
            json.dumps(getattr(subject, question.pop("ask"))(**question)), file=answers, flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
