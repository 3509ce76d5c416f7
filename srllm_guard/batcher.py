"""Micro-batching: what several threads ask of one engine becomes one call, split again afterwards.

A caller that finds the engine idle runs it in its own thread and waits for nobody. What arrives
meanwhile lines up, first come first served, and the next call takes along all of one kind, as many
as the engine gains by: on a CPU, where work is done one by one, that would only delay the first.
Long work goes in parts, one after another, so that a short text never waits for a whole book; a
caller has at most one part in the line and blocks for it, which is the back-pressure. Whose
deadline passes is gone from the line, and its parts behind are never begun.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from srllm_guard.engines.base import Engine
from srllm_guard.errors import DeadlineExceeded, EngineError, GuardError
from srllm_guard.forks import renew_in_children

Item = TypeVar("Item")
Found = TypeVar("Found")

PART = 8
"""So many items of one caller at least go in one call, also where company gains nothing."""

COLLECT_S = 300e-6
"""After a call for several callers so long is waited for them to come back together."""


@dataclass(frozen=True, slots=True)
class Verb(Generic[Item, Found]):
    """Something that an engine is asked for."""

    name: str
    """Of the method of the engine."""
    check: Callable[[Sequence[Item], Any], list[Found]]
    """Returns what the engine found for these items, if it can be that; else an EngineError."""

    def run(self, engine: Engine, items: Sequence[Item]) -> list[Found]:
        """Ask the engine.

        Raises:
            EngineError: it failed, or gave what cannot be right.
        """
        try:
            found = getattr(engine, self.name)(items)
        except GuardError:
            raise
        except Exception as error:
            # The message may quote what was judged; the type says enough.
            raise EngineError(
                f"The engine failed with {type(error).__name__}.", hint="See the cause above."
            ) from error
        return self.check(items, found)


@dataclass(slots=True, eq=False)
class _Part(Generic[Item, Found]):
    """Items of one caller, and what became of them."""

    verb: Verb[Item, Found]
    items: Sequence[Item]
    done: threading.Event = field(default_factory=threading.Event)
    abandoned: bool = False
    """Nobody waits for it any more."""
    found: list[Found] = field(default_factory=list)
    error: BaseException | None = None

    def ask(self, engine: Engine) -> None:
        """Ask the engine for this part alone."""
        try:
            self.found = self.verb.run(engine, self.items)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self.error = error
        self.done.set()


class Batcher:
    """The line in front of one engine. Safe to share between threads; lives on in a forked child.

    The engine is called from one thread at a time. It may have an attribute `together`: the most
    items that it answers faster in one call than one after another. Without it callers take turns.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._together = max(1, int(getattr(engine, "together", 1)))
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forget the line: after a fork its threads are those of the parent."""
        self._lock = threading.Condition()
        self._line: deque[_Part[Any, Any]] = deque()
        self._busy = False
        """Whether a thread calls the engine, or is about to."""

    def run(
        self, verb: Verb[Item, Found], items: Sequence[Item], seconds: float | None = None
    ) -> list[Found]:
        """What the engine finds for `items`, in order, within `seconds`; None waits for ever.

        Raises:
            DeadlineExceeded: it took longer. A call that was begun goes on in the background until
                it ends; its result is dropped, and others wait for their turn as ever.
            EngineError: the engine failed, or gave what cannot be right.
        """
        until = None if seconds is None else time.monotonic() + seconds
        found: list[Found] = []
        size = max(PART, self._together)
        for start in range(0, len(items), size):
            found += self._part(_Part(verb, items[start : start + size]), until)
        return found

    def _part(self, part: _Part[Item, Found], until: float | None) -> list[Found]:
        if until is not None and time.monotonic() >= until:
            raise DeadlineExceeded("No time was left for the model.")
        with self._lock:
            mine = until is None and not self._busy
            begin = not self._busy
            self._busy = True
            if not mine:
                self._line.append(part)
                self._lock.notify()
        if mine:
            try:
                part.ask(self.engine)
            finally:
                self._hand_over()
        else:
            if begin:
                self._serve()
            self._wait(part, until)
        if part.error is not None:
            raise part.error
        return part.found

    def _wait(self, part: _Part[Any, Any], until: float | None) -> None:
        left = None if until is None else min(until - time.monotonic(), threading.TIMEOUT_MAX)
        try:
            if part.done.wait(left):
                return
        except BaseException:  # such as KeyboardInterrupt: nobody will ask for it again
            self._abandon(part)
            raise
        self._abandon(part)
        raise DeadlineExceeded("The model did not answer within the deadline of the policy.")

    def _abandon(self, part: _Part[Any, Any]) -> None:
        with self._lock:
            part.abandoned = True
            if part in self._line:
                self._line.remove(part)

    def _hand_over(self) -> None:
        """Leave the engine to those in the line, if there are any."""
        with self._lock:
            self._busy = bool(self._line)
            if not self._busy:
                return
        self._serve()

    def _serve(self) -> None:
        """Serve the line in a thread of its own, which ends with the line."""
        try:
            threading.Thread(target=self._work, name="srllm-guard-engine", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter is about to end
            self._work()

    def _work(self) -> None:
        callers = 1
        while batch := self._take(callers):
            callers = len(batch)
            self._ask(batch)

    def _take(self, callers: int) -> list[_Part[Any, Any]]:
        """Parts of one kind from the head of the line; none ends the service.

        `callers` had company in the last call: they are given a moment to be there again.
        """
        with self._lock:
            if callers > 1:
                self._lock.wait_for(lambda: len(self._line) >= callers, COLLECT_S)
            batch: list[_Part[Any, Any]] = []
            count = 0
            while self._line:
                part = self._line[0]
                count += len(part.items)
                if batch and (part.verb is not batch[0].verb or count > self._together):
                    break
                batch.append(self._line.popleft())
            self._busy = bool(batch)
            return batch

    def _ask(self, batch: Sequence[_Part[Any, Any]]) -> None:
        if len(batch) > 1 and self._jointly(batch):
            return
        for part in batch:  # what one of them did to the engine must not cost the others theirs
            if not part.abandoned:
                part.ask(self.engine)

    def _jointly(self, batch: Sequence[_Part[Any, Any]]) -> bool:
        """Ask for all parts in one call; False if they have to be asked for one by one."""
        items = [item for part in batch for item in part.items]
        try:
            found = batch[0].verb.run(self.engine, items)
        except BaseException:  # noqa: BLE001 - the part at fault meets it again, alone
            return False
        at = 0
        for part in batch:
            part.found = found[at : at + len(part.items)]
            at += len(part.items)
            part.done.set()
        return True
