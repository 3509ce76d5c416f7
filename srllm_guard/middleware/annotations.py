"""Annotations of a text, such as citations: their places after parts of it were replaced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from srllm_guard.structure.records import ABSENT, field, with_fields, with_items

MOST = 1_000_000
"""Pairs of sentences or words that are compared; a change of more of them is one replacement."""

_SENTENCE = re.compile(r"[^.!?…。！？\n]+[.!?…。！？\n]*\s*|[.!?…。！？\n]+\s*")
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


class Replacement(Protocol):
    """A part of a text and what stands in its place, as offsets; `Edit` is one."""

    @property
    def start(self) -> int:
        """First code point of the part."""
        ...

    @property
    def end(self) -> int:
        """One past its last code point."""
        ...

    @property
    def new_start(self) -> int:
        """First code point of what stands in its place."""
        ...

    @property
    def new_end(self) -> int:
        """One past the last code point of that."""
        ...


def moved(annotations: Any, replacements: Sequence[Replacement]) -> Any:
    """Annotations of a text at their places in what it has become; one that is touched is left out.

    Args:
        annotations: list or tuple of those of OpenAI's APIs, dicts or objects; those without places
            stay as they are.
        replacements: by their start.

    Returns:
        The annotations themselves where none of them changes.
    """
    found = [_moved(each, replacements) for each in annotations]
    if any(each is None for each in found):
        return [each for each in found if each is not None]
    return with_items(annotations, found)


def differences(before: str, after: str) -> list[Replacement]:
    """The words in which two texts differ, in order."""
    start = _alike(before, after)
    rest = _alike(before[start:][::-1], after[start:][::-1])
    whole = _Range(start, len(before) - rest, start, len(after) - rest)
    sentences = _finer(whole, before, after, _SENTENCE)
    return [word for each in sentences for word in _finer(each, before, after, _WORD)]


class _Range(NamedTuple):
    start: int
    end: int
    new_start: int
    new_end: int


def _moved(annotation: Any, replacements: Sequence[Replacement]) -> Any:
    """An annotation where it belongs now; None if it is touched."""
    inner = field(annotation, "url_citation")
    if inner is not ABSENT and inner is not None:
        new = _moved(inner, replacements)
        if new is None or new is inner:
            return None if new is None else annotation
        return with_fields(annotation, {"url_citation": new})
    start, end = field(annotation, "start_index"), field(annotation, "end_index")
    if not isinstance(start, int) or not isinstance(end, int):
        return annotation
    shift = 0
    for each in replacements:
        if each.end <= start:
            shift = each.new_end - each.end
        elif each.start < end:
            return None
    if not shift:
        return annotation
    return with_fields(annotation, {"start_index": start + shift, "end_index": end + shift})


def _finer(whole: _Range, before: str, after: str, unit: re.Pattern[str]) -> list[_Range]:
    """The runs of units in which a part of a text and what stands there differ."""
    old = unit.findall(before[whole.start : whole.end])
    new = unit.findall(after[whole.new_start : whole.new_end])
    if len(old) * len(new) > MOST:
        return [whole]
    olds = list(accumulate(map(len, old), initial=whole.start))
    news = list(accumulate(map(len, new), initial=whole.new_start))
    codes = SequenceMatcher(None, old, new).get_opcodes()
    return [
        _Range(olds[i], olds[j], news[k], news[m]) for tag, i, j, k, m in codes if tag != "equal"
    ]


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
