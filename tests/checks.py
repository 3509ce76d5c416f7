"""What the tests of the guard share."""

from __future__ import annotations

import json
from typing import Any

from srllm_guard import Guard, Moderation, Policy
from tests.byte_engine import ByteEngine, runtime


def guard(engine: ByteEngine | None = None, **policy: Any) -> Guard:
    """A guard on a byte engine, with this policy."""
    return Guard(runtime(engine), policy=Policy(**policy))


def check(result: Moderation) -> None:
    """What holds for every result."""
    json.dumps(result.to_dict())
    for span in result.before.spans:
        assert 0 <= span.start < span.end <= len(result.original)
    rest, shift = result.original, 0
    for edit in result.edits:
        assert result.original[edit.start : edit.end] == edit.original
        assert result.text[edit.new_start : edit.new_end] == edit.replacement
        start = edit.start + shift
        rest = rest[:start] + edit.replacement + rest[start + len(edit.original) :]
        shift += len(edit.replacement) - len(edit.original)
        for span in edit.spans:
            assert edit.start <= span.start < span.end <= edit.end
    assert rest == result.text
