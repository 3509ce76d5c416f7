"""An output file that is written in whole batches and can be gone on with after any interruption.

Beside FILE stands FILE.guard.json: what the output was made from, how many rows are done and how
many bytes they take. Bytes beyond that count are what an interruption left of a batch; they are cut
off and the batch is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from srllm_guard.errors import ConfigError

_ANEW = "Choose another --output, or start anew with --overwrite."


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Output:
    """The rows of an earlier run, if there was one, and those that are added.

    `settings` is what all rows must have been made with. With `overwrite` an earlier run is
    forgotten. `head` is written before the first row.

    Raises:
        ConfigError: the file was made with other settings, by something else, or cannot be written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, str], *, head: bytes = b"", overwrite: bool = False
    ):
        self.path = path
        self.outcomes: Counter[str] = Counter()
        self.done = 0
        self._settings = dict(settings)
        self._sidecar = path.with_name(f"{path.name}.guard.json")
        self._size = 0
        try:
            fresh = overwrite or not path.exists() or not path.stat().st_size
            if not fresh:
                self._take_up()
            self._stream = path.open("wb" if fresh else "r+b")
            try:
                self._cut()
                if not self._size:
                    self._append(b"")  # claims the file before anything stands in it
                    self._append(head)
            except BaseException:
                self._stream.close()
                raise
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error

    def add(self, rows: Iterable[bytes], outcomes: Iterable[str]) -> None:
        """Write a batch of rows, so that it is either there as a whole or done again."""
        batch = list(rows)
        self.outcomes.update(outcomes)
        self.done += len(batch)
        self._append(b"".join(batch))

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stream:
            self._cut()

    def _append(self, content: bytes) -> None:
        self._stream.write(content)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        # Ahead of the sidecar: too many rows are cut off by the next run, too few cannot be mended.
        self._size += len(content)
        state = {
            "settings": self._settings,
            "rows": self.done,
            "bytes": self._size,
            "outcomes": dict(self.outcomes),
        }
        # Replaced in one step, and only after the rows are on the disk.
        waiting = self._sidecar.with_name(f"{self._sidecar.name}.tmp")
        waiting.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        waiting.replace(self._sidecar)

    def _cut(self) -> None:
        self._stream.truncate(self._size)
        self._stream.seek(self._size)

    def _take_up(self) -> None:
        state = self._state()
        if other := [name for name, value in self._settings.items() if state[0].get(name) != value]:
            raise ConfigError(f"{self.path} belongs to another {', '.join(other)}.", hint=_ANEW)
        _, self.done, self._size, self.outcomes = state
        if self.path.stat().st_size < self._size:
            raise ConfigError(f"{self.path} is shorter than it was left.", hint=_ANEW)

    def _state(self) -> tuple[dict[str, Any], int, int, Counter[str]]:
        try:
            state = json.loads(self._sidecar.read_text(encoding="utf-8"))
            return (
                dict(state["settings"]),
                int(state["rows"]),
                int(state["bytes"]),
                Counter({str(name): int(count) for name, count in state["outcomes"].items()}),
            )
        except FileNotFoundError:
            message = f"{self.path} exists and was not written by an earlier run."
            raise ConfigError(message, hint=_ANEW) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{self._sidecar} is damaged.", hint=_ANEW) from None
