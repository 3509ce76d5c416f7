"""Checkpoints of a training run: files of tensors that are there whole or not at all.

checkpoint.pt    where the run stands: weights, optimiser, history
best.pt          with early stopping: the weights of the best dev loss so far
"""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srllm_guard.errors import ConfigError

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    """Steps done."""
    best: float = math.inf
    """The lowest dev loss."""
    since_best: int = 0
    """Dev losses since then."""
    history: list[dict[str, float]] = field(default_factory=list)
    """A row a step: its number and losses."""


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Progress) -> None:
    """Write where the run stands."""
    content: dict[str, Any] = {
        "weights": _trained(model),
        "optimizer": optimizer.state_dict(),
        "progress": json.dumps(
            {"step": state.step, "best": state.best, "since_best": state.since_best}
        ),
        "history": json.dumps(state.history),
    }
    _write(folder / CHECKPOINT, content)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Put a run back to where it stood; None if it has no checkpoint.

    Raises:
        ConfigError: the file is damaged, or belongs to a run with another base, adapter or heads.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    content = _read(path)
    _load(content["weights"], model, path)
    optimizer.load_state_dict(content["optimizer"])
    return Progress(**json.loads(content["progress"]), history=json.loads(content["history"]))


def save_best(folder: Path, model: nn.Module, step: int) -> None:
    """Keep the weights as they are now, the best so far."""
    _write(folder / BEST, {"weights": _trained(model), "step": step})


def restore_best(folder: Path, model: nn.Module) -> None:
    """Give the model its best weights, if any were kept.

    Raises:
        ConfigError: as `restore`.
    """
    path = folder / BEST
    if path.is_file():
        _load(_read(path)["weights"], model, path)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_suffix(".partial")
    try:
        with working.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a name without its content
        working.replace(path)
    finally:
        working.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}).",
            hint="Delete it to start anew.",
        ) from error
    return content


def _load(weights: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: value.shape for name, value in weights.items()}
    if shapes != {name: value.shape for name, value in parameters.items()}:
        raise ConfigError(
            f"{path} belongs to a run with another base, adapter or heads.",
            hint="Give another --out, or delete it to start anew.",
        )
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
