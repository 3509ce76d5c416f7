"""Fields of a value, whatever it is made of: read by name, and put back in a copy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any

ABSENT: Any = object()
"""What `field` gives for a field that is not there."""


def field(record: Any, name: str) -> Any:
    """A key of a mapping, or an attribute of anything else; `ABSENT` where there is none."""
    if isinstance(record, Mapping):
        return record.get(name, ABSENT)
    return getattr(record, name, ABSENT)


def field_names(record: Any) -> tuple[str, ...] | None:
    """Names of the fields of a dataclass, pydantic model or named tuple; None for anything else."""
    if isinstance(record, type):
        return None
    if dataclasses.is_dataclass(record):
        return tuple(each.name for each in dataclasses.fields(record))
    if isinstance(record, tuple) and hasattr(record, "_fields"):
        return tuple(record._fields)
    declared = getattr(type(record), "model_fields", None)
    if isinstance(declared, Mapping) and hasattr(record, "model_copy"):
        return (*declared, *(getattr(record, "model_extra", None) or ()))
    return None


def with_fields(record: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of the record in which these fields differ; the record itself without changes."""
    if not changes:
        return record
    if isinstance(record, Mapping):
        if not isinstance(record, MutableMapping):
            return {**record, **changes}
        copied = copy.copy(record)
        copied.update(changes)
        return copied
    if hasattr(record, "model_copy"):
        return record.model_copy(update=dict(changes))
    if isinstance(record, tuple) and hasattr(record, "_replace"):
        return record._replace(**changes)
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        made = {each.name for each in dataclasses.fields(record) if each.init}
        if made.issuperset(changes):
            return dataclasses.replace(record, **changes)
    copied = copy.copy(record)
    for name, value in changes.items():
        object.__setattr__(copied, name, value)
    return copied


def with_items(sequence: Any, items: list[Any]) -> Any:
    """A list or tuple of the same type with other items; the sequence itself if all are the same.

    "The same" is meant as `is`: nothing is copied where nothing has changed.
    """
    if all(old is new for old, new in zip(sequence, items, strict=True)):
        return sequence
    if type(sequence) in (list, tuple):
        return type(sequence)(items)
    if isinstance(sequence, tuple):
        return tuple(items)
    copied = copy.copy(sequence)
    copied[:] = items
    return copied
