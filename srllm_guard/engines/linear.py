"""Linear layers in the precisions that the engine knows, and the rule that chooses one.

| precision | weights | arithmetic |
|---|---|---|
| fp32 | float32 | float32; on a CPU laid out for oneDNN |
| fp16 | float16 | on a CPU float32, FBGEMM widens weights in registers; on CUDA float16 |
| bf16 | bfloat16 | bfloat16 with float32 sums; on a CPU laid out for oneDNN |
| int8 | 7 bits and a scale for each output | CPU: inputs in 8 bits with a scale for each token |

"auto" never chooses int8: it is the fastest and another model, see `benchmarks/exactness.py`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srllm_guard.errors import ConfigError

Linear = Callable[[Tensor], Tensor]
"""`[..., in]` -> `[..., out]`."""

MEASURED = ("fp32", "fp16", "bf16")
"""What "auto" chooses from."""

PRECISIONS = ("auto", *MEASURED, "int8")
"""Names that an engine takes; "auto" is what is fastest here of `MEASURED`."""

LEVELS = 63
"""Largest weight in int8. With AVX2 two products of 8 bits are added in 16 bits; these never
overflow."""

STEP, MIDDLE = 1 / 127, 128
"""Of inputs from -1 to 1 in 8 bits: the value of one level, and the level of 0."""

TRIAL = (8, 576, 1536)
"""Tokens, inputs and outputs of the product that is timed: one verified draft."""

ROWS = 64
"""Tokens that weights are laid out for; fewer and more are as fast in this layout."""

TINY = 1e-8
"""Less than this is nothing."""

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
        if precision == "int8":
            raise ConfigError("Precision 'int8' is for a CPU.", hint="Use fp16 or bf16 on CUDA.")
        if precision != "auto":
            return precision
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "auto":
        return _fastest()
    if precision in ("fp16", "int8") and not _has_fbgemm():
        raise ConfigError(
            f"Precision {precision!r} needs FBGEMM on a CPU, which this build of torch has not.",
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
        return _fp16(weight, bias)
    if precision == "int8":
        return _int8(weight, bias)
    kind = activations(precision, weight.device)
    weight = weight.to(kind)
    bias = None if bias is None else bias.to(kind)
    if weight.device.type == "cpu" and _has_onednn(kind):
        return _onednn(weight, bias)
    return lambda x: F.linear(x, weight, bias)


@cache
def _has_onednn(kind: torch.dtype) -> bool:
    """Whether oneDNN lays weights of this type out; bfloat16 takes AVX-512."""
    try:
        made = _onednn(torch.eye(8, dtype=kind), None)(torch.ones(1, 8, dtype=kind))
        return bool(made.sum() == 8)
    except (AttributeError, RuntimeError):  # another build of torch, or no such instructions
        return False


def _onednn(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights laid out once for oneDNN, by the operators that `torch.compile` does it with."""
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight, ROWS)  # noqa: SLF001
    run = ops._linear_pointwise  # noqa: SLF001
    return lambda x: run(x, packed, bias, "none", [], "")


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Packs for FBGEMM (arXiv 2101.05615); what packs is a setting of the whole process."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # torch 2.13 announces the end of quantised tensors; nothing else packs for FBGEMM yet.
            warnings.filterwarnings("ignore", message=".*quantize_per_channel")
            yield
    finally:
        torch.backends.quantized.engine = before


def _fp16(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights in float16, all else in float32."""
    largest = torch.finfo(torch.float16).max
    with _fbgemm():
        packed = torch.ops.quantized.linear_prepack_fp16(weight.clamp(-largest, largest), bias)
    run = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: run(x, packed)


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights and inputs in integers, sums in int32."""
    scales = weight.abs().amax(1).clamp(min=TINY) / LEVELS
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with _fbgemm():
        quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, None)

    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def run(x: Tensor) -> Tensor:
        # FBGEMM has one scale for all tokens: each is made as large as 1 before.
        size = x.abs().amax(-1, keepdim=True).clamp_(min=TINY)
        found: Tensor = product(x / size, STEP, MIDDLE, packed).mul_(size)
        return found if bias is None else found.add_(bias)

    return run


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
    names = [name for name in MEASURED if name != "fp16" or _has_fbgemm()]
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
