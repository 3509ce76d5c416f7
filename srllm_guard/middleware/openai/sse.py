"""Server-sent events: bytes in, messages out, and back.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(rb"\r\n|\n|\r(?!\n)")


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a stream; comments are not kept."""

    data: str
    event: str | None = None
    id: str | None = None

    def encode(self) -> bytes:
        """The event as it is sent."""
        lines = [f"event: {self.event}"] if self.event else []
        lines += [f"id: {self.id}"] if self.id is not None else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        return "\n".join([*lines, "", ""]).encode()


class Decoder:
    """Cuts bytes, however they come in pieces, into messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that are complete now; one that is not at the end never was one."""
        self._rest += chunk
        # A carriage return at the very end may be the first half of a line's end.
        until = len(self._rest) - self._rest.endswith(b"\r")
        at = 0
        for end in _LINE.finditer(self._rest, 0, until):
            if message := self._line(self._rest[at : end.start()].decode("utf-8", "replace")):
                yield message
            at = end.end()
        self._rest = self._rest[at:]

    def _line(self, line: str) -> Message | None:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name in ("event", "id"):
                self._fields[name] = value
            return None
        fields, data = self._fields, self._data
        self._fields, self._data = {}, []
        if not data:
            return None
        return Message("\n".join(data), fields.get("event"), fields.get("id"))
