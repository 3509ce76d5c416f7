"""The goals for speed, and what a run reached of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.goals import SIGNS
from benchmarks.report import table
from benchmarks.speed.rows import figure
from benchmarks.speed.systems import CUDA, LLAMA, LOOKUP, REFERENCE

Content = Mapping[str, Any]
Found = tuple[float, str] | None
"""A figure and the system that it is of; None where something was not measured."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    measure: str
    sign: str
    bound: float
    unit: str
    reached: Callable[[Content], Found]


def reached(content: Content) -> list[dict[str, Any]]:
    """What became of each goal: figure, system, and whether it was met; None if not measured."""
    rows = []
    for goal in GOALS:
        found = goal.reached(content)
        value, system = found or (None, None)
        rows.append(
            {
                "measure": goal.measure,
                "goal": f"{goal.sign} {goal.bound:g} {goal.unit}".strip(),
                "reached": None if value is None else round(value, 3),
                "system": system,
                "met": None if value is None else SIGNS[goal.sign](value, goal.bound),
            }
        )
    return rows


def goals_table(rows: list[dict[str, Any]]) -> str:
    """Goals beside what was reached."""
    lines = []
    for row in rows:
        value, met = row["reached"], row["met"]
        told = "not measured" if value is None else f"{value:.3g} ({row['system']})"
        lines.append([row["measure"], row["goal"], told, {True: "yes", False: "no"}.get(met)])
    return table(["measure", "goal", "reached", "met"], lines)


def _ours(rows: Any, cuda: bool = False) -> dict[str, Any]:
    """Of rows by system those of our fast engines, on the CPU or on CUDA."""
    return {
        name: row
        for name, row in (rows or {}).items()
        if name.startswith(("torch ", "onnx ")) and name.endswith(CUDA) == cuda
    }


def _times_faster(
    *path: str,
    than: str,
    other: tuple[str, ...] | None = None,
    cuda: bool = False,
    same: bool = False,
) -> Callable[[Content], Found]:
    """How many times faster the fastest of ours is than the system `than`, by medians.

    With `same`, of those that write what `transformers` writes for every text.
    """

    def ratio(content: Content) -> Found:
        slow = figure(content, *(other or path), than, "median_ms")
        found = _best(content, path, "median_ms", cuda, same=same)
        return None if slow is None or found is None else (slow / found[0], found[1])

    return ratio


def _best(
    content: Content, path: tuple[str, ...], key: str, cuda: bool = False, *, same: bool = False
) -> Found:
    """The least figure of our fast engines; with `same`, of those with equal output."""
    rows: Any = content
    for part in path:
        rows = (rows or {}).get(part)
    known = [
        (row[key], name)
        for name, row in _ours(rows, cuda).items()
        if row.get(key) and (not same or row.get("same_output") == 1)
    ]
    return min(known, default=None)


def _of(key: str, *path: str, cuda: bool = False) -> Callable[[Content], Found]:
    return lambda content: _best(content, path, key, cuda)


def _single(name: str, *path: str, scale: float = 1.0) -> Callable[[Content], Found]:
    """One figure of one system."""

    def found(content: Content) -> Found:
        value = figure(content, *path)
        return None if value is None else (value * scale, name)

    return found


def _worst_wrapper(content: Content) -> Found:
    rows = (content.get("middleware") or {}).get("overhead", {}).get("wrappers", {})
    return max(((row["overhead_ms"], name) for name, row in rows.items()), default=None)


def _document(key: Callable[[Mapping[str, Any]], float | None]) -> Callable[[Content], Found]:
    """The least of what `key` gives of the documents of our engines on the CPU."""

    def found(content: Content) -> Found:
        rows = _ours(content.get("document"))
        known = [(value, name) for name, row in rows.items() if (value := key(row)) is not None]
        return min(known, default=None)

    return found


def _bend(row: Mapping[str, Any]) -> float | None:
    """Time for each word of the longest document over that of the shortest."""
    words = sorted(row, key=int)
    if len(words) < 2:
        return None
    long, short = (float(row[n]["ms_per_1000_words"]) for n in (words[-1], words[0]))
    return long / short


def _batch(content: Content) -> Found:
    """Tokens a second of a batch of 32 on CUDA against transformers."""
    rows = content.get("batches") or {}
    known = [
        (row["32"]["tokens_per_s"], name) for name, row in _ours(rows, True).items() if "32" in row
    ]
    slow = figure(rows, REFERENCE + CUDA, "32", "tokens_per_s")
    if not known or not slow:
        return None
    best, name = max(known)
    return best / slow, name


def _onnx_cuda(content: Content) -> Found:
    """Median of the fastest ONNX engine on CUDA over that of the fastest torch engine there."""
    rows = _ours(((content.get("sentence") or {}).get("decode")), True)
    fastest = {
        kind: min((r["median_ms"] for n, r in rows.items() if n.startswith(kind)), default=None)
        for kind in ("torch", "onnx")
    }
    torch_ms, onnx_ms = fastest["torch"], fastest["onnx"]
    return None if torch_ms is None or onnx_ms is None else (onnx_ms / torch_ms, "onnx cuda")


def _goals() -> Iterator[Goal]:
    decode, guard = ("sentence", "decode"), ("sentence", "guard")
    for words, than, bound in (
        ("transformers.generate", REFERENCE, 6),
        ("transformers with prompt lookup", LOOKUP, 3),
        ("llama.cpp, same GGUF", LLAMA, 2),
    ):
        for same, told in ((True, "the same output"), (False, "any precision")):
            yield Goal(
                f"one sentence, decoding, {told}, against {words}",
                ">=", bound, "times faster", _times_faster(*decode, than=than, same=same),
            )  # fmt: skip
    yield Goal(
        "one sentence, Guard.rewrite with detection and verification, against the decoding of "
        "transformers.generate",
        ">=", 6, "times faster", _times_faster(*guard, than=REFERENCE, other=decode),
    )  # fmt: skip
    yield Goal(
        "detection of 64 tokens, Guard.detect, against a full forward of transformers",
        ">=", 4, "times faster", _times_faster("detection", "64", than=REFERENCE),
    )  # fmt: skip
    yield Goal("the same", "<=", 25, "ms", _of("median_ms", "detection", "64"))
    yield Goal(
        "paragraph, 1 of 8 sentences unsafe, Guard.rewrite against transformers.generate of all",
        ">=", 15, "times faster",
        _times_faster("paragraph", "guard", than=REFERENCE, other=("paragraph", "whole")),
    )  # fmt: skip
    yield Goal(
        "document of 10,000 words, 1% unsafe: time over detection alone",
        "<=", 1.3, "", _document(lambda row: figure(row, "10000", "over_detection")),
    )  # fmt: skip
    yield Goal(
        "time a word, longest document over shortest (1 is linear)", "<=", 1.2, "", _document(_bend)
    )
    yield Goal(
        "import", "<=", 0.15, "s",
        _single("srllm_guard", "start", "import srllm_guard", "median_ms", scale=1e-3),
    )  # fmt: skip
    for name in ("torch fp32", "onnx int8"):
        row = f"{name}: warm, to a safe answer"
        yield Goal(
            f"warm start to the first answer, {name}",
            "<=", 2, "s", _single(name, "start", row, "median_ms", scale=1e-3),
        )  # fmt: skip
    for name, bound in (("torch fp32", 900), ("onnx int8", 450)):
        yield Goal(f"peak memory, {name}", "<=", bound, "MB", _single(name, "memory", name, "mb"))
    yield Goal(
        "wrappers on safe text over bare detection, the worst", "<=", 1, "ms", _worst_wrapper
    )
    yield Goal(
        "CUDA: one sentence, decoding, against transformers.generate there",
        ">=", 20, "times faster", _times_faster(*decode, than=REFERENCE + CUDA, cuda=True),
    )  # fmt: skip
    yield Goal("CUDA: a step", "<=", 0.7, "ms", _of("ms_per_step", *decode, cuda=True))
    yield Goal("CUDA: batch of 32, tokens a second against transformers", ">=", 5, "times", _batch)
    yield Goal("CUDA: onnx against torch, one sentence", "<=", 2, "times the time", _onnx_cuda)


GOALS = tuple(_goals())
