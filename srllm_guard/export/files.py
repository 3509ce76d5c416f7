"""Store graphs whose weights lie in one file beside them, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, save_model
from onnx.external_data_helper import set_external_data

from srllm_guard.models.exported import WEIGHTS

LARGE = 1024
"""Bytes from which a weight is not kept in its graph."""

MAPPED = 2**20
"""Bytes from which a weight begins at a multiple of `PAGE`."""

PAGE = 65_536
"""A multiple of what any system maps files into memory by."""

LINE = 64
"""Weights below `MAPPED` begin at multiples of this: no value lies across two cache lines."""


def store(folder: Path, models: Mapping[str, ModelProto]) -> None:
    """Write graphs into a folder, and the weights of all of them into one file.

    Weights of the same bytes are stored once, whatever their names and shapes.

    Args:
        folder: where to.
        models: file name -> graph; their large weights are moved out of them.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as file:
        for model in models.values():
            for tensor in model.graph.initializer:
                content = tensor.raw_data
                if len(content) < LARGE:
                    continue
                key = hashlib.sha256(content).digest()
                if key not in places:
                    step = PAGE if len(content) >= MAPPED else LINE
                    file.write(b"\0" * (-file.tell() % step))
                    places[key] = file.tell(), len(content)
                    file.write(content)
                offset, length = places[key]
                set_external_data(tensor, WEIGHTS, offset, length)
                tensor.ClearField("raw_data")
    for name, model in models.items():
        save_model(model, folder / name)
