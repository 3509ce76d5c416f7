"""What OpenTelemetry hears of the guard, and that it hears no text."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from srllm_guard import Guard, Policy, telemetry
from srllm_guard.errors import EngineError
from tests.byte_engine import ByteEngine, runtime
from tests.checks import guard

UNSAFE, SAFE = "You are an idiot, Ms Okafor.", "The Okafor file is fine."

Spans = Callable[[], list[ReadableSpan]]
Points = Callable[[str], list[Any]]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    telemetry._instruments.cache_clear()
    yield exporter
    telemetry._instruments.cache_clear()
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    return lambda: list(exporter.get_finished_spans())


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter) -> Iterator[Points]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)

    def read(name: str) -> list[Any]:
        data = reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return [point for each in found if each.name == name for point in each.data.data_points]

    yield read
    provider.shutdown()


def test_a_span_says_what_was_done(spans: Spans) -> None:
    guarded = guard(threshold=0.4)
    guarded.moderate_many([UNSAFE, SAFE, SAFE])
    (span,) = spans()
    told = dict(span.attributes or {})
    assert span.name == "srllm_guard.moderate"
    assert told["srllm_guard.texts"] == 3
    assert told["srllm_guard.unsafe"] == 1
    assert told["srllm_guard.action.pass"] == 2
    assert told["srllm_guard.action.rewrite"] == 1
    assert told["srllm_guard.score"] == 0.982
    assert told["srllm_guard.edits"] == 1
    assert told["srllm_guard.errors"] == 0
    assert told["srllm_guard.engine"] == "bytes"
    assert told["srllm_guard.bundle_hash"] == "0" * 64
    assert told["srllm_guard.policy_hash"] == Policy(threshold=0.4).hash
    latency = told["srllm_guard.latency_ms"]
    assert isinstance(latency, float)
    assert 0 < told["srllm_guard.detect_ms"] <= latency  # type: ignore[operator]


@pytest.mark.parametrize("verb", ["detect", "moderate", "rewrite"])
def test_each_verb_has_one_span_below_the_current_one(spans: Spans, verb: str) -> None:
    with trace.get_tracer("app").start_as_current_span("request") as request:
        getattr(guard(), verb)(UNSAFE)
    mine, _ = spans()
    assert mine.name == f"srllm_guard.{'detect' if verb == 'detect' else 'moderate'}"
    assert mine.parent is not None
    assert mine.parent.span_id == request.get_span_context().span_id


def test_nothing_to_do_is_no_span(spans: Spans) -> None:
    guarded = guard()
    guarded.moderate_many([])
    guarded.detect_many([])
    guarded.moderate_tool_calls([{"args": {"text": UNSAFE}}])
    assert [span.name for span in spans()] == ["srllm_guard.moderate"]


def test_a_stream_is_a_span_when_it_has_ended(spans: Spans, points: Points) -> None:
    list(guard().stream([UNSAFE[:5], UNSAFE[5:]]))
    named = {span.name for span in spans()}
    assert named <= {"srllm_guard.stream", "srllm_guard.moderate"}
    assert sum(point.value for point in points("srllm_guard.texts")) == 1


def test_metrics_count_texts_by_what_was_done(points: Points) -> None:
    guarded = guard()
    guarded.moderate_many([UNSAFE, SAFE, SAFE])
    guarded.detect(UNSAFE)
    counted = {
        (point.attributes["srllm_guard.verb"], point.attributes.get("srllm_guard.action")): (
            point.value
        )
        for point in points("srllm_guard.texts")
    }
    assert counted == {
        ("moderate", "rewrite"): 1,
        ("moderate", "pass"): 2,
        ("detect", None): 1,
    }
    latencies = points("srllm_guard.latency")
    assert {point.attributes["srllm_guard.verb"]: point.count for point in latencies} == {
        "moderate": 1,
        "detect": 1,
    }
    scores = points("srllm_guard.score")
    assert sum(point.count for point in scores) == 4
    assert all(point.explicit_bounds == telemetry.SCORE_BUCKETS for point in scores)


def test_no_text_is_told(spans: Spans, exporter: InMemorySpanExporter, points: Points) -> None:
    guarded = guard()
    call = {"id": "1", "name": "say", "args": {"text": UNSAFE}}
    guarded.detect(UNSAFE)
    guarded.moderate_many([UNSAFE, SAFE])
    guarded.moderate_tool_calls([call])
    guarded.wrap(lambda text: text, inputs=True)(UNSAFE)
    list(guarded.stream([UNSAFE]))
    with pytest.raises(EngineError):
        guard(ByteEngine(fault="raise")).detect(UNSAFE)
    with pytest.raises(ValueError, match="idiot"):
        Guard(runtime(), on_result=_quote).moderate(UNSAFE)
    told = "".join(span.to_json() for span in spans()) + json.dumps(
        [dict(point.attributes) for point in points("srllm_guard.texts")]
    )
    for word in ("idiot", "Okafor", "person", "file is"):
        assert word not in told


def _quote(result: Any) -> None:
    raise ValueError(result.original)


def test_an_error_is_told_by_its_type(spans: Spans, points: Points) -> None:
    with pytest.raises(EngineError):
        guard(ByteEngine(fault="raise")).detect(UNSAFE)
    (span,) = spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "EngineError"
    assert span.events == ()
    assert points("srllm_guard.latency")[0].attributes["error.type"] == "EngineError"


def test_equal_texts_have_equal_hashes_that_cannot_be_guessed(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = guard()
    guarded.moderate_many([UNSAFE, SAFE, UNSAFE, "\ud800"])
    monkeypatch.setattr(telemetry._KEY, "value", b"of another process")
    guarded.moderate_many([UNSAFE])
    first, second = ((span.attributes or {})["srllm_guard.text_hashes"] for span in spans())
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert first[0] == first[2]
    assert len({*first, *second}) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_draws_a_key_of_its_own() -> None:
    mine = telemetry._hashes([UNSAFE])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, telemetry._hashes([UNSAFE])[0].encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(theirs) == len(mine[0])
    assert [theirs] != mine
    assert telemetry._hashes([UNSAFE]) == mine


def test_hashes_of_a_large_batch_are_bounded(spans: Spans) -> None:
    guard().moderate_many([f"Number {n} is fine." for n in range(50)])
    told = spans()[0].attributes or {}
    assert told["srllm_guard.texts"] == 50
    assert len(told["srllm_guard.text_hashes"]) == telemetry.MOST_HASHES  # type: ignore[arg-type]


def test_without_the_package_nothing_is_told_and_all_works(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    telemetry._instruments.cache_clear()
    try:
        assert guard().moderate(UNSAFE).action == "rewrite"
        assert guard().detect(UNSAFE).unsafe
        assert telemetry._instruments() is None
    finally:
        telemetry._instruments.cache_clear()
