"""Compiled training: twice the tokens a second on a processor that multiplies bf16 in hardware.

Autocast casts every frozen weight again in each pass, and what stands between two products runs
as many small operations on float32. Here frozen weights are bf16 for as long as training lasts, and
each layer is compiled as one, its elementwise work fused. The first steps compile: a minute on two
cores, with a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.model import Model


@contextmanager
def compiled(model: Model) -> Iterator[None]:
    """Compile the decoder's layers; afterwards they and their weights are as before."""
    layers = model.language.get_base_model().model.layers
    frozen = [
        (weight, weight.data)
        for module in layers.modules()
        if isinstance(module, nn.Linear)
        for weight in module.parameters(recurse=False)
        if not weight.requires_grad and weight.dtype == torch.float32
    ]
    try:
        for weight, values in frozen:
            weight.data = values.to(torch.bfloat16)
        for layer in layers:
            layer.compile(dynamic=True)
        yield
    finally:
        for weight, values in frozen:
            weight.data = values
        for layer in layers:
            layer._compiled_call_impl = None  # noqa: SLF001  `compile` has no inverse
