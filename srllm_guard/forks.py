"""What a forked child cannot take over from its parent is made anew there.

A child has the memory of its parent and none of its threads: who waits for one of them waits for
ever, a lock that one of them held is never let go of, and a socket is shared by both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Renewable(Protocol):
    """Something with locks, threads or sockets in it."""

    def renew(self) -> None:
        """Make them anew, and touch none of the old ones: they are those of the parent."""
        ...


_ALL: WeakSet[Renewable] = WeakSet()


def renew_in_children(thing: Renewable) -> None:
    """From now on `renew` this in every forked child, before anything else runs there."""
    _ALL.add(thing)


def leave_in_children(thing: Renewable) -> None:
    """From now on children take this over as it is, such as what was closed."""
    _ALL.discard(thing)


class PerProcess(Generic[T]):
    """A value that every forked child makes anew."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """See `Renewable`."""
        self.value = self._make()


def _forked() -> None:
    for each in list(_ALL):
        each.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
