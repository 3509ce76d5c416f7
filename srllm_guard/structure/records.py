"""Fields of a value, whatever it is made of: read by name, and put back in a copy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

ABSENT: Any = object()
"""What `field` gives for a field that is not there."""


def field(record: Any, name: str) -> Any:
    """A key of a mapping, or an attribute of anything else; `ABSENT` where there is none.

    Of a mapping that is a dataclass as well, its fields are read as attributes, as people do.
    """
    if isinstance(record, Mapping) and name not in _declared(record):
        return record.get(name, ABSENT)
    return getattr(record, name, ABSENT)


def field_names(record: Any) -> tuple[str, ...] | None:
    """Names of the fields of a dataclass, pydantic model or named tuple; None for anything else."""
    if isinstance(record, type):
        return None
    if dataclasses.is_dataclass(record):
        names = _declared(record)
        keys: Iterable[Any] = record if isinstance(record, Mapping) else ()
        return (*names, *(key for key in keys if key not in names))
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
    if isinstance(record, MutableMapping):
        copied = copy.copy(record)
        for name, value in changes.items():
            _put(copied, name, value)
        return copied
    if isinstance(record, Mapping) and not dataclasses.is_dataclass(record):
        return {**record, **changes}
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


def _declared(record: Any) -> tuple[str, ...]:
    """Names of the fields that a dataclass declares; none of anything else."""
    if not dataclasses.is_dataclass(record):
        return ()
    return tuple(each.name for each in dataclasses.fields(record))


def _put(mapping: MutableMapping[Any, Any], name: Any, value: Any) -> None:
    """Set an item, and the attribute in which some mappings hold the same."""
    held = getattr(mapping, "__dict__", {}).get(name, ABSENT)
    if name in _declared(mapping) or held is mapping.get(name):
        setattr(mapping, name, value)
    if mapping.get(name, ABSENT) is not value:
        mapping[name] = value
