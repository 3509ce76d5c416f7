"""The detection heads of SR-LLM: label logits for each segment, span logits for each token.

They read the hidden states of one early layer of the tuned language model. That model is causal, so
a token has not seen what follows it; two small bidirectional blocks read each segment with what
stands before it, up to its own end, before they judge.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srllm_guard.labels import CATEGORIES, N_LOGITS


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """Sizes of the heads. `hidden` is the width of the language model."""

    hidden: int
    dim: int = 256
    heads: int = 4
    blocks: int = 2
    kernel: int = 5
    dropout: float = 0.1

    def to_dict(self) -> dict[str, int | float]:
        """Return the sizes as they stand in a manifest."""
        return asdict(self)


class Block(nn.Module):
    """Depthwise convolution, attention over the whole window, feed-forward; all with pre-norm."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.norm_conv = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, config.kernel, padding=config.kernel // 2, groups=dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        # How much less a token of another segment is attended to, learned for each head.
        self.elsewhere = nn.Parameter(torch.full((config.heads,), -1.0))
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, same: Tensor, valid: Tensor) -> Tensor:
        """`x` [B, T, D], `same` [B, T, T] (0/1), `valid` [B, T] (0/1) -> [B, T, D]."""
        b, t, d = x.shape
        inside = valid.unsqueeze(-1)
        conv = self.conv((self.norm_conv(x) * inside).transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(conv)
        qkv = self.qkv(self.norm_attention(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        bias = (1 - same).unsqueeze(1) * self.elsewhere.view(1, -1, 1, 1)
        bias = bias + (1 - valid)[:, None, None, :] * -1e4  # [B, heads, T, T]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(b, t, d)))
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out


class DetectionHeads(nn.Module):
    """Label and span logits from hidden states."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden)
        self.project = nn.Linear(config.hidden, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(config.dim)
        self.spans = nn.Linear(config.dim, len(CATEGORIES))
        self.focus = nn.Linear(config.dim, 1)
        self.labels = nn.Sequential(
            nn.Linear(2 * config.dim + len(CATEGORIES), config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, N_LOGITS),
        )

    def forward(self, hidden: Tensor, owner: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """Judge windows of segments.

        Args:
            hidden: hidden states, `[B, T, hidden]`.
            owner: for each token the index of its segment, `[B, T]`; -1 belongs to no segment
                (the prompt's prefix) and -2 is padding.
            segments: S, the largest number of segments in a window.

        Returns:
            Label logits `[B, S, N_LOGITS]` and span logits `[B, T, len(CATEGORIES)]`. Rows of
            segments that a window does not have are meaningless.
        """
        valid = (owner > -2).to(hidden.dtype)
        same = (owner.unsqueeze(1) == owner.unsqueeze(2)).to(hidden.dtype)
        x = self.project(self.norm(hidden))
        for block in self.blocks:
            x = block(x, same, valid)
        x = self.norm_out(x)
        spans = self.spans(x)
        index = torch.arange(segments, device=owner.device).view(1, -1, 1)
        member = owner.unsqueeze(1) == index  # [B, S, T]
        weight = self.focus(x).transpose(1, 2).masked_fill(~member, -1e4).softmax(-1)
        pooled = weight @ x  # [B, S, D]
        mean = member.to(x.dtype)
        mean = mean / mean.sum(-1, keepdim=True).clamp(min=1) @ x
        peak = spans.unsqueeze(1).masked_fill(~member.unsqueeze(-1), -1e4).amax(2)
        peak = peak.clamp(-20, 20)
        return self.labels(torch.cat([pooled, mean, peak], -1)), spans

    def in_turn(self, hidden: Tensor, owner: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """Judge each segment by itself and what stands before it, never by what follows.

        So a sentence of a stream, judged before the next one has come, is judged as it is in the
        finished text. The states are causal as it is; only the heads run once for each segment.

        Args:
            hidden: as in `forward`.
            owner: as in `forward`; segments are in order.
            segments: as in `forward`.

        Returns:
            As `forward`; span logits of tokens that belong to no segment are 0.
        """
        b, t, _ = hidden.shape
        labels, spans = (
            hidden.new_zeros(b, segments, N_LOGITS),
            hidden.new_zeros(b, t, len(CATEGORIES)),
        )
        places = torch.arange(t, device=owner.device)
        for n in range(segments):
            mine = owner == n  # [B, T]
            rows = mine.any(1).nonzero()[:, 0]  # [R], the windows that have such a segment
            if not len(rows):
                continue
            mine = mine[rows]
            ends = ((places + 1) * mine).amax(1, keepdim=True)  # [R, 1]
            end = int(ends.max())
            seen = owner[rows, :end].masked_fill(places[:end] >= ends, -2)
            row, marks = self(hidden[rows, :end], seen, n + 1)
            labels[rows, n] = row[:, n].to(labels.dtype)
            spans[rows, :end] = torch.where(mine[:, :end, None], marks, spans[rows, :end])
        return labels, spans
