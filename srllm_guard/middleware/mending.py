"""What hangs on a text that was changed: probabilities of its tokens, and places in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srllm_guard.middleware.records import ABSENT, field, with_fields, with_items

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
                annotations = _moved(annotations, before, after)
        if annotations is not field(new, "annotations"):
            changes["annotations"] = annotations
    return with_fields(new, changes)


def _moved(annotations: Any, before: str, after: str) -> Any:
    """Annotations of a text that reads differently from the first changed character to the last."""
    start = _alike(before, after)
    end = len(before) - _alike(before[start:][::-1], after[start:][::-1])
    found = [_at(each, start, end, len(after) - len(before)) for each in annotations]
    if any(each is None for each in found):
        return [each for each in found if each is not None]
    return with_items(annotations, found)


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _at(annotation: Any, start: int, end: int, shift: int) -> Any:
    """An annotation where it belongs now; None within the change."""
    inner = field(annotation, "url_citation")
    if inner is not ABSENT and inner is not None:
        new = _at(inner, start, end, shift)
        if new is None or new is inner:
            return None if new is None else annotation
        return with_fields(annotation, {"url_citation": new})
    first, last = field(annotation, "start_index"), field(annotation, "end_index")
    if not isinstance(first, int) or not isinstance(last, int) or last <= start:
        return annotation
    if first < end:
        return None
    return with_fields(annotation, {"start_index": first + shift, "end_index": last + shift})
