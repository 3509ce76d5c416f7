"""The detection heads of SR-LLM: label logits for each segment, span logits for each token.

They read the hidden states of one early layer of the tuned language model. That model is causal, so
a token has not seen what follows it; two small blocks let each token see its whole segment and what
stands before that, and nothing behind it. So a sentence of a stream, judged before the next one has
come, is judged as it is in the finished text.
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
    """Depthwise convolution, attention, feed-forward; all with pre-norm.

    No token sees further than to the end of its segment.
    """

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

    def forward(self, x: Tensor, same: Tensor, end: Tensor) -> Tensor:
        """Mix the tokens of a window.

        Args:
            x: `[B, T, D]`.
            same: `[B, T, T]` of bool, whether two tokens are of one segment.
            end: `[B, T]`, the last place that each token sees.

        Returns:
            `[B, T, D]`.
        """
        b, t, d = x.shape
        places = torch.arange(t, device=x.device)
        x = x + self.dropout(self._convolved(self.norm_conv(x), places, end))
        qkv = self.qkv(self.norm_attention(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        bias = (~same).to(q.dtype).unsqueeze(1) * self.elsewhere.to(q.dtype).view(1, -1, 1, 1)
        unseen = places > end.unsqueeze(-1)  # [B, T, T]
        bias = bias.masked_fill(unseen.unsqueeze(1), -1e4)  # [B, heads, T, T]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(b, t, d)))
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out

    def _convolved(self, x: Tensor, places: Tensor, end: Tensor) -> Tensor:
        """The convolution of `x` [B, T, D], less what a token does not see of what follows it."""
        out: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        half, count = self.conv.kernel_size[0] // 2, x.shape[1]
        behind = F.pad(x, (0, 0, 0, half))  # [B, T + half, D]
        for ahead in range(1, half + 1):
            unseen = (places + ahead > end).unsqueeze(-1)  # [B, T, 1]
            weight = self.conv.weight[:, 0, half + ahead]
            out = out - behind[:, ahead : ahead + count] * weight * unseen
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
                (the prompt's prefix) and -2 is padding, behind all others. Segments are in order.
            segments: S, the largest number of segments in a window.

        Returns:
            Label logits `[B, S, N_LOGITS]` and span logits `[B, T, len(CATEGORIES)]`. Rows of
            segments that a window does not have are meaningless.
        """
        return self.judge(hidden, owner, torch.arange(segments, device=owner.device))

    def judge(self, hidden: Tensor, owner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the numbers of the segments `[S]`: 0, 1, and so on."""
        same = owner.unsqueeze(1) == owner.unsqueeze(2)  # [B, T, T]
        member = owner.unsqueeze(1) == numbers.view(1, -1, 1)  # [B, S, T]
        # A token sees its segment and what stands before; what is of no segment, up to itself.
        places = torch.arange(owner.shape[1], device=owner.device)
        last = (member * places).amax(-1).gather(1, owner.clamp(min=0))
        end = torch.where(owner < 0, places, last)  # [B, T]
        x = self.project(self.norm(hidden))
        for block in self.blocks:
            x = block(x, same, end)
        x = self.norm_out(x)
        spans = self.spans(x)
        weight = self.focus(x).transpose(1, 2).masked_fill(~member, -1e4).softmax(-1)
        pooled = weight @ x  # [B, S, D]
        mean = member.to(x.dtype)
        mean = mean / mean.sum(-1, keepdim=True).clamp(min=1) @ x
        peak = spans.unsqueeze(1).masked_fill(~member.unsqueeze(-1), -1e4).amax(2)
        peak = peak.clamp(-20, 20)
        return self.labels(torch.cat([pooled, mean, peak], -1)), spans
