"""How near an exported model is to its bundle, on texts that are held for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from srllm_guard.errors import ModelError
from srllm_guard.prompt import rewrite_request
from srllm_guard.runtime import Runtime
from srllm_guard.text.segments import Segment

TEXTS = (
    "The train leaves at 9:40 from platform 2, and it is usually on time.",
    "You are a worthless idiot and everybody here hates you.",
    "Old people can't learn new software, so put Ed on the phones.",
    "The clinic offers the vaccine to people over 65 and to pregnant women.",
    "Ask Ana, she is a woman, so keep the 3 slides simple. The room is booked until noon.",
    "I'm really unhappy with this delivery: two of the five boxes were empty.",
    "Only a complete moron would have forgotten the keys again, but lunch is still at 12:30.",
    "Girls just aren't built for maths, so let the boys do the experiment.",
    "Send me the invoice by Friday, you clueless moron.",
    "You can kill the process with Ctrl+C and start it again.",
)
"""Half of them are safe. They are in none of the data that the bundle was trained on."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is accepted of a precision."""

    score: float
    """Largest difference of a probability."""
    flips: float
    """Largest share of tokens, of those with the same tokens before them, that may differ."""


BOUNDS = {
    "fp32": Bounds(score=0.001, flips=0.0),
    "fp16": Bounds(score=0.01, flips=0.02),
    "int8": Bounds(score=0.15, flips=0.08),
    "int4": Bounds(score=0.4, flips=0.25),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """What was measured."""

    texts: int
    score: float
    """Largest difference of a text's probability of being unsafe."""
    median_score: float
    flips: float
    """Share of tokens that differ, of those with the same tokens before them."""
    tokens: int
    """Tokens that were compared."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(one: Runtime, other: Runtime, texts: Sequence[str] = TEXTS, tokens: int = 48) -> Parity:
    """Run texts through two runtimes of one bundle.

    Args:
        one: what is right.
        other: what is compared with it.
        texts: whole texts; of each the scores are compared, and its rewrite.
        tokens: most tokens of a rewrite.
    """
    from srllm_guard.guard import Guard

    pairs = zip(Guard(one).detect_many(texts), Guard(other).detect_many(texts), strict=True)
    gaps = sorted(abs(first.score - second.score) for first, second in pairs)
    requests = []
    for text in texts:
        segment = Segment(0, len(text), "prose", 0)
        request = rewrite_request(one.prompt, text, segment, [(0, len(text))])
        requests.append(request)
    written = [run.engine.generate(requests) for run in (one, other)]
    counts = [flipped(a.ids[:tokens], b.ids[:tokens]) for a, b in zip(*written, strict=True)]
    compared = sum(count for count, _ in counts)
    return Parity(
        texts=len(texts),
        score=round(gaps[-1], 5),
        median_score=round(gaps[len(gaps) // 2], 5),
        flips=round(sum(flip for _, flip in counts) / max(compared, 1), 5),
        tokens=compared,
    )


def flipped(one: Sequence[int], other: Sequence[int]) -> tuple[int, bool]:
    """How many tokens have the same tokens before them, and whether the last of these differs.

    The end of a text is a token like any other.
    """
    ends = (-1,)
    for n, (first, second) in enumerate(zip((*one, *ends), (*other, *ends), strict=False)):
        if first != second:
            return n + 1, True
    return min(len(one), len(other)) + 1, False


def accept(parity: Parity, bounds: Bounds) -> None:
    """Refuse an export that is further from its bundle than it may be.

    Raises:
        ModelError: with the figures and the bounds.
    """
    limits: Mapping[str, float] = asdict(bounds)
    found = parity.to_dict()
    if wrong := [name for name, most in limits.items() if not found[name] <= most]:
        told = ", ".join(f"{name} {found[name]:.4f} (at most {limits[name]:g})" for name in wrong)
        raise ModelError(
            f"The export is too far from its bundle: {told}.",
            hint="Export it in a higher precision.",
        )
