"""From a bundle to the three graphs, by torch and Optimum."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from srllm_guard.engines.checkpoint import read_config
from srllm_guard.engines.heads import DetectionHeads
from srllm_guard.engines.llama import Shape, frequencies, unsupported
from srllm_guard.engines.loading import load_heads, load_model
from srllm_guard.engines.onnx_session import HIDDEN, NUMBERS, OWNER
from srllm_guard.errors import MissingExtra, ModelError
from srllm_guard.export.graphs import Decoder
from srllm_guard.export.precision import convert
from srllm_guard.models.bundle import Bundle
from srllm_guard.models.exported import HEADS_GRAPH, LOWER, UPPER, Sizes

OPSET = 18


def build(bundle: Bundle, base: Path, precision: str) -> tuple[dict[str, ModelProto], Sizes]:
    """The graphs by their file names, and what the engine has to know of them.

    Args:
        bundle: adapter, heads and manifest.
        base: folder of the base weights.
        precision: a name in `srllm_guard.models.exported.PRECISIONS`.

    Raises:
        ModelError: the base is of another family.
        BundleError: adapter or heads do not fit the base.
        MissingExtra: Optimum is not installed.
    """
    config = read_config(base)
    if reason := unsupported(config):
        raise ModelError(f"This base is not exported: {reason}.", hint='Use engine="reference".')
    shape = Shape.of(config)
    model = load_model(bundle, base, torch.device("cpu"), four_bit=False)
    heads = load_heads(bundle, shape.hidden)
    angles = torch.arange(shape.max_tokens).float().unsqueeze(1) * frequencies(shape)
    decoder = Decoder(
        _exported(model),
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        cos=angles.cos().numpy(),
        sin=angles.sin().numpy(),
    )
    layer = bundle.manifest.layer
    graphs = {LOWER: decoder.lower(layer), UPPER: decoder.upper(layer)}
    for graph in graphs.values():
        convert(graph, precision)
    graphs[HEADS_GRAPH] = _heads(heads)
    sizes = Sizes(shape.layers, shape.kv_heads, shape.head_dim, shape.max_tokens)
    return graphs, sizes


def _exported(model: Any) -> ModelProto:
    """What Optimum makes of a model: one decoder, keys and values in and out."""
    try:
        from optimum.exporters.onnx import onnx_export_from_model
    except ImportError as error:
        raise MissingExtra(extra="export", needed_for="exporting to ONNX") from error
    with tempfile.TemporaryDirectory(prefix="srllm-guard-") as folder, _quiet():
        onnx_export_from_model(
            model, folder, opset=OPSET, task="text-generation-with-past", do_validation=False
        )
        return onnx.load(str(Path(folder) / "model.onnx"))


class _Judge(nn.Module):
    """The heads as one graph."""

    def __init__(self, heads: DetectionHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, hidden: Tensor, owner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `DetectionHeads.judge`."""
        return self.heads.judge(hidden, owner, numbers)


def _heads(heads: DetectionHeads) -> ModelProto:
    hidden = torch.zeros(1, 7, heads.config.hidden)
    owner = torch.tensor([[-1, -1, 0, 0, 0, 1, 1]])
    with tempfile.TemporaryDirectory(prefix="srllm-guard-") as folder, _quiet():
        path = str(Path(folder) / HEADS_GRAPH)
        torch.onnx.export(
            _Judge(heads).eval(),
            (hidden, owner, torch.arange(2)),
            path,
            input_names=[HIDDEN, OWNER, NUMBERS],
            output_names=["labels", "spans"],
            dynamic_axes={
                HIDDEN: {1: "T"},
                OWNER: {1: "T"},
                NUMBERS: {0: "S"},
                "labels": {1: "S"},
                "spans": {1: "T"},
            },
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what tracing warns about: shapes that are constant here on purpose."""
    logger = logging.getLogger("optimum")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
