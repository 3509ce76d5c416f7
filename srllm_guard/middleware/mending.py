"""What hangs on a text that was changed: probabilities of its tokens, and places in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srllm_guard.middleware.annotations import differences, moved
from srllm_guard.structure.records import ABSENT, field, with_fields

SPELLED = ("logprobs", "token_ids")
"""Fields beside a text that spell it out, token by token."""
_METADATA = ("response_metadata", "generation_info")
"""Fields in which LangChain keeps what the provider sent besides the text."""
_TEXTS = ("text", "content")


def mended(old: Any, new: Any) -> Any:
    """A choice, message or block after a change, without what tells the text that is gone.

    Annotations come at their places in the new text; one that the change touches is left out.

    Args:
        old: as it came; itself is returned where `new` is the same object.
        new: with what is released.
    """
    if new is old:
        return new
    changes: dict[str, Any] = {}
    for name in SPELLED:
        value = field(new, name)
        if value is not ABSENT and value is not None:
            changes[name] = [] if name == "logprobs" and isinstance(value, list) else None
    for name in _METADATA:
        value = field(new, name)
        if isinstance(value, Mapping) and any(each in value for each in SPELLED):
            changes[name] = {key: each for key, each in value.items() if key not in SPELLED}
    annotations = field(new, "annotations")
    if isinstance(annotations, list | tuple):
        for name in _TEXTS:
            before, after = field(old, name), field(new, name)
            if isinstance(before, str) and isinstance(after, str) and before != after:
                annotations = moved(annotations, differences(before, after))
        if annotations is not field(new, "annotations"):
            changes["annotations"] = annotations
    return with_fields(new, changes)
