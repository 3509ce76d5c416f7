"""Linear layers in the precisions that the engine knows, and the rule that chooses one.

| precision | weights | arithmetic |
|---|---|---|
| fp32 | float32 | float32 |
| fp16 | float16 | on a CPU float32, FBGEMM widens weights in registers; on CUDA float16 |
| bf16 | bfloat16 | bfloat16 with float32 sums |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from srllm_guard.errors import ConfigError

Linear = Callable[[Tensor], Tensor]
"""`[..., in]` -> `[..., out]`."""

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
"""Names that an engine takes; "auto" is what is fastest here."""

TRIAL = (8, 576, 1536)
"""Tokens, inputs and outputs of the product that is timed: one verified draft."""

GAIN = 1.15
"""So many times faster than fp32 another precision must be to be chosen on a CPU."""


def activations(precision: str, device: torch.device) -> torch.dtype:
    """The type of hidden states and of the key/value cache."""
    if precision == "bf16":
        return torch.bfloat16
    if precision == "fp16" and device.type != "cpu":
        return torch.float16
    return torch.float32


def choose(precision: str, device: torch.device) -> str:
    """The precision to run in: what was asked for, or what is fastest here.

    Raises:
        ConfigError: no such precision, or this build of torch does not have it.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"Unknown precision {precision!r}.", hint=f"Known: {', '.join(PRECISIONS)}."
        )
    if device.type != "cpu":
        if precision != "auto":
            return precision
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "auto":
        return _fastest()
    if precision == "fp16" and not _has_fbgemm():
        raise ConfigError(
            "Precision 'fp16' needs FBGEMM on a CPU, which this build of torch has not.",
            hint="Use fp32 or bf16.",
        )
    return precision


def pack(weight: Tensor, bias: Tensor | None, precision: str) -> Linear:
    """A linear layer that keeps its weights in `precision`.

    Args:
        weight: `[out, in]`, float32.
        bias: `[out]` or None.
        precision: one of `PRECISIONS` but "auto".
    """
    if weight.device.type == "cpu" and precision == "fp16":
        return _fbgemm(weight, bias)
    kind = activations(precision, weight.device)
    weight = weight.to(kind)
    bias = None if bias is None else bias.to(kind)
    return lambda x: F.linear(x, weight, bias)


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def _fbgemm(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights in float16, all else in float32 (FBGEMM, arXiv 2101.05615)."""
    largest = torch.finfo(torch.float16).max
    weight = weight.clamp(-largest, largest)
    before = torch.backends.quantized.engine  # a setting of the whole process
    torch.backends.quantized.engine = "fbgemm"
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    finally:
        torch.backends.quantized.engine = before
    run = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: run(x, packed)


@cache
def _fastest() -> str:
    times = speeds()
    best = min(times, key=lambda name: times[name])
    return best if times[best] * GAIN < times["fp32"] else "fp32"


@torch.inference_mode()
def speeds(rounds: int = 9) -> dict[str, float]:
    """Median milliseconds of one product on this CPU in each precision that it has.

    The rounds are interleaved, over several weights, so that a cache or a neighbour favours none.
    """
    tokens, inputs, outputs = TRIAL
    made = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=made)
    names = [name for name in PRECISIONS[1:] if name != "fp16" or _has_fbgemm()]
    layers: dict[str, list[Linear]] = {name: [] for name in names}
    for _ in range(4):
        weight = torch.randn(outputs, inputs, generator=made)
        for name in names:
            layers[name].append(pack(weight, None, name))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            given = x.to(activations(name, x.device))
            start = time.perf_counter()
            for layer in layers[name]:
                layer(given)
            taken[name].append((time.perf_counter() - start) * 1e3 / len(layers[name]))
    return {name: sorted(times)[rounds // 2] for name, times in taken.items()}
