"""What the machine allows: memory bandwidth, matrix rate, and the times that nothing can beat.

A step of decoding reads every weight once, so bytes over bandwidth bound it from below; a pass over
many tokens multiplies each of them with every weight, so operations over rate bound that (the
roofline model, Williams et al. 2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
"""Of one weight, scales apart."""

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What products are timed in; of integers there is none that runs everywhere."""

READ = 256 * 2**20
"""Bytes that are read to measure the bandwidth: more than the caches hold."""

SIDE = 2048
"""Of the square matrices whose product is timed."""

EMULATED = 2.0
"""A product that would take more seconds is emulated; a small one tells its rate soon enough."""

TOKENS = (1, 12, 64)
"""Tokens of the passes whose least time is told: a step, a verified draft, a prefill."""


def weights(config: Mapping[str, Any]) -> tuple[int, int]:
    """Weights of a Llama-family model, from its config.json.

    Returns:
        Those that a token passes in the layers, and those of the output head.
    """
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or hidden // heads)
    queries = heads * width
    keys = int(config.get("num_key_value_heads") or heads) * width
    layer = hidden * (queries + 2 * keys) + queries * hidden + 3 * hidden * inner
    return int(config["num_hidden_layers"]) * layer, hidden * int(config["vocab_size"])


def measure(
    config: Mapping[str, Any], device: str, *, read: int = READ, side: int = SIDE
) -> dict[str, Any]:
    """Bandwidth and matrix rates of a device, and what follows for the model of `config`.

    Returns:
        `gb_s`, `weights`, and by precision `gflop_s` (None where only the bytes are known) and
        `least_ms`: for passes of `TOKENS` tokens the milliseconds that cannot be beaten.
    """
    place = torch.device(device)
    layers, head = weights(config)
    bandwidth = _bandwidth(place, read)
    rates = {name: _rate(place, kind, side) for name, kind in TYPES.items()}
    found: dict[str, Any] = {}
    for name, size in BYTES.items():
        # Half-precision weights can be widened on the way, so fp32's rate is open to them too.
        known = [rate for key in (name, "fp32") if name in TYPES and (rate := rates[key])]
        rate = max(known, default=None)
        found[name] = {
            "gflop_s": None if rate is None else round(rate / 1e9, 1),
            "least_ms": {
                str(tokens): round(1e3 * _least(layers, head, size, tokens, bandwidth, rate), 3)
                for tokens in TOKENS
            },
        }
    return {
        "gb_s": round(bandwidth / 1e9, 2),
        "weights": layers + head,
        "precisions": found,
    }


def _least(
    layers: int, head: int, size: float, tokens: int, bandwidth: float, rate: float | None
) -> float:
    """Seconds of a pass. Only the tokens of a draft need the head; a prefill needs it once."""
    through_head = tokens if tokens <= TOKENS[1] else 1
    read = (layers + head) * size / bandwidth
    compute = 0.0 if rate is None else 2 * (layers * tokens + head * through_head) / rate
    return max(read, compute)


def _bandwidth(device: torch.device, read: int) -> float:
    """Bytes a second, the best of a sum, a product with a vector, and a copy (read and written)."""
    rows = max(1, read // 4 // 1024)
    matrix = torch.ones(rows, 1024, device=device)
    vector, other = torch.ones(1024, device=device), torch.empty_like(matrix)
    size = matrix.numel() * 4
    return max(
        size / _fastest(matrix.sum, device),
        size / _fastest(lambda: matrix @ vector, device),
        2 * size / _fastest(lambda: other.copy_(matrix), device),
    )


def _rate(device: torch.device, kind: torch.dtype, side: int) -> float | None:
    """Operations a second of a product of square matrices; None where there is no such product."""
    try:
        one = torch.ones(side, side, device=device, dtype=kind)
        small = one[: side // 8, : side // 8].contiguous()
        quick = _fastest(lambda: small @ small, device)
        if quick * 8**3 > EMULATED:
            return 2 * (side // 8) ** 3 / quick
        return 2 * side**3 / _fastest(lambda: one @ one, device)
    except RuntimeError:
        return None


def _fastest(work: Callable[[], object], device: torch.device, rounds: int = 4) -> float:
    """Seconds of the fastest run: a ceiling is what is possible, not what is usual."""
    best = float("inf")
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
