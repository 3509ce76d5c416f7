"""What the guard says about a text: frozen values, every field documented, each ready for JSON.

Offsets are counted in code points (indices of a Python string); the end is exclusive. Scores and
probabilities lie in 0..1; a score of risk grows with the risk. Times are milliseconds.

`to_dict()` returns plain dicts, lists, strings and numbers, in the order of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

Action = Literal["pass", "rewrite", "mask", "block", "unverified"]
"""What was done with a text; `Moderation.action` says what each word means."""

EditAction = Literal["rewrite", "mask", "block"]
"""What was done with one part of a text."""


def _freeze(owner: object, name: str) -> None:
    object.__setattr__(owner, name, MappingProxyType(dict(getattr(owner, name))))


def _rebuild(result: Any) -> tuple[Any, ...]:
    # A mappingproxy can be neither pickled nor deep-copied; a dict can, and is frozen again.
    values = (getattr(result, each.name) for each in fields(result))
    return type(result), tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)


@dataclass(frozen=True, slots=True)
class Span:
    """One unsafe phrase."""

    start: int
    """First code point of the phrase in the text that was judged."""
    end: int
    """One past the last code point of the phrase."""
    category: str
    """Why the phrase is unsafe: "bias", "toxicity" or "harm"."""
    score: float
    """Probability that the phrase is unsafe for that reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "start": self.start,
            "end": self.end,
            "category": self.category,
            "score": self.score,
        }


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of the Content Moderation Dataset, with the probability of each of its values."""

    value: str
    """The most probable value, such as "mild"."""
    probabilities: Mapping[str, float] = field(hash=False)
    """Probability of each value, in the order of `srllm_guard.labels.LABELS`; they sum to 1.
    Immutable."""

    def __post_init__(self) -> None:
        _freeze(self, "probabilities")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {"value": self.value, "probabilities": dict(self.probabilities)}


@dataclass(frozen=True, slots=True)
class Detection:
    """How safe one text is."""

    score: float
    """Calibrated probability that the text is unsafe: biased, toxic or harmful. The score of the
    worst segment; negative sentiment alone does not raise it."""
    unsafe: bool
    """Whether any segment reached a threshold. False says little where `verified` is False."""
    bias: LabelScore
    """Bias: "no" or "yes"."""
    toxicity: LabelScore
    """Toxicity: "none", "mild" or "high"."""
    sentiment: LabelScore
    """Sentiment: "negative", "neutral" or "positive"."""
    harm: LabelScore
    """Potential for harm: "low", "medium" or "high"."""
    spans: tuple[Span, ...]
    """The unsafe phrases, by their start; empty when none was found."""
    verified: bool
    """False when the text is outside of what the model was validated for, such as another language,
    or when it could not be judged at all. Such a text must not be taken for safe. True speaks of
    the prose alone, also where there is none: code, and what else is no prose in the text's format,
    is not judged."""
    language: str | None
    """ISO 639-1 code of the language that was recognised; None when the text is too short to tell
    or none was."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "score": self.score,
            "unsafe": self.unsafe,
            "bias": self.bias.to_dict(),
            "toxicity": self.toxicity.to_dict(),
            "sentiment": self.sentiment.to_dict(),
            "harm": self.harm.to_dict(),
            "spans": [span.to_dict() for span in self.spans],
            "verified": self.verified,
            "language": self.language,
        }


@dataclass(frozen=True, slots=True)
class Edit:
    """One part of a text that was replaced."""

    start: int
    """First code point of the part in the original."""
    end: int
    """One past its last code point in the original."""
    new_start: int
    """First code point of the replacement in the released text."""
    new_end: int
    """One past the last code point of the replacement in the released text."""
    original: str
    """The part as it was: `moderation.original[start:end]`."""
    replacement: str
    """What stands there now: `moderation.text[new_start:new_end]`."""
    action: EditAction
    """Whether the part was rewritten, masked, or withheld."""
    spans: tuple[Span, ...]
    """The unsafe phrases that led to the edit; their offsets are those of the whole original."""
    reasons: tuple[str, ...]
    """Why the part was flagged, and why earlier rungs of the ladder were refused, in order."""
    rung: str = ""
    """Which rung of `Policy.ladder` gave the replacement."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "start": self.start,
            "end": self.end,
            "new_start": self.new_start,
            "new_end": self.new_end,
            "original": self.original,
            "replacement": self.replacement,
            "action": self.action,
            "spans": [span.to_dict() for span in self.spans],
            "reasons": list(self.reasons),
            "rung": self.rung,
        }


@dataclass(frozen=True, slots=True)
class Provenance:
    """What produced a result: enough to say whether two results are comparable."""

    bundle: str
    """Name of the bundle (adapter, heads and thresholds)."""
    bundle_hash: str
    """SHA-256 of the bundle's manifest without its figures, hexadecimal; the manifest holds the
    hashes of the other files."""
    base_hash: str
    """SHA-256 of the base weights that the bundle names, hexadecimal; repository and revision where
    they are several files. Of the weights in a folder that was given instead: the SHA-256 of their
    safetensors, see `srllm_guard.models.store.base_hash`, or "unchecked" if there are none."""
    policy_hash: str
    """`Policy.hash` of the policy that decided."""
    engine: str
    """Name of the engine that ran the model."""
    device: str
    """Where it ran, such as "cpu" or "cuda:0"."""
    version: str
    """Version of srllm-guard."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Moderation:
    """What was done with a text, and why.

    Two results are equal when they say the same, however long each took: `timings` is not compared.
    """

    action: Action
    """ "pass": released as it was. "rewrite": parts were rewritten. "mask": parts were masked.
    "block": withheld, `text` is the block message; of a text with a format (JSON, HTML, ...) at
    least one part was. "unverified": released and not known to be safe, because the model was not
    validated for it, or because it failed, or the text could not be made safe, and the policy
    fails open."""
    text: str
    """The text to show; the same as `original`, to the byte, unless something was edited."""
    original: str
    """The text that came in."""
    before: Detection
    """What was found in `original`."""
    after: Detection | None
    """What is found in `text`, apart from parts that were withheld; None when the text was not
    edited, or withheld as a whole."""
    edits: tuple[Edit, ...]
    """The parts that were replaced, by their start; empty when nothing was."""
    provenance: Provenance
    """What produced this result."""
    timings: Mapping[str, float] = field(hash=False, compare=False)
    """Milliseconds by stage. Immutable."""
    errors: tuple[str, ...] = ()
    """What went wrong inside the model on the way, without any of the text; empty when nothing did.
    The outcome is the policy's all the same."""

    def __post_init__(self) -> None:
        _freeze(self, "timings")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild(self)

    @property
    def changed(self) -> bool:
        """Whether `text` differs from `original`."""
        return self.text != self.original

    @property
    def safe(self) -> bool:
        """Whether the whole text was withheld, or its prose was judged and found safe.

        What is no prose, such as a block of code, is not judged; a text that is nothing else counts
        as safe. False for text that is unverified, and for an unsafe original that a policy which
        only observes, or fails open, released.
        """
        if self.action in ("block", "mask") and self.after is None:
            return True
        judged = self.before if self.after is None else self.after
        return self.action != "unverified" and judged.verified and not judged.unsafe

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "action": self.action,
            "text": self.text,
            "original": self.original,
            "before": self.before.to_dict(),
            "after": None if self.after is None else self.after.to_dict(),
            "edits": [edit.to_dict() for edit in self.edits],
            "provenance": self.provenance.to_dict(),
            "timings": dict(self.timings),
            "errors": list(self.errors),
        }
