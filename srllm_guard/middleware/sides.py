"""One direction of a call: the texts in a value are moderated together, and put back."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import ConfigError, ShapeError
from srllm_guard.middleware.pieces import Pieces
from srllm_guard.middleware.selectors import Known, Path, Paths, Place
from srllm_guard.middleware.shapes import walk
from srllm_guard.runtime import in_one_deadline
from srllm_guard.structure.mixed import moderate_texts
from srllm_guard.structure.visiting import Visitor, collected, replaced

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.structure.formats import Format

_ANYTHING = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)
"""Of callables that do not say what they take."""

_Key = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Side:
    """One guarded direction of a call."""

    guard: Guard
    place: Place
    trusted: frozenset[str] = frozenset()
    format: Format = "text"

    def apply(self, value: Any) -> Any:
        """The value with what is released in the place of its texts; itself if all is safe.

        Raises:
            Blocked: a text was withheld, and the policy says `on_block="raise"`.
            ShapeError: where the text is in such a value is not known.
        """
        texts, calls = self._found(value)
        return self._put(value, *self._released(texts, calls)) if texts or calls else value

    async def aapply(self, value: Any) -> Any:
        """`apply` without blocking the event loop."""
        texts, calls = self._found(value)
        if not texts and not calls:
            return value
        return self._put(value, *await asyncio.to_thread(self._released, texts, calls))

    def pieces(self) -> Pieces:
        """The state of a stream in this direction.

        Raises:
            ConfigError: texts have a format, which no part of a stream can be judged by.
        """
        if self.format != "text":
            raise ConfigError(
                f"format is {self.format!r} for a function that returns a stream.",
                hint="Streams are plain text; join the pieces before they are returned.",
            )
        return Pieces(self.guard, self.place)

    def _found(self, value: Any) -> tuple[list[str], list[Any]]:
        return collected(lambda visitor: self.place.walk(value, visitor), self.trusted)

    def _released(self, texts: list[str], calls: list[Any]) -> tuple[list[str], list[Any]]:
        guard = in_one_deadline(self.guard)
        if self.format == "text":
            results = moderate_texts(guard, texts)
        else:
            results = guard.moderate_many(texts, format=self.format)
        done = guard.moderate_tool_calls(calls)
        released = [self.guard.released(result) for result in results]
        for each in done:
            self.guard.released(each.moderation)
        return released, [each.call for each in done]

    def _put(self, value: Any, texts: list[str], calls: list[Any]) -> Any:
        return replaced(lambda visitor: self.place.walk(value, visitor), texts, calls, self.trusted)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a function takes, guarded: a mapping of the names of its parameters to the values.

    Values given by `**kwargs` stand beside the others; one that is called like a parameter given by
    position stands under a pair of names, so that neither hides the other. The instance or class
    that a method belongs to (a first parameter named `self` or `cls`) is none of them.
    """

    side: Side
    signature: inspect.Signature
    owner: str | None
    """Name of the parameter for the instance or class."""

    @classmethod
    def of(cls, function: Callable[..., Any], side: Side) -> Arguments:
        """Arguments of this function.

        Raises:
            ConfigError: a path of the selector begins with no parameter of the function.
        """
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # builtins do not tell
            signature = _ANYTHING
        first = next(iter(signature.parameters), None)
        _check_paths(side.place, signature)
        if isinstance(side.place, Known):
            side = replace(side, place=_Values())
        return cls(side, signature, first if first in ("self", "cls") else None)

    def guarded(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Positional and keyword arguments to call the function with; errors as `Side.apply`."""
        bound = self.signature.bind(*args, **kwargs)
        old = self._values(bound)
        return self._put(bound, old, self.side.apply(old))

    async def aguarded(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """`guarded` without blocking the event loop."""
        bound = self.signature.bind(*args, **kwargs)
        old = self._values(bound)
        return self._put(bound, old, await self.side.aapply(old))

    def _values(self, bound: inspect.BoundArguments) -> dict[_Key, Any]:
        # What was not given is None here, so that a path to it leads to nothing to guard.
        values: dict[_Key, Any] = {}
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given = bound.arguments.get(name, {})
                values |= {self._key(bound, name, keyword): given[keyword] for keyword in given}
            elif name != self.owner:
                values[name] = bound.arguments.get(name)
        return values

    def _key(self, bound: inspect.BoundArguments, name: str, keyword: str) -> _Key:
        """What a keyword among those of the parameter `name` stands under.

        Raises:
            ShapeError: a parameter given by position is called like it, and a selector cannot tell
                which of the two it means.
        """
        if keyword in (name, self.owner) or keyword not in bound.arguments:
            return keyword
        if not isinstance(self.side.place, _Values):
            raise ShapeError(
                f"The keyword {keyword!r} is called like a parameter that was given by position.",
                hint="Give the parameter another name, or leave out input_text.",
            )
        return name, keyword

    def _put(
        self, bound: inspect.BoundArguments, old: dict[_Key, Any], new: dict[_Key, Any]
    ) -> tuple[Any, Any]:
        if new is not old:
            for name, value in bound.arguments.items():
                if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                    bound.arguments[name] = {
                        keyword: new[self._key(bound, name, keyword)] for keyword in value
                    }
                elif name != self.owner:
                    bound.arguments[name] = new[name]
        return bound.args, bound.kwargs


@dataclass(frozen=True, slots=True)
class _Values:
    """Wherever the known shapes have text in any of the arguments."""

    def walk(self, value: Any, visitor: Visitor) -> Any:
        """See `Place`."""
        changed = {}
        for name, old in value.items():
            new = walk(old, visitor, (name,))
            if new is not old:
                changed[name] = new
        return {**value, **changed} if changed else value


def _check_paths(place: Place, signature: inspect.Signature) -> None:
    paths = place.paths if isinstance(place, Paths) else (place,)
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    for path in paths:
        if isinstance(path, Path) and path.root not in signature.parameters:
            raise ConfigError(
                f"The path {path.expression!r} begins with no parameter of the function.",
                hint=f"Its parameters are: {', '.join(signature.parameters) or 'none'}.",
            )
