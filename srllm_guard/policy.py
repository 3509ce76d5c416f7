"""Policy: what counts as unsafe, and what is done about it. Data only, checked when it is made."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from srllm_guard.errors import PolicyError
from srllm_guard.labels import RISKS

RUNGS: tuple[str, ...] = ("rewrite", "candidates", "omit", "mask", "block")
"""The rungs of the ladder, in the only order that makes sense."""

MAX_CANDIDATES = 32
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**32 - 1
MAX_RATIO = 100.0
MAX_MESSAGE = 2_000
MAX_HOLDBACK = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What counts as unsafe and what is done about it; immutable, and the same for every call.

    `Policy(threshold=0.5, on_fail="block")`, `Policy.from_dict(...)` and `Policy.from_toml(path)`
    all check every field. In TOML each field is a key of the top level, `label_thresholds` is a
    table, and a key that is left out keeps its default. Variants: `dataclasses.replace`.

    Raises:
        PolicyError: a field, or two fields together, make no sense. The message names the field,
            the value it has and the values it may have.
    """

    threshold: float | None = None
    """A segment is unsafe when its score (0..1) reaches this; None: the threshold that was
    calibrated for the bundle."""
    release_threshold: float | None = None
    """A rewritten segment is released only if its score (0..1) stays below this, and below
    `threshold`; None: the number that was calibrated for the bundle."""
    label_thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Flags a segment also when one label alone reaches its number (0..1). Keys: "bias" (the
    probability of "yes"), "toxicity" (of "mild" or "high"), "harm" (of "medium" or "high")."""
    min_likelihood: float | None = None
    """A rewrite is released only if the model gives it at least this likelihood (natural
    logarithm, at most 0); None: the number that was calibrated for the bundle."""
    ladder: tuple[str, ...] = RUNGS
    """What is tried in turn until a result is verified, a part of `RUNGS` in that order: "rewrite"
    (greedy decoding, and deletions of the unsafe phrases), "candidates" (seeded sampling), "omit"
    (the sentence is left out, where another stands beside it and it says little but what is
    unsafe), "mask" (the unsafe phrases), "block"."""
    on_fail: Literal["block", "mask", "pass"] = "block"
    """How the ladder ends. "block": withhold the text. "mask": mask, and never block. "pass":
    release the original, which needs `fail_open=True`."""
    fail_open: bool = False
    """Whether errors and missed deadlines of the model release the original."""
    candidates: int = 0
    """How many rewrites the rung "candidates" samples, 0 to 32; 0 leaves the rung out. The
    marked phrases may not occur in them. With 4 a sentence that would be masked takes more than
    twice the time, and one in thirty is rewritten after all."""
    temperature: float = 0.7
    """Temperature of that sampling, above 0 and at most 2."""
    seed: int = 0
    """Seed of that sampling, 0 to 2**32 - 1: the same text gives the same candidates."""
    deadline_ms: float | None = None
    """Milliseconds a call may take before the ladder is cut short; None: no limit."""
    unverified: Literal["pass", "block"] = "pass"
    """What is done with text that the model was not validated for, such as another language."""
    mask_text: str = "[removed]"
    """What stands in place of a masked phrase; may be empty."""
    block_message: str = "[This text was withheld because it could not be made safe.]"
    """What is released in place of a withheld text; may be empty."""
    on_block: Literal["message", "raise"] = "message"
    """How a withheld text shows where text alone is returned (`rewrite`, and everything around
    other calls): "message" puts `block_message` in its place, "raise" raises `Blocked`."""
    max_holdback_chars: int = 2_000
    """Most characters that a stream holds back while a sentence is not complete; what is held is
    then judged as a segment. 1 to 100,000."""
    max_holdback_ms: float | None = 10_000
    """Likewise in milliseconds, from the first character that is held; None: no limit."""
    protect_quotations: bool = False
    """Whether quoted text comes back unchanged."""
    max_length_ratio: float = 2.0
    """Most characters a rewrite may have, per character of its source; 1 to 100."""
    min_length_ratio: float = 0.2
    """Fewest characters a rewrite may have, per character of its source; 0 to 1."""
    mode: Literal["enforce", "observe"] = "enforce"
    """"observe" reports what was found and releases the original."""

    def __post_init__(self) -> None:
        for name, (allowed, check) in _RULES.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, check(value))
            except (TypeError, ValueError, OverflowError):
                message = f"Policy.{name} is {_shown(value)}; allowed: {allowed}."
                raise PolicyError(message) from None
        if self.on_fail == "pass" and not self.fail_open:
            raise PolicyError(
                'Policy.on_fail is "pass" while Policy.fail_open is False; '
                'allowed: "block" or "mask".',
                hint="Set fail_open=True if an unsafe original may really be released.",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Return the policy with these fields; the others keep their defaults.

        Raises:
            PolicyError: not a mapping, an unknown field, or a field that makes no sense.
        """
        if not isinstance(values, Mapping):
            raise PolicyError(f"A policy is a mapping of fields, not {type(values).__name__}.")
        for name in values:
            if name not in _RULES:
                close = difflib.get_close_matches(str(name), _RULES, n=1)
                raise PolicyError(
                    f"A policy has no field {_shown(name)}; allowed: {', '.join(_RULES)}.",
                    hint=f'Did you mean "{close[0]}"?' if close else None,
                )
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path) -> Policy:
        """Return the policy that a TOML file describes.

        Raises:
            PolicyError: the file cannot be read, is no TOML, or holds no sensible policy.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise PolicyError(f"The policy file {path} cannot be read: {why}.") from error
        except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
            raise PolicyError(f"The policy file {path} is no valid TOML: {error}.") from error
        try:
            return cls.from_dict(values)
        except PolicyError as error:
            raise PolicyError(f"In {path}: {error.message}", hint=error.hint) from None

    @property
    def rungs(self) -> tuple[str, ...]:
        """The ladder as it is walked: the rungs asked for, ended the way `on_fail` says.

        With `on_fail="pass"` the original follows after the last rung.
        """
        skipped = {self.on_fail, "block"} | (set() if self.candidates else {"candidates"})
        walked = tuple(rung for rung in self.ladder if rung not in skipped)
        return walked if self.on_fail == "pass" else (*walked, self.on_fail)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that are the same wherever the same policy is made."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values; `from_dict` reads them back."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {
            "label_thresholds": dict(self.label_thresholds),
            "ladder": list(self.ladder),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # A mappingproxy cannot be pickled.
        return Policy.from_dict, (self.to_dict(),)


def _shown(value: object) -> str:
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _number(low: float, high: float, *, above: bool = False) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        number = float(value) + 0.0  # -0.0 becomes 0.0, so that equal policies hash alike
        if not (low <= number <= high and math.isfinite(number)) or (above and number == low):
            raise ValueError
        return number

    return check


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError
        number = int(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return check


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _choice(*allowed: str) -> tuple[str, Callable[[Any], str]]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError
        return str(value)

    return _either(allowed), check


def _message(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_MESSAGE:
        raise ValueError
    value.encode("utf-8")  # a lone surrogate could not be shown anywhere
    return str(value)


def _ladder(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError
    rungs = tuple(value)
    order = [RUNGS.index(rung) for rung in rungs]
    if order != sorted(set(order)):
        raise ValueError
    return rungs


def _label_thresholds(value: Any) -> Mapping[str, float]:
    if not isinstance(value, Mapping) or not set(value) <= set(RISKS):
        raise ValueError
    check = _number(0, 1)
    return MappingProxyType({label: check(value[label]) for label in RISKS if label in value})


def _either(values: Iterable[str]) -> str:
    *first, last = (f'"{value}"' for value in values)
    return f"{', '.join(first)} or {last}"


_MESSAGE = f"a string of at most {MAX_MESSAGE} characters without lone surrogates"

_RULES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "threshold": ("a number from 0 to 1, or None", _optional(_number(0, 1))),
    "release_threshold": ("a number from 0 to 1, or None", _optional(_number(0, 1))),
    "min_likelihood": ("a number of at most 0, or None", _optional(_number(-math.inf, 0))),
    "label_thresholds": (
        f"a mapping of {_either(RISKS)} to numbers from 0 to 1",
        _label_thresholds,
    ),
    "ladder": (f"a sequence of {_either(RUNGS)}, each at most once, in this order", _ladder),
    "on_fail": _choice("block", "mask", "pass"),
    "fail_open": ("True or False", _flag),
    "candidates": (f"an integer from 0 to {MAX_CANDIDATES}", _integer(0, MAX_CANDIDATES)),
    "temperature": (
        f"a number above 0, at most {MAX_TEMPERATURE:g}",
        _number(0, MAX_TEMPERATURE, above=True),
    ),
    "seed": (f"an integer from 0 to {MAX_SEED}", _integer(0, MAX_SEED)),
    "deadline_ms": (
        "a number of milliseconds above 0, or None",
        _optional(_number(0, math.inf, above=True)),
    ),
    "unverified": _choice("pass", "block"),
    "mask_text": (_MESSAGE, _message),
    "block_message": (_MESSAGE, _message),
    "on_block": _choice("message", "raise"),
    "max_holdback_chars": (f"an integer from 1 to {MAX_HOLDBACK}", _integer(1, MAX_HOLDBACK)),
    "max_holdback_ms": (
        "a number of milliseconds above 0, or None",
        _optional(_number(0, math.inf, above=True)),
    ),
    "protect_quotations": ("True or False", _flag),
    "max_length_ratio": (f"a number from 1 to {MAX_RATIO:g}", _number(1, MAX_RATIO)),
    "min_length_ratio": ("a number from 0 to 1", _number(0, 1)),
    "mode": _choice("enforce", "observe"),
}
