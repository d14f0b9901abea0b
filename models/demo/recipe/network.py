"""The network for training: padded batches, a CTC loss in addition to the decoder's, dropout.

All parameters but the two of the CTC head belong to ``AudioTower`` or ``Decoder``, so their
state dicts are the checkpoint. The arithmetic is that of ``ark_onnx_export.modeling`` rewritten
for speed in bfloat16; masks give a padded clip the same result as alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ark_onnx_export.config import ArkConfig
from ark_onnx_export.modeling import AudioTower, Decoder
from ark_onnx_export.modeling.ops import rms_norm

IGNORED = -100  # label of a position without a target
_MASKED = -1e4  # score of a padded key
_DROP_POOL = 1 << 22  # keep/drop draws shared by all dropout masks of a step


@dataclass(frozen=True, slots=True)
class Batch:
    """One padded batch of clips."""

    log_mel: Tensor  # [B, n_mels, T], zeros after each clip's end
    n_frames: Tensor  # int64 [B]
    words: tuple[tuple[int, ...], ...]  # token ids of each transcript, possibly none


class Dropout:
    """Inverted dropout whose masks are slices of one pool: drawing per element costs too much."""

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        self._rate, self._generator = rate, generator
        self._pool = torch.zeros(0)
        self._uses = 0

    def shuffled(self, count: int) -> list[int]:
        """The numbers below ``count`` in a random order, from the same generator."""
        return torch.randperm(count, generator=self._generator).tolist()

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with a fraction ``rate`` of its entries at zero; unchanged if ``rate`` is 0."""
        if self._rate == 0.0:
            return x
        if self._uses % 512 == 0:
            keep = torch.rand(_DROP_POOL, generator=self._generator) >= self._rate
            self._pool = keep.to(torch.bfloat16) / (1.0 - self._rate)
        self._uses += 1
        size = x.numel()
        if size > _DROP_POOL:
            return F.dropout(x, self._rate)
        spare = _DROP_POOL - size + 1
        start = int(torch.randint(spare, (1,), generator=self._generator))
        return x * self._pool[start : start + size].view_as(x)


class Trainee(nn.Module):
    """The model with its training losses."""

    def __init__(self, config: ArkConfig, prompt: tuple[list[int], list[int]], eos: int) -> None:
        """``prompt`` holds the ids before and after the audio rows, ``eos`` ends a target."""
        super().__init__()
        hidden = config.decoder.hidden_size
        self.tower = AudioTower(config.audio, hidden)
        self.decoder = Decoder(config.decoder)
        self.blank = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))
        self.ctc_gain = nn.Parameter(torch.ones(hidden))
        self._head, self._tail = prompt
        self._eos = eos

    def losses(self, batch: Batch, drop: Dropout, smoothing: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy per target token and CTC loss per target word, both scalars."""
        embeds, n_audio = self.embed_audio(batch.log_mel, batch.n_frames, drop)
        log_probs = self.ctc_log_probs(embeds)
        ctc = _ctc_loss(log_probs, n_audio, batch.words)
        rows = [row[:n] for row, n in zip(embeds, n_audio.tolist(), strict=True)]
        words = list(batch.words)
        # Joining clips after the encoder gives the decoder longer clips at almost no cost.
        order = drop.shuffled(len(rows))
        while len(order) > 1:
            group, order = order[: 2 + order[0] % 3], order[2 + order[0] % 3 :]
            rows.append(torch.cat([rows[i] for i in group]))
            words.append(sum((words[i] for i in group), ()))
        return self._decoder_loss(rows, words, drop, smoothing), ctc

    def embed_audio(
        self, log_mel: Tensor, n_frames: Tensor, drop: Dropout
    ) -> tuple[Tensor, Tensor]:
        """``audio_embeds [B, N, hidden]`` of a padded batch and the valid rows of each clip."""
        encoder, config = self.tower.audio_encoder, self.tower.config
        valid = torch.arange(log_mel.shape[2]) < n_frames[:, None]  # [B, T]
        x = F.gelu(encoder.whisper.conv1(log_mel)) * valid[:, None]
        x = F.gelu(encoder.whisper.conv2(x)).transpose(1, 2)
        n_encoded = (n_frames + 1) // 2
        padded = torch.arange(x.shape[1]) >= n_encoded[:, None]
        bias = torch.zeros(padded.shape, dtype=x.dtype).masked_fill_(padded, _MASKED)
        cos, sin = (t[: x.shape[1]].to(x.dtype) for t in (self.tower.rope_cos, self.tower.rope_sin))
        x = drop(x)
        for layer in encoder.whisper.layers:
            norm = layer.self_attn_layer_norm
            normed = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            x = x + drop(_encoder_attention(layer.self_attn, normed, cos, sin, bias))
            norm = layer.final_layer_norm
            normed = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            x = x + drop(layer.fc2(drop(F.gelu(layer.fc1(normed)))))
        norm = encoder.layer_norm
        x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        x = x.masked_fill(padded[:, :, None], 0.0)
        embeds = self.tower.adapt(drop(self.tower.merge(x)))
        return embeds, (n_encoded // config.merge_factor).clamp_min(1)

    def ctc_log_probs(self, embeds: Tensor) -> Tensor:
        """``[B, N, vocab + 1]`` log-probabilities of the words and, last, of no word."""
        classes = torch.cat((self.decoder.lm_head.weight, self.blank[None]))
        return F.linear(rms_norm(embeds, self.ctc_gain, 1e-6), classes).float().log_softmax(2)

    def _decoder_loss(
        self, rows: list[Tensor], words: list[tuple[int, ...]], drop: Dropout, smoothing: float
    ) -> Tensor:
        """Cross-entropy of the transcripts after ``rows``, one ``[n_audio, hidden]`` per clip."""
        table = self.decoder.lm_head.weight
        head, tail = (F.embedding(torch.tensor(ids), table) for ids in (self._head, self._tail))
        targets = [(*ids, self._eos) for ids in words]
        joined, labels = [], []
        for row, target in zip(rows, targets, strict=True):
            text = F.embedding(torch.tensor(target[:-1], dtype=torch.int64), table)
            joined.append(torch.cat((head, row.to(head.dtype), tail, text)))
            label = torch.full((joined[-1].shape[0],), IGNORED)
            label[-len(target) :] = torch.tensor(target)
            labels.append(label)
        # Right padding needs no mask: attention is causal and padded positions have no label.
        x = nn.utils.rnn.pad_sequence(joined, batch_first=True)
        label = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED).flatten()
        hidden = self._decoder_hidden(x, drop).flatten(0, 1)
        kept = (label != IGNORED).nonzero()[:, 0]
        logits = F.linear(hidden[kept], table).float()
        return F.cross_entropy(logits, label[kept], label_smoothing=smoothing)

    def _decoder_hidden(self, x: Tensor, drop: Dropout) -> Tensor:
        """Normed states ``[B, S, hidden]`` of ``inputs_embeds [B, S, hidden]``."""
        decoder, eps = self.decoder, self.decoder.config.rms_norm_eps
        length = x.shape[1]
        cos, sin = (t[:length].to(x.dtype) for t in (decoder.rope_cos, decoder.rope_sin))
        bias = torch.full((length, length), _MASKED, dtype=x.dtype).triu_(1)
        for layer in decoder.model.layers:
            normed = rms_norm(x, layer.input_layernorm.weight, eps)
            x = x + drop(
                _decoder_attention(layer.self_attn, decoder.config, normed, cos, sin, bias)
            )
            normed = rms_norm(x, layer.post_attention_layernorm.weight, eps)
            x = x + drop(layer.mlp(normed))
        return rms_norm(x, decoder.model.norm.weight, eps)


def _encoder_attention(
    attn: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
) -> Tensor:
    """``modeling.audio.EncoderAttention`` with one packed projection; ``bias`` is ``[B, S]``.

    The rotary pairs are gathered into halves by permuting rows of the weights: scores do not
    change, and frames need no interleaving.
    """
    batch, length, width = x.shape
    heads, half = attn.n_heads, cos.shape[1]
    dim = width // heads
    order = torch.cat(
        (torch.arange(0, 2 * half, 2), torch.arange(1, 2 * half, 2), torch.arange(2 * half, dim))
    )
    order = (torch.arange(heads)[:, None] * dim + order).flatten()
    scale = dim**-0.5
    weight = torch.cat(
        (attn.q_proj.weight[order] * scale, attn.k_proj.weight[order], attn.v_proj.weight)
    )
    q_bias = attn.q_proj.bias[order] * scale
    qkv_bias = torch.cat((q_bias, torch.zeros_like(q_bias), attn.v_proj.bias))
    qkv = F.linear(x, weight, qkv_bias).view(batch, length, 3, heads, dim).permute(2, 0, 3, 1, 4)
    qk, v = qkv[:2], qkv[2]
    even, odd, rest = qk.split([half, half, dim - 2 * half], dim=4)
    q, k = torch.cat((even * cos - odd * sin, even * sin + odd * cos, rest), dim=4)
    scores = q @ k.transpose(2, 3) + bias[:, None, None]
    context = (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(batch, length, width)
    return attn.out_proj(context)


def _decoder_attention(
    attn: nn.Module, config: object, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
) -> Tensor:
    """``modeling.decoder.DecoderAttention`` over a whole sequence; ``bias [S, S]`` is causal."""
    batch, length, _ = x.shape
    n_heads, n_kv, dim = config.n_heads, config.n_kv_heads, config.head_dim
    parts = (attn.q_proj, attn.k_proj, attn.v_proj)
    weight, packed_bias = (torch.cat([getattr(p, n) for p in parts]) for n in ("weight", "bias"))
    qkv = F.linear(x, weight, packed_bias).view(batch, length, -1, dim).transpose(1, 2)
    first, second = qkv[:, : n_heads + n_kv].chunk(2, dim=3)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=3)
    q, k = turned.split([n_heads, n_kv], dim=1)
    group = n_heads // n_kv
    q = q.reshape(batch, n_kv, group * length, dim) * dim**-0.5
    scores = (q @ k.transpose(2, 3)).view(batch, n_kv, group, length, length) + bias
    weights = scores.softmax(dim=4).view(batch, n_kv, group * length, length)
    context = (weights @ qkv[:, n_heads + n_kv :]).view(batch, n_heads, length, dim)
    return attn.o_proj(context.transpose(1, 2).reshape(batch, length, n_heads * dim))


def _ctc_loss(log_probs: Tensor, n_audio: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
    """CTC loss per word, averaged over clips; ``log_probs [B, N, vocab + 1]``, blank last."""
    lengths = torch.tensor([len(w) for w in words])
    flat = torch.tensor([i for w in words for i in w], dtype=torch.int64)
    blank = log_probs.shape[2] - 1
    total = F.ctc_loss(
        log_probs.transpose(0, 1), flat, n_audio, lengths, blank, "sum", zero_infinity=True
    )
    return total / max(int(lengths.sum()), 1)


@torch.no_grad()
def initialise(model: Trainee, mean: Tensor, std: Tensor, generator: torch.Generator) -> None:
    """Draw all weights; ``mean`` and ``std`` ``[n_mels]`` of the log-mel are folded into conv1.

    The gain of the convolutions and the small residual branches matter: without them the losses
    do not fall for the first thousands of steps.
    """
    for name, p in model.named_parameters():
        if "norm" in name or name == "ctc_gain" or p.dim() == 1:
            if name != "blank":
                p.fill_(1.0 if name.endswith("weight") or name == "ctc_gain" else 0.0)
            continue
        std_dev = 1.0 / math.sqrt(p[0].numel())
        if ".conv" in name:
            std_dev *= 1.2 * math.sqrt(2.0)
        if name.endswith(("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")):
            std_dev *= 0.25
        p.normal_(0.0, std_dev, generator=generator)
    model.blank.normal_(0.0, 1.0 / math.sqrt(model.blank.numel()), generator=generator)
    conv1 = model.tower.audio_encoder.whisper.conv1
    conv1.weight /= std[None, :, None]
    conv1.bias.copy_(-(conv1.weight * mean[None, :, None]).sum(dim=(1, 2)))


def align(log_probs: Tensor, words: tuple[int, ...]) -> tuple[list[int], float]:
    """Viterbi path of CTC: for each word the row ``[0, N)`` in its middle, and the mean log-prob.

    ``log_probs`` is ``[N, vocab + 1]``, blank last. Needs ``N >= len(words)``.
    """
    blank = log_probs.shape[1] - 1
    states = [blank]
    for word in words:
        states += [word, blank]
    frames = log_probs[:, states].tolist()
    n_states = len(states)
    score = [frames[0][0], frames[0][1]] + [-math.inf] * (n_states - 2)
    back: list[list[int]] = []
    for frame in frames[1:]:
        previous, came = score, [0] * n_states
        score = [0.0] * n_states
        for s in range(n_states):
            best = s
            if s >= 1 and previous[s - 1] > previous[best]:
                best = s - 1
            skip = s >= 2 and s % 2 == 1 and states[s] != states[s - 2]
            if skip and previous[s - 2] > previous[best]:
                best = s - 2
            score[s], came[s] = previous[best] + frame[s], best
        back.append(came)
    s = n_states - 1 if score[-1] > score[-2] else n_states - 2
    mean = score[s] / len(frames)
    path = [s]
    for came in reversed(back):
        s = came[s]
        path.append(s)
    path.reverse()
    centres = []
    for k in range(len(words)):
        at = [t for t, s in enumerate(path) if s == 2 * k + 1]
        centres.append((at[0] + at[-1]) // 2 if at else -1)
    return centres, mean
