"""What a run works out once and keeps beside its checkpoint: JSON Lines, whole or not there.

The name of a file says what it was worked out from, so a run that goes on with other data or from
another bundle does not take it for its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.schema import json_lines, write_lines


def key(*parts: object) -> str:
    """Eight hexadecimal digits for what rows were worked out from."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:8]


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return [row for _, row in json_lines(path)] if path.is_file() else []


def keep(path: Path, found: Iterable[dict[str, Any]]) -> None:
    """Write rows, in place of those that were there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, found)
