"""The maths of the Llama family, written for a guard: short texts, few rows, early exit.

Covers Llama 2 and 3, SmolLM2, Mistral, Qwen2 and Qwen3. Keys and values are written into a static
cache by position, so a rejected draft is taken back by writing over it. Names of sizes in comments:
B rows, T new tokens, S slots of the cache, K slots that are read, H hidden, I inside the MLP,
N query heads, M heads of keys and values, D width of a head, V vocabulary.

Sources: Llama (arXiv 2302.13971), grouped-query attention (2305.13245), rotary positions
(2104.09864); scaling of positions as in transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srllm_guard.engines.checkpoint import Checkpoint
from srllm_guard.engines.linear import Linear, activations, pack

FAMILY = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Architectures that run here; what sets them apart shows in the config and in the weights."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and constants of one model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_tokens: int
    eps: float
    tied: bool
    rope: Mapping[str, Any]
    """`rope_type`, `rope_theta`, and what the type needs."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From what a transformers config.json says; see `unsupported` first."""
        heads = int(config["num_attention_heads"])
        longest = int(config["max_position_embeddings"])
        if window := _window(config):
            longest = min(longest, window)  # up to there a sliding window changes nothing
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            max_tokens=longest,
            eps=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
            rope=_rope(config),
        )


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Why a model with this config does not run here; None if it does."""
    name = next(iter(config.get("architectures") or ()), "no architecture")
    if name not in FAMILY:
        return f"{name} is not one of {', '.join(FAMILY)}"
    if config.get("quantization_config"):
        return "its weights are quantised"
    if (act := config.get("hidden_act", "silu")) != "silu":
        return f"its activation is {act}, not silu"
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        return f"positions are scaled by {rope['rope_type']!r}, not by linear or llama3"
    if float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        return "only a part of each head is rotated"
    return None


def _window(config: Mapping[str, Any]) -> int | None:
    """Tokens that attention reaches back; None for all. Qwen names one that it does not use."""
    used = config.get("use_sliding_window", config["architectures"][0] == "MistralForCausalLM")
    return int(config["sliding_window"]) if used and config.get("sliding_window") else None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings, as transformers 4 or 5 writes them."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = found.pop("type", "default")
    found.setdefault("rope_type", kind)
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return found


def frequencies(shape: Shape) -> Tensor:
    """Angle for each step of position, `[D / 2]`, float32."""
    rope, width = shape.rope, shape.head_dim
    plain = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, width, 2).float() / width)
    if rope["rope_type"] == "linear":
        return plain / float(rope["factor"])
    if rope["rope_type"] != "llama3":
        return plain
    # Llama 3.1: long waves are stretched, short ones kept, and between them it is gradual.
    factor, context = float(rope["factor"]), int(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = context * plain / (2 * math.pi)  # within the original context
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / factor + share * plain


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer."""

    norm_in: Tensor  # [H]
    qkv: Linear  # H -> (N + 2 M) D
    norm_q: Tensor | None  # [D], Qwen3
    norm_k: Tensor | None
    out: Linear  # N D -> H
    norm_mlp: Tensor
    gate_up: Linear  # H -> 2 I
    down: Linear  # I -> H


Cache = Tensor
"""Keys and values, `[layers, 2, B, S, M, D]`."""


class Llama:
    """One model on one device.

    Args:
        shape: its sizes.
        checkpoint: its weights, adapter included.
        precision: a name in `linear.PRECISIONS` but "auto".
        device: where it runs.

    Raises:
        ModelError: a weight is missing.
        BundleError: the adapter does not fit.
    """

    def __init__(
        self, shape: Shape, checkpoint: Checkpoint, precision: str, device: torch.device
    ) -> None:
        self.shape = shape
        self.device = device
        self.dtype = activations(precision, device)
        self._frequencies = frequencies(shape).to(device)

        def linear(*modules: str) -> Linear:
            weights = [checkpoint.merged(module) for module in modules]
            biases = [checkpoint.vector(f"{module}.bias") for module in modules]
            held = [bias for bias in biases if bias is not None]
            bias = torch.cat(held).to(device) if len(held) == len(modules) else None
            return pack(torch.cat(weights).to(device), bias, precision)

        def norm(name: str) -> Tensor | None:
            found = checkpoint.vector(name)
            return None if found is None else found.to(device, self.dtype)

        def needed(name: str) -> Tensor:
            return checkpoint.raw(name).to(device, self.dtype)

        # The largest come first, as long as there is room for what they are made of. The table is
        # looked up only, so it stays as it is stored.
        self._table = checkpoint.raw("model.embed_tokens.weight").to(device)  # [V, H]
        if shape.tied:
            self._head = pack(self._table.float(), None, precision)
        else:
            self._head = linear("lm_head")
        self._layers = []
        for n in range(shape.layers):
            at = f"model.layers.{n}"
            attention = f"{at}.self_attn"
            self._layers.append(
                Layer(
                    norm_in=needed(f"{at}.input_layernorm.weight"),
                    qkv=linear(*(f"{attention}.{part}_proj" for part in "qkv")),
                    norm_q=norm(f"{attention}.q_norm.weight"),
                    norm_k=norm(f"{attention}.k_norm.weight"),
                    out=linear(f"{attention}.o_proj"),
                    norm_mlp=needed(f"{at}.post_attention_layernorm.weight"),
                    gate_up=linear(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
                    down=linear(f"{at}.mlp.down_proj"),
                )
            )
        self._norm = needed("model.norm.weight")
        checkpoint.check()

    def new_cache(self, rows: int, slots: int, layers: int | None = None) -> Cache:
        """An empty cache. It holds zeros, because what is masked must still be finite."""
        shape = self.shape
        sizes = (layers or shape.layers, 2, rows, slots, shape.kv_heads, shape.head_dim)
        return torch.zeros(sizes, dtype=self.dtype, device=self.device)

    def forward(
        self, ids: Tensor, positions: Tensor, cache: Cache, reach: int, layers: int | None = None
    ) -> Tensor:
        """Run new tokens through the first `layers` layers, all by default.

        Args:
            ids: `[B, T]`, int64.
            positions: `[B, T]`, int64: the slot that each token is written to, which is also its
                place in the text. A token sees the slots up to its own. Padding may go to any slot
                behind the row's last token: what stands there is written over before it is seen.
            cache: read and written, `[layers, 2, B, S, M, D]`.
            reach: K, the slots that are read: more than the largest position.
            layers: where to exit.

        Returns:
            Hidden states before the final norm, `[B, T, H]`.
        """
        rows = torch.arange(len(ids), device=self.device).unsqueeze(1)  # [B, 1]
        angles = positions.unsqueeze(-1).float() * self._frequencies  # [B, T, D / 2]
        cos, sin = angles.cos(), angles.sin()
        cos = torch.cat((cos, cos), -1).unsqueeze(2).to(self.dtype)  # [B, T, 1, D]
        sin = torch.cat((-sin, sin), -1).unsqueeze(2).to(self.dtype)
        mask = self._mask(positions, reach)
        x = F.embedding(ids, self._table).to(self.dtype)  # [B, T, H]
        for n, layer in enumerate(self._layers[:layers]):
            mixed = self._attend(
                layer,
                self._normed(x, layer.norm_in),
                cos,
                sin,
                mask,
                reach,
                cache[n],
                rows,
                positions,
            )
            x = x + layer.out(mixed)
            gate, up = layer.gate_up(self._normed(x, layer.norm_mlp)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token, float32 `[..., V]`, of states before the final norm."""
        return self._head(self._normed(hidden, self._norm)).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.shape.eps)

    def _mask(self, positions: Tensor, reach: int) -> Tensor:
        """What is added to scores, `[B, 1, G T, K]`: 0, or -inf for what is yet to come.

        G = N / M query heads read one head of keys; they lie behind one another as further queries.
        """
        groups = self.shape.heads // self.shape.kv_heads
        slots = torch.arange(reach, device=self.device)
        later = slots > positions.unsqueeze(-1)  # [B, T, K]
        mask = torch.zeros(later.shape, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(later, -torch.inf)
        return mask.repeat(1, groups, 1).unsqueeze(1)

    def _attend(
        self,
        layer: Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        reach: int,
        cache: Tensor,
        rows: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """`x` [B, T, H], `cache` [2, B, S, M, D] -> [B, T, N D]."""
        shape = self.shape
        b, t, _ = x.shape
        n, m, d = shape.heads, shape.kv_heads, shape.head_dim
        qkv = layer.qkv(x).view(b, t, n + 2 * m, d)
        qk = qkv[:, :, : n + m]
        if layer.norm_q is not None and layer.norm_k is not None:
            q, k = (
                self._normed(qk[:, :, :n], layer.norm_q),
                self._normed(qk[:, :, n:], layer.norm_k),
            )
            qk = torch.cat((q, k), 2)
        left, right = qk.chunk(2, -1)
        qk = torch.addcmul(qk * cos, torch.cat((right, left), -1), sin)  # [B, T, N + M, D]
        keys, values = cache
        keys[rows, positions] = qk[:, :, n:]
        values[rows, positions] = qkv[:, :, n + m :]
        q = qk[:, :, :n].view(b, t, m, n // m, d).permute(0, 2, 3, 1, 4).reshape(b, m, -1, d)
        mixed = F.scaled_dot_product_attention(
            q, keys[:, :reach].transpose(1, 2), values[:, :reach].transpose(1, 2), attn_mask=mask
        )  # [B, M, G T, D]
        return mixed.view(b, m, n // m, t, d).permute(0, 3, 1, 2, 4).reshape(b, t, n * d)
