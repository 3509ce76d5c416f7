"""Read the weights of a Llama-family model by their names, an adapter added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from srllm_guard.engines.loading import Adapter
from srllm_guard.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}).", hint="Get the base again."
        ) from error
    return found


class Checkpoint:
    """The weights in a folder, one at a time, in float32 and with their adapter merged.

    Args:
        folder: holds model.safetensors, or its parts with an index.
        adapter: LoRA weights to add; None for the base alone.

    Raises:
        ModelError: there are no safetensors weights.
    """

    def __init__(self, folder: Path, adapter: Adapter | None = None) -> None:
        self._adapter = adapter
        self._left = set(adapter.modules) if adapter else set()
        try:
            self._files = _files(folder)
            for path in set(self._files.values()):
                with safe_open(path, framework="pt"):
                    pass
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"The weights in {folder} cannot be read ({type(error).__name__}).",
                hint=f"An engine of ours reads {WEIGHTS}; save the base as safetensors.",
            ) from error

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def raw(self, name: str) -> Tensor:
        """A copy of a weight as it is stored, without what the adapter adds.

        The file is mapped for this one alone: what was read of a mapping counts as memory.

        Raises:
            ModelError: it is not there.
        """
        if name not in self._files:
            raise ModelError(
                f"The base has no weight {name!r}.", hint="Get the base again, or use another one."
            )
        with safe_open(self._files[name], framework="pt") as file:
            weight: Tensor = file.get_tensor(name).clone()
        return weight

    def merged(self, module: str) -> Tensor:
        """`[out, in]`: the float32 weight of a linear layer, adapter included.

        Raises:
            ModelError: it is not there.
            BundleError: the adapter changes another shape.
        """
        weight = self.raw(f"{module}.weight").float()
        if self._adapter is None or module not in self._left:
            return weight
        self._left.discard(module)
        return self._adapter.add(module, weight)

    def check(self) -> None:
        """Make sure that nothing of the adapter was left over.

        Raises:
            BundleError: the adapter changes a layer that was not read.
        """
        for module in sorted(self._left):
            if self._adapter is not None:
                self._adapter.add(module, None)

    def vector(self, name: str) -> Tensor | None:
        """A float32 bias or norm; None where the model has none."""
        return self.raw(name).float() if name in self else None


def _files(folder: Path) -> Mapping[str, Path]:
    """Name of each weight -> the file that holds it."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {name: folder / file for name, file in index["weight_map"].items()}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return dict.fromkeys(file.keys(), folder / WEIGHTS)
