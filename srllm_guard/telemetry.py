"""OpenTelemetry spans and metrics of the guard's verbs, where its API is installed.

Spans are `srllm_guard.moderate`, `srllm_guard.detect` and `srllm_guard.stream`, children of the
span that is current. Metrics are the counter `srllm_guard.texts` and the histograms
`srllm_guard.latency` (milliseconds a call) and `srllm_guard.score` (0..1, a text).

No text is ever part of either. A text is told from another by a hash with a key that is drawn
anew in each process: equal texts can be seen to be equal, and none can be guessed from its hash.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from srllm_guard.forks import PerProcess

if TYPE_CHECKING:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import Span

    from srllm_guard.results import Detection, Moderation, Provenance

LATENCY_BUCKETS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4)
SCORE_BUCKETS = tuple(n / 10 for n in range(1, 10))

MOST_HASHES = 32
"""Hashes of texts in one span; the texts behind them in a batch are only counted."""

_KEY = PerProcess(lambda: os.urandom(32))


@dataclass(frozen=True, slots=True)
class _Instruments:
    tracer: trace.Tracer
    texts: metrics.Counter
    latency: metrics.Histogram
    score: metrics.Histogram


@contextmanager
def watch(verb: str, provenance: Provenance) -> Iterator[Span | None]:
    """A span around one call of a verb, and its latency; None where nobody is listening.

    An error is told by its type alone: messages and tracebacks of what caused it may quote text.
    """
    instruments = _instruments()
    if instruments is None:
        yield None
        return
    named = {"srllm_guard.verb": verb}
    start = time.perf_counter()
    with instruments.tracer.start_as_current_span(
        f"srllm_guard.{verb}",
        attributes=_described(provenance),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            named["error.type"] = type(error).__name__
            _fail(span, error)
            raise
        finally:
            took = (time.perf_counter() - start) * 1e3
            span.set_attribute("srllm_guard.latency_ms", round(took, 3))
            instruments.latency.record(took, named)


def record_moderations(results: Sequence[Moderation], span: Span | None) -> None:
    """Count results, in the span of the call that made them.

    Args:
        results: of one call, all by the same policy.
        span: None for a stream, which is over when its result is known: its span is made here.
    """
    instruments = _instruments()
    if instruments is None or not results:
        return
    if span is None:
        for result in results:
            _record_stream(result, instruments)
        return
    _count("moderate", results, instruments)
    _describe(span, results)


def record_detections(texts: Sequence[str], found: Sequence[Detection], span: Span | None) -> None:
    """Count what was only judged, in the span of the call that did."""
    instruments = _instruments()
    if instruments is None or span is None or not found:
        return
    for each in found:
        attributes: dict[str, str | bool] = {
            "srllm_guard.verb": "detect",
            "srllm_guard.unsafe": each.unsafe,
        }
        instruments.texts.add(1, attributes)
        instruments.score.record(each.score, attributes)
    if span.is_recording():
        span.set_attributes(
            {
                "srllm_guard.texts": len(found),
                "srllm_guard.unsafe": sum(each.unsafe for each in found),
                "srllm_guard.score": max(each.score for each in found),
                "srllm_guard.text_hashes": _hashes(texts),
            }
        )


def _record_stream(result: Moderation, instruments: _Instruments) -> None:
    took = result.timings.get("total", 0.0)
    now = time.time_ns()
    span = instruments.tracer.start_span(
        "srllm_guard.stream",
        attributes=_described(result.provenance) | {"srllm_guard.latency_ms": took},
        start_time=now - int(took * 1e6),
    )
    instruments.latency.record(took, {"srllm_guard.verb": "stream"})
    _count("stream", [result], instruments)
    _describe(span, [result])
    span.end(now)


def _count(verb: str, results: Sequence[Moderation], instruments: _Instruments) -> None:
    for result in results:
        attributes: dict[str, str | bool] = {
            "srllm_guard.verb": verb,
            "srllm_guard.action": result.action,
            "srllm_guard.unsafe": result.before.unsafe,
        }
        instruments.texts.add(1, attributes)
        instruments.score.record(result.before.score, attributes)


def _describe(span: Span, results: Sequence[Moderation]) -> None:
    if not span.is_recording():
        return
    actions = Counter(result.action for result in results)
    stages = {stage: ms for result in results for stage, ms in result.timings.items()}
    stages.pop("total", None)
    span.set_attributes(
        {
            "srllm_guard.texts": len(results),
            "srllm_guard.unsafe": sum(result.before.unsafe for result in results),
            "srllm_guard.score": max(result.before.score for result in results),
            "srllm_guard.edits": sum(len(result.edits) for result in results),
            "srllm_guard.errors": sum(len(result.errors) for result in results),
            "srllm_guard.text_hashes": _hashes([result.original for result in results]),
            **{f"srllm_guard.action.{action}": count for action, count in actions.items()},
            **{f"srllm_guard.{stage}_ms": ms for stage, ms in stages.items()},
        }
    )


def _described(provenance: Provenance) -> dict[str, str | float]:
    return {f"srllm_guard.{name}": value for name, value in provenance.to_dict().items()}


def _hashes(texts: Sequence[str]) -> list[str]:
    return [
        blake2b(text.encode("utf-8", "surrogatepass"), key=_KEY.value, digest_size=8).hexdigest()
        for text in texts[:MOST_HASHES]
    ]


def _fail(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR, type(error).__name__))


@cache
def _instruments() -> _Instruments | None:
    """The tracer and the instruments; None where the API is not installed."""
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    from srllm_guard import __version__

    meter = metrics.get_meter("srllm_guard", __version__)
    return _Instruments(
        tracer=trace.get_tracer("srllm_guard", __version__),
        texts=meter.create_counter("srllm_guard.texts", "{text}", "Texts by what was done."),
        latency=meter.create_histogram(
            "srllm_guard.latency",
            "ms",
            "Milliseconds a call of the guard took.",
            explicit_bucket_boundaries_advisory=LATENCY_BUCKETS,
        ),
        score=meter.create_histogram(
            "srllm_guard.score",
            "1",
            "Probability that a text is unsafe, as it came in.",
            explicit_bucket_boundaries_advisory=SCORE_BUCKETS,
        ),
    )
