"""Find unsafe text, rewrite it, verify the rewrite: one small language model does all three.

    from srllm_guard import Guard, Policy

    guard = Guard()
    guard.rewrite(text)      # -> str, the released text
    guard.detect(text)       # -> Detection
    guard.moderate(text)     # -> Moderation

The names below are imported when they are first used; importing the package loads no library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srllm_guard.errors import Blocked, GuardError
    from srllm_guard.guard import Guard
    from srllm_guard.policy import Policy
    from srllm_guard.results import Detection, Edit, Moderation, Span

__version__ = "0.1.0"

__all__ = [
    "Blocked",
    "Detection",
    "Edit",
    "Guard",
    "GuardError",
    "Moderation",
    "Policy",
    "Span",
    "__version__",
]

_HOMES = {
    "Blocked": "errors",
    "Detection": "results",
    "Edit": "results",
    "Guard": "guard",
    "GuardError": "errors",
    "Moderation": "results",
    "Policy": "policy",
    "Span": "results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
