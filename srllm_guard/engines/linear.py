"""Linear layers in the precisions that the engine knows, and the rule that chooses one.

| precision | weights | arithmetic | where |
|---|---|---|---|
| fp32 | float32 | float32 | CPU, CUDA |
| fp16 | float16 | float32 on a CPU (FBGEMM widens in registers), float16 on CUDA | CPU, CUDA |
| bf16 | bfloat16 | bfloat16 with float32 sums | CPU, CUDA |
| int8 | int8, a scale for each output | int8, inputs quantised as they come | CPU |
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

PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
"""Names that an engine takes; "auto" is the fastest of those that keep the model's output."""

KEEPING = ("fp32", "fp16", "bf16")
"""What "auto" chooses from on a CPU. int8 changes tokens too often to be anybody's surprise."""

TRIAL = (8, 576, 1536)
"""Tokens, inputs and outputs of the product that is timed: one verified draft."""

GAIN = 1.15
"""So many times faster than fp32 another precision must be to be chosen."""


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
        ConfigError: no such precision, or this device or build of torch does not have it.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"Unknown precision {precision!r}.", hint=f"Known: {', '.join(PRECISIONS)}."
        )
    if device.type == "cpu":
        if precision == "auto":
            return _fastest()
        if (
            precision in ("fp16", "int8")
            and "fbgemm" not in torch.backends.quantized.supported_engines
        ):
            raise ConfigError(
                f"Precision {precision!r} needs FBGEMM, which this build of torch has not.",
                hint="Use fp32 or bf16.",
            )
        return precision
    if precision == "int8":
        raise ConfigError("Precision 'int8' runs on a CPU only.", hint="Use bf16, fp16 or fp32.")
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def pack(weight: Tensor, bias: Tensor | None, precision: str) -> Linear:
    """A linear layer that keeps its weights in `precision`.

    Args:
        weight: `[out, in]`, float32.
        bias: `[out]` or None.
        precision: one of `PRECISIONS` but "auto".
    """
    if weight.device.type == "cpu" and precision == "fp16":
        return _fbgemm_fp16(weight, bias)
    if precision == "int8":
        return _fbgemm_int8(weight, bias)
    kind = activations(precision, weight.device)
    weight = weight.to(kind)
    bias = None if bias is None else bias.to(kind)
    return lambda x: F.linear(x, weight, bias)


def _fbgemm_fp16(weight: Tensor, bias: Tensor | None) -> Linear:
    largest = torch.finfo(torch.float16).max
    packed = _packed(
        lambda: torch.ops.quantized.linear_prepack_fp16(weight.clamp(-largest, largest), bias)
    )
    run = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: run(x, packed)


def _fbgemm_int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights have a scale for each row, inputs one for the call (FBGEMM, arXiv 2101.05615)."""
    scales = (weight.abs().amax(1) / 127).clamp(min=1e-12).double()
    zeros = torch.zeros(len(scales), dtype=torch.long)
    whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed = _packed(lambda: torch.ops.quantized.linear_prepack(whole, bias))
    run = torch.ops.quantized.linear_dynamic
    # Without VNNI, FBGEMM adds products in 16 bits; 7 bits of input keep them from overflowing.
    narrow = torch.backends.cpu.get_cpu_capability() != "AVX512_VNNI"
    return lambda x: run(x, packed, narrow)


def _packed(pack: Callable[[], Tensor]) -> Tensor:
    """What `pack` gives with FBGEMM as the engine, which is a setting of the whole process."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        return pack()
    finally:
        torch.backends.quantized.engine = before


@cache
def _fastest() -> str:
    times = speeds()
    best = min(times, key=lambda name: times[name])
    return best if times[best] * GAIN < times["fp32"] else "fp32"


@torch.inference_mode()
def speeds(rounds: int = 9) -> dict[str, float]:
    """Median milliseconds of one product in each precision that "auto" chooses from.

    The rounds are interleaved, over several weights, so that a cache or a neighbour favours none.
    """
    tokens, inputs, outputs = TRIAL
    made = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=made)
    names = [
        n for n in KEEPING if n != "fp16" or "fbgemm" in torch.backends.quantized.supported_engines
    ]
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
