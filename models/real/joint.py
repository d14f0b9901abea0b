"""The network for training: frozen language model with low-rank updates, adapter, CTC.

The language model computes in bf16; its residual stream and all trained weights are fp32. Only the
adapter, the rows of ARK's tokens, the factors of the updates and the weights of CTC have gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ark_folder import ADDED, TABLE
from deltas import ADDED_ROWS
from smollm2_half import LlamaSizes
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Past = list[tuple[Tensor, Tensor]]

_BF16 = torch.bfloat16
_ATTENTION = ("q_proj", "k_proj", "v_proj")


class Updated(nn.Module):
    """Frozen projections of one input side by side, each with an update ``B A`` of low rank."""

    def __init__(self, tensors: Tensors, names: Sequence[str], rank: int) -> None:
        super().__init__()
        weights = [tensors[name].float() for name in names]
        self.names = tuple(names)
        self.weight = torch.cat(weights).to(_BF16)
        n_inputs = weights[0].shape[1]
        self.a = nn.Parameter(torch.randn(len(names) * rank, n_inputs) / n_inputs**0.5)
        self.b = nn.ParameterList(torch.zeros(len(w), rank) for w in weights)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs side by side, bf16."""
        parts = F.linear(x, self.a.to(_BF16)).chunk(len(self.names), dim=-1)
        update = [F.linear(u, b.to(_BF16)) for u, b in zip(parts, self.b, strict=True)]
        return F.linear(x, self.weight) + torch.cat(update, dim=-1)

    def deltas(self) -> Tensors:
        """The factors under the checkpoint's names."""
        found: Tensors = {}
        for name, a, b in zip(self.names, self.a.chunk(len(self.names)), self.b, strict=True):
            found |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        return found


class Layer(nn.Module):
    """One layer of the language model."""

    def __init__(self, tensors: Tensors, i: int, sizes: LlamaSizes, rank: int) -> None:
        super().__init__()
        name = f"model.layers.{i}."
        attn, mlp = name + "self_attn.", name + "mlp."
        self.n_heads, self.n_kv_heads = sizes.n_heads, sizes.n_kv_heads
        self.norms = [
            tensors[f"{name}{n}_layernorm.weight"].float() for n in ("input", "post_attention")
        ]
        self.eps = sizes.rms_norm_eps
        self.qkv = Updated(tensors, [f"{attn}{n}.weight" for n in _ATTENTION], rank)
        self.out = Updated(tensors, [attn + "o_proj.weight"], rank)
        self.gate_up = Updated(tensors, [f"{mlp}{n}_proj.weight" for n in ("gate", "up")], rank)
        self.down = Updated(tensors, [mlp + "down_proj.weight"], rank)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, past: Past | None
    ) -> Tensor:
        """``[B, S, hidden]`` fp32; causal without ``mask``. Adds keys and values to ``past``."""
        batch, length, _ = x.shape
        dim = self.out.weight.shape[1] // self.n_heads
        heads = self.qkv(rms_norm(x, self.norms[0], self.eps)).view(batch, length, -1, dim)
        heads = heads.transpose(1, 2)
        n_turned = self.n_heads + self.n_kv_heads
        turned = _rotate(heads[:, :n_turned], *rope)
        q, k, v = turned[:, : self.n_heads], turned[:, self.n_heads :], heads[:, n_turned:]
        if past is not None:
            old_k, old_v = past.pop(0)
            k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
            past.append((k, v))
        shared = self.n_heads // self.n_kv_heads
        k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        mixed = _attention(q, k, v, mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(rms_norm(x, self.norms[1], self.eps)).chunk(2, dim=2)
        return x + self.down(F.silu(gate) * up)


class LanguageModel(nn.Module):
    """SmolLM2 with frozen weights and low-rank updates."""

    def __init__(self, tensors: Tensors, sizes: LlamaSizes, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(tensors, i, sizes, rank) for i in range(sizes.n_layers))
        self.table = tensors[TABLE][: sizes.vocab_size].to(_BF16)
        self.norm, self.eps = tensors["model.norm.weight"].float(), sizes.rms_norm_eps
        dim = sizes.hidden_size // sizes.n_heads
        self.inverse = sizes.rope_theta ** (-torch.arange(0, dim, 2).float() / dim)
        self._empty = torch.zeros(1, sizes.n_kv_heads, 0, dim, dtype=_BF16)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Normed states ``[B, S, hidden]``, bf16."""
        if positions is None:
            positions = torch.arange(x.shape[1])[None]
        angles = (positions[:, None, :, None] * self.inverse).repeat(1, 1, 1, 2)
        rope = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, rope, mask, past)
        return rms_norm(x, self.norm, self.eps)

    def logits(self, states: Tensor) -> Tensor:
        """fp32 logits over SmolLM2's own tokens."""
        return F.linear(states, self.table).float()

    def empty_past(self, batch: int) -> Past:
        """The past before the first position."""
        return [(self._empty.expand(batch, -1, -1, -1),) * 2 for _ in self.layers]


class Adapter(nn.Module):
    """Merged frames ``[..., 4 * width]`` to audio embeddings, under the checkpoint's names.

    ``gain`` multiplies the output; it is set once, between the stages, and is part of the last
    layer in :meth:`deltas`.
    """

    gain: Tensor

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        name = "audio_encoder.adapting."
        self.names = [f"{name}{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
        self.weights = nn.ParameterList(tensors[n].float().clone() for n in self.names)
        self.register_buffer("gain", torch.tensor(1.0))

    def forward(self, rows: Tensor, dropout: float) -> Tensor:
        """fp32 embeddings; the products are bf16."""
        up, up_bias, down, down_bias = (w.to(_BF16) for w in self.weights)
        hidden = F.gelu(F.linear(rows.to(_BF16), up, up_bias))
        hidden = F.dropout(hidden, dropout, self.training)
        return F.linear(hidden, down, down_bias).float() * self.gain

    def deltas(self) -> Tensors:
        """The weights under the checkpoint's names."""
        up, up_bias, down, down_bias = self.weights
        weights = up, up_bias, down * self.gain, down_bias * self.gain
        return dict(zip(self.names, weights, strict=True))


class CtcHead(nn.Module):
    """Scores of SmolLM2's tokens and of blank for audio embeddings: products with the table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.mean = table.float().mean(dim=0)
        centred = table.float() - self.mean
        self.table = centred.to(_BF16)
        typical = centred.square().sum(dim=1).mean()
        self.scale = nn.Parameter(12.0 / typical)
        self.blank = nn.Parameter(torch.zeros(table.shape[1]))
        self.bias = nn.Parameter(torch.tensor(4.0))

    def forward(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities ``[..., 1 + len(ids)]`` of blank and ``ids``."""
        scaled = (embeds - self.mean) * self.scale
        blank = scaled @ self.blank + self.bias
        tokens = F.linear(scaled.to(_BF16), self.table[ids]).float()
        return torch.cat((blank[..., None], tokens), dim=-1).log_softmax(dim=-1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances padded at the end."""

    rows: Tensor  # fp16 [B, N, 4 * width]
    n_rows: Tensor  # [B]
    ids: tuple[tuple[int, ...], ...]  # tokens of the texts, without the end


class Joint(nn.Module):
    """The whole network with its losses."""

    def __init__(
        self,
        tensors: Tensors,
        sizes: LlamaSizes,
        rank: int,
        prompt: tuple[list[int], list[int]],
        end: int,
    ) -> None:
        super().__init__()
        self.adapter = Adapter(tensors)
        self.language = LanguageModel(tensors, sizes, rank)
        self.ctc = CtcHead(self.language.table)
        self.added = nn.Parameter(tensors[TABLE][-len(ADDED) :].float().clone())
        self.prompt, self.end = prompt, end

    def ctc_losses(self, embeds: Tensor, batch: Batch, others: Tensor) -> tuple[Tensor, Tensor]:
        """CTC per token, among the tokens of the batch and ``others`` (ids, may repeat).

        The second value is the distance of the rows from those of their tokens.
        """
        flat = torch.tensor([i for ids in batch.ids for i in ids])
        ids = torch.cat((flat, others)).unique()
        scores = self.ctc(embeds, ids).transpose(0, 1)
        targets = torch.searchsorted(ids, flat) + 1
        lengths = torch.tensor([len(i) for i in batch.ids])
        losses = F.ctc_loss(
            scores, targets, batch.n_rows, lengths, reduction="none", zero_infinity=True
        )
        return losses.sum() / lengths.sum(), self._distance(embeds, scores.transpose(0, 1), ids)

    def _distance(self, embeds: Tensor, scores: Tensor, ids: Tensor) -> Tensor:
        """The distance of rows that CTC assigns to a token from that token's row of the table.

        It is squared, and relative to a row's typical square.
        """
        best, index = scores.detach().max(dim=-1)
        is_token = (index > 0) & (best > math.log(0.5))
        if not is_token.any():
            return embeds.sum() * 0.0
        rows = self.language.table[ids[index[is_token] - 1]].float()
        apart = (embeds[is_token] - rows).square().sum(dim=1)
        return (apart / rows.square().sum(dim=1).mean()).mean()

    def text_loss(self, embeds: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the texts and their ends, per token."""
        inputs, places, targets = [], [], []
        for i, ids in enumerate(batch.ids):
            inputs.append(self.inputs(embeds[i, : batch.n_rows[i]], ids))
            last = len(inputs[-1]) - len(ids) - 1
            places += [(i, last + j) for j in range(len(ids) + 1)]
            targets += [*ids, self.end]
        x = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        rows, columns = torch.tensor(places).T
        logits = self.language.logits(self.language(x)[rows, columns])
        return F.cross_entropy(logits, torch.tensor(targets))

    def inputs(self, embeds: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """The prompt with the audio in its place, followed by the text."""
        head, tail = self.prompt
        return torch.cat((self.embed(head), embeds, self.embed([*tail, *ids])))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """fp32 rows of the table."""
        own = len(self.language.table)
        rows = [self.added[i - own] if i >= own else self.language.table[i].float() for i in ids]
        return torch.stack(rows)

    def deltas(self) -> Tensors:
        """The content of ``deltas.safetensors``."""
        found = {**self.adapter.deltas(), ADDED_ROWS: self.added}
        for module in self.modules():
            if isinstance(module, Updated):
                found |= module.deltas()
        return found

    @torch.no_grad()
    def scale_audio(self, norm: Tensor) -> None:
        """Bring audio rows, whose mean norm is ``norm``, to the table's range; CTC does not change.

        They get the table's mean added, and the size of its rows around the mean.
        """
        change = self.ctc.table.float().norm(dim=1).mean() / norm
        self.adapter.gain *= change
        self.adapter.weights[3] += self.ctc.mean / self.adapter.gain
        self.ctc.scale /= change


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMS norm, computed in fp32; the result is bf16."""
    return (x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * gain).to(_BF16)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Plain products: torch's fused attention is slow to differentiate at these sizes."""
    scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril()
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=3).to(v.dtype) @ v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE over the whole head."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
