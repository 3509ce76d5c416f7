"""Streams that come as events, dicts of some API, and go out as others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from srllm_guard.middleware.waiting import Waits

Event = dict[str, Any]


class Events(Waits, Protocol):
    """The events of one stream: what may be shown goes on, and the rest waits.

    What is given before `Blocked` is raised was verified before it.
    """

    def take(self, event: Event, /) -> Iterable[Event]:
        """The events to show, now that this one has come."""
        ...

    def flush(self) -> Iterable[Event]:
        """What was held for long enough."""
        ...

    def end(self) -> Iterable[Event]:
        """What is left at the end."""
        ...
