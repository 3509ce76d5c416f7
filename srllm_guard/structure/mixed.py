"""Texts of which some are JSON documents, moderated together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from srllm_guard.errors import FormatError
from srllm_guard.runtime import in_one_deadline
from srllm_guard.structure import json_text

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.results import Moderation


def is_json(text: str) -> bool:
    """Whether a text is a JSON document, be it a number or a string."""
    try:
        json_text.read(text)
    except FormatError:
        return False
    return True


def moderate_mixed(guard: Guard, texts: Sequence[str], shaped: Sequence[bool]) -> list[Moderation]:
    """Moderate texts in two batches: as JSON, so that they stay JSON, and as plain text.

    The policy's deadline is one for both.

    Args:
        guard: moderates.
        texts: what is moderated.
        shaped: for each whether it is moderated as JSON, which it has to be then.

    Returns:
        The results in the order of the texts.
    """
    guard = in_one_deadline(guard)
    pairs = list(zip(texts, shaped, strict=True))
    as_json = iter(guard.moderate_many([text for text, json in pairs if json], format="json"))
    as_text = iter(guard.moderate_many([text for text, json in pairs if not json]))
    return [next(as_json) if json else next(as_text) for json in shaped]


def moderate_texts(guard: Guard, texts: Sequence[str]) -> list[Moderation]:
    """Moderate texts: JSON objects and arrays as JSON, so that they stay such, the rest as text."""
    shaped = [text.lstrip().startswith(("{", "[")) and is_json(text) for text in texts]
    return moderate_mixed(guard, texts, shaped)
