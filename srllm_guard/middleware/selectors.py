"""Where the user says the text is: by a path expression, or by a pair of functions.

A path is names and brackets: `choices[*].message.content`. A name is a key of a mapping or an
attribute of anything else; `[0]` and `[-1]` are items of a list or tuple, and `[*]` is each of
them. A name that ends in `?` may be absent; so may all that would stand behind a None. At the end
of a path stands a string, or anything that `srllm_guard.middleware.shapes` knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from srllm_guard.errors import ConfigError, ShapeError
from srllm_guard.middleware.shapes import walk
from srllm_guard.structure.records import ABSENT, field, with_fields, with_items
from srllm_guard.structure.visiting import Visitor, Where, shown

Get = Callable[[Any], Sequence[str]]
"""Takes a value and gives the texts in it."""
Put = Callable[[Any, Sequence[str]], Any]
"""Takes a value and as many other texts, and gives the value with these."""
Selector = str | Sequence[str] | tuple[Get, Put]
"""A path, several paths, or a pair of functions."""

_STEP = re.compile(r"(?:^|(?!^)\.)(?P<name>[^.\[\]?\s]+)(?P<optional>\?)?|\[(?P<index>-?\d+|\*)\]")


@dataclass(frozen=True, slots=True)
class _Name:
    name: str
    optional: bool


@dataclass(frozen=True, slots=True)
class _Item:
    n: int


@dataclass(frozen=True, slots=True)
class _Each:
    pass


_Step = _Name | _Item | _Each


class Place(Protocol):
    """Where the text is in a value."""

    def walk(self, value: Any, visitor: Visitor) -> Any:
        """Visit each text, and return the value with what the visitor returned in its place.

        Raises:
            ShapeError: there is no such place in the value.
        """
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """Wherever the shapes that are known have it."""

    def walk(self, value: Any, visitor: Visitor) -> Any:
        """See `Place`."""
        return walk(value, visitor)


@dataclass(frozen=True, slots=True)
class Path:
    """Where one path leads."""

    expression: str
    steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, expression: str) -> Path:
        """Read a path expression.

        Raises:
            ConfigError: it is none; the message says from where on.
        """
        steps: list[_Step] = []
        at = 0
        while at < len(expression) or not steps:
            match = _STEP.match(expression, at)
            if match is None:
                raise ConfigError(
                    f"The path {expression!r} makes no sense at character {at}.",
                    hint='A path is names and brackets, such as "choices[*].message.content".',
                )
            name, index = match["name"], match["index"]
            if name is not None:
                steps.append(_Name(name, optional=match["optional"] is not None))
            else:
                steps.append(_Each() if index == "*" else _Item(int(index)))
            at = match.end()
        return cls(expression, tuple(steps))

    @property
    def root(self) -> str | None:
        """The name that the path begins with; None if it begins with a bracket."""
        first = self.steps[0]
        return first.name if isinstance(first, _Name) else None

    def walk(self, value: Any, visitor: Visitor) -> Any:
        """See `Place`."""
        return self._follow(value, 0, visitor, ())

    def _follow(self, value: Any, taken: int, visitor: Visitor, where: Where) -> Any:
        if value is None:
            return value
        if taken == len(self.steps):
            return walk(value, visitor, where)
        step = self.steps[taken]
        if isinstance(step, _Name):
            inner = field(value, step.name)
            if inner is ABSENT and step.optional:
                return value
            if inner is ABSENT:
                raise self._absent(value, f"{step.name!r}", where)
            new = self._follow(inner, taken + 1, visitor, (*where, step.name))
            return value if new is inner else with_fields(value, {step.name: new})
        if not isinstance(value, list | tuple):
            raise self._absent(value, "item", where)
        items = list(value)
        places = list(range(len(items)))
        if isinstance(step, _Item):
            places = places[step.n :][:1] if -len(items) <= step.n < len(items) else []
            if not places:
                raise self._absent(value, f"item {step.n}", where)
        for n in places:
            items[n] = self._follow(items[n], taken + 1, visitor, (*where, n))
        return with_items(value, items)

    def _absent(self, value: Any, wanted: str, where: Where) -> ShapeError:
        at = f" at {shown(where)}" if where else ""
        return ShapeError(
            f"The path {self.expression!r} leads nowhere: there is no {wanted} in the "
            f"{type(value).__name__}{at}.",
            hint='Correct the path; a name that may be absent ends in "?".',
        )


@dataclass(frozen=True, slots=True)
class Paths:
    """Where several paths lead, one after the other."""

    paths: tuple[Path, ...]

    def walk(self, value: Any, visitor: Visitor) -> Any:
        """See `Place`."""
        for path in self.paths:
            value = path.walk(value, visitor)
        return value


@dataclass(frozen=True, slots=True)
class Functions:
    """Wherever functions of the user find it."""

    get: Get
    put: Put

    def walk(self, value: Any, visitor: Visitor) -> Any:
        """See `Place`."""
        old = self.get(value)
        if not _are_texts(old):
            raise ShapeError(
                f"The function that gets the texts gave {_described(old)}.",
                hint="It has to give a list of str; of one text, a list of one.",
            )
        new = [visitor.text(text, (n,)) for n, text in enumerate(old)]
        same = all(a is b for a, b in zip(old, new, strict=True))
        return value if same else self.put(value, new)


def place_of(selector: Selector | None) -> Place:
    """What a selector means; None is wherever the known shapes have it.

    Raises:
        ConfigError: no selector, or a path that makes no sense.
    """
    if selector is None:
        return Known()
    if isinstance(selector, str):
        return Path.parse(selector)
    if isinstance(selector, Sequence) and selector:
        if all(isinstance(each, str) for each in selector):
            return Paths(tuple(Path.parse(str(each)) for each in selector))
        if len(selector) == 2 and all(callable(each) for each in selector):
            get, put = selector
            return Functions(get, put)  # type: ignore[arg-type]
    raise ConfigError(
        f"A selector is a {type(selector).__name__} that says no place.",
        hint="Give a path, a list of paths, or a pair of functions (get, put).",
    )


def _described(found: object) -> str:
    kind = type(found).__name__
    if isinstance(found, str) or not isinstance(found, Sequence):
        return f"a {kind}"
    others = sorted({type(each).__name__ for each in found if not isinstance(each, str)})
    return f"a {kind} with {', '.join(others)} in it"


def _are_texts(found: object) -> bool:
    if isinstance(found, str) or not isinstance(found, Sequence):
        return False
    return all(isinstance(each, str) for each in found)
