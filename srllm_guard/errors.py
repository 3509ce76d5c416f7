"""Everything that srllm-guard raises on purpose.

    GuardError                    the root: `except GuardError` catches all of it
      +- ConfigError              an option that makes no sense (also a ValueError)
      |    +- PolicyError         a policy that makes no sense
      +- FormatError              a text is not in the format named (also a ValueError)
      +- ShapeError               where the text is in a value is not known (also a TypeError)
      +- MissingExtra             an optional dependency is not installed (also an ImportError)
      +- ModelError               something is wrong with the files of a model
      |    +- ModelNotFound       no such model, or its base weights are not on this machine
      |    +- BundleError         corrupt manifest, wrong hash, adapter of another base
      +- EngineError              the model failed while it ran (also a RuntimeError)
      |    +- DeadlineExceeded    it did not answer in time
      +- Blocked                  the policy withheld a text, and the caller asked to be told

Each error says what was wrong (`message`), what to do (`hint`) and whether the same call may
succeed when it is made again (`retryable`). The text under moderation is never part of an error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from srllm_guard.results import Moderation

__all__ = [
    "Blocked",
    "BundleError",
    "ConfigError",
    "DeadlineExceeded",
    "EngineError",
    "FormatError",
    "GuardError",
    "MissingExtra",
    "ModelError",
    "ModelNotFound",
    "PolicyError",
    "ShapeError",
]


class GuardError(Exception):
    """Root of the tree; `str(error)` is the message followed by the hint.

    `message` says what was wrong and shows the wrong value. `hint` says what to do about it, and is
    empty when there is nothing to say. `retryable` overrides the default of the class.
    """

    retryable: bool = False
    """Whether the same call may succeed when it is made again."""

    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool | None = None):
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        if retryable is not None:
            self.retryable = retryable
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    @property
    def line(self) -> str:
        """The class and the message, without the hint: what results say of an error."""
        return f"{type(self).__name__}: {self.message}"

    def _rebuild(self) -> tuple[Callable[..., GuardError], tuple[Any, ...]]:
        build = partial(type(self), hint=self.hint, retryable=self.retryable)
        return build, (self.message,)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle as `type(*args)`, which loses keyword-only parts between processes.
        return self._rebuild()


class ConfigError(GuardError, ValueError):
    """An option that makes no sense; the message names it and the allowed values."""


class PolicyError(ConfigError):
    """A policy that makes no sense; the message names the field and the allowed values."""


class FormatError(GuardError, ValueError):
    """A text is not in the format that it is said to be in; the message says where, without it."""

    default_hint = 'format="auto" takes a text as it is, and format="text" as plain text.'


class ShapeError(GuardError, TypeError):
    """Where the text is in a value is not known, or it is not where it was said to be.

    The message names the types on the way, and nothing of what they hold.
    """

    default_hint = (
        "Say where it is by input_text or output_text: a path such as "
        '"choices[*].message.content", or a pair of functions (get, put).'
    )


class MissingExtra(GuardError, ImportError):
    """An optional dependency is not installed; the hint is the pip command that installs it.

    `extra` is the name in brackets, `needed_for` the feature in words, as in
    `MissingExtra(extra="torch", needed_for="the reference engine")`.
    """

    def __init__(self, *, extra: str, needed_for: str):
        self.extra = extra
        self.needed_for = needed_for
        super().__init__(
            f'The extra "{extra}" is needed for {needed_for} and is not installed.',
            hint=f'Install it with: pip install "srllm-guard[{extra}]"',
        )

    def _rebuild(self) -> tuple[Callable[..., GuardError], tuple[Any, ...]]:
        return partial(type(self), extra=self.extra, needed_for=self.needed_for), ()


class ModelError(GuardError):
    """Something is wrong with the files of a model."""


class ModelNotFound(ModelError):
    """No such model, or its base weights are not on this machine."""


class BundleError(ModelError):
    """A bundle cannot be used: corrupt manifest, wrong hash, or made for another base model."""


class EngineError(GuardError, RuntimeError):
    """The model failed while it ran; the same call may succeed when it is made again."""

    retryable = True


class DeadlineExceeded(EngineError):
    """The model did not answer within the deadline of the policy."""

    default_hint = "Raise Policy.deadline_ms, send shorter texts, or try again."


class Blocked(GuardError):
    """A text was withheld; `moderation` is the whole result, and the message holds no text."""

    default_hint = "The attribute `moderation` holds the result; its `text` is safe to show."

    def __init__(
        self,
        moderation: Moderation,
        message: str = "The text was withheld: no version of it could be verified as safe.",
        *,
        hint: str | None = None,
        retryable: bool | None = None,
    ):
        self.moderation = moderation
        super().__init__(message, hint=hint, retryable=retryable)

    def _rebuild(self) -> tuple[Callable[..., GuardError], tuple[Any, ...]]:
        build = partial(type(self), hint=self.hint, retryable=self.retryable)
        return build, (self.moderation, self.message)
