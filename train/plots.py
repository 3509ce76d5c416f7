"""Loss curves as a picture and as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srllm_guard.errors import MissingExtra


def loss_curves(
    history: Sequence[dict[str, Any]], path_png: str | Path, path_json: str | Path
) -> None:
    """Draw every number of a training history against its step, and write the history as JSON.

    An entry has a number `step` and any other numbers, such as `loss` or `dev_loss`; entries need
    not have the same ones. What is no finite number is written as null and not drawn.

    Raises:
        MissingExtra: matplotlib is not installed; the JSON is written all the same.
    """
    finite = [{name: _finite(value) for name, value in entry.items()} for entry in history]
    Path(path_json).write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(extra="train", needed_for="drawing loss curves") from None

    # A figure of its own, not pyplot: no window system, no global state, nothing to close.
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = dict.fromkeys(name for entry in finite for name in entry if name != "step")
    for name in names:
        points = [
            (entry["step"], entry[name])
            for entry in finite
            if _is_number(entry.get(name)) and _is_number(entry.get("step"))
        ]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=name, marker="." if len(points) < 30 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("value")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path_png, dpi=120)


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
