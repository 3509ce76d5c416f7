"""The adapter on its own: each segment that holds a mark is rewritten once, and nothing verified.

What is left of the guard when the ladder is taken away. Marks come from the detector, or from
people ("gold"), which shows what better detection would give.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.metrics import Range
from srllm_guard.prompt import rewrite_request
from srllm_guard.runtime import Runtime
from srllm_guard.text.segments import Segment, segments
from train.example import apart


def rewritten(
    runtime: Runtime,
    texts: Sequence[str],
    marks: Sequence[Sequence[Range]],
    batch: int = 16,
    name: str = "adapter",
) -> list[str]:
    """Each text with its marked segments as the adapter rewrites them.

    A rewrite that is cut off at the limit leaves its segment as it was.
    """
    jobs = [
        (number, segment, rewrite_request(runtime.prompt, text, segment, ranges))
        for number, (text, found) in enumerate(zip(texts, marks, strict=True))
        for segment, ranges in marked(text, found)
    ]
    calls = runtime.gate.open(None)
    answers: list[str | None] = []
    with tqdm(total=len(jobs), desc=name, unit="segment") as bar:
        for start in range(0, len(jobs), batch):
            part = [job[2] for job in jobs[start : start + batch]]
            found = calls.generate(part)
            answers += [runtime.prompt.decode(f.ids).strip() if f.finished else None for f in found]
            bar.update(len(part))
    outputs = list(texts)
    # From the end of each text, so that offsets stay right.
    for (number, segment, _), answer in sorted(
        zip(jobs, answers, strict=True), key=lambda each: -each[0][1].start
    ):
        if answer is not None:
            text = outputs[number]
            outputs[number] = text[: segment.start] + answer + text[segment.end :]
    return outputs


def marked(text: str, ranges: Sequence[Range]) -> list[tuple[Segment, list[Range]]]:
    """The prose segments that hold part of a range, with the ranges at offsets of the segment."""
    found = []
    for segment in segments(text):
        inside = [
            (max(start, segment.start) - segment.start, min(end, segment.end) - segment.start)
            for start, end in sorted(ranges)
            if start < segment.end and segment.start < end
        ]
        if inside and segment.kind == "prose":
            found.append((segment, apart(inside)))
    return found
