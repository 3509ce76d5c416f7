"""An engine that fails: the outcome is the policy's, and the original does not leak."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from srllm_guard import Guard, Moderation, Policy
from srllm_guard.errors import DeadlineExceeded, EngineError
from tests.byte_engine import INSTEAD, SPOILED, WORDS, ByteEngine, runtime

TEXT = "Hello Ed. You are an idiot. What trash! See you on Monday."
MASKED = "Hello Ed. You are an [removed]. What [removed]! See you on Monday."
BLOCKED = Policy().block_message
WRONG = [(verb, fault) for verb in SPOILED for fault in ("raise", *SPOILED[verb])]


def guard(fault: str, within: str = "both", only: str | None = None, **policy: Any) -> Guard:
    engine = ByteEngine(fault=fault, within=within, only=only)
    policy = {"ladder": ("rewrite", "candidates", "mask", "block")} | policy
    if within == "score":
        policy["min_likelihood"] = -50.0
    return Guard(runtime(engine), policy=Policy(**policy))


def leaks(result: Moderation) -> bool:
    return any(word in result.text.lower() for word in WORDS)


@pytest.mark.parametrize("on_fail", ["block", "mask"])
@pytest.mark.parametrize(("within", "fault"), WRONG)
def test_fail_closed_releases_nothing_unsafe(within: str, fault: str, on_fail: str) -> None:
    result = guard(fault, within, on_fail=on_fail).moderate(TEXT)
    assert not leaks(result)
    assert result.safe
    if within == "detect":
        assert result.action == on_fail
        assert result.text == (BLOCKED if on_fail == "block" else "[removed]")
    else:  # what only detection is needed for goes on
        assert (result.action, result.text) == ("mask", MASKED)
    assert bool(result.errors) == (fault != "unfinished")
    for error in result.errors:
        assert error.startswith("EngineError: ")
    assert not any(word in json.dumps([result.errors, result.edits[0].reasons]) for word in WORDS)


@pytest.mark.parametrize("on_fail", ["block", "mask", "pass"])
@pytest.mark.parametrize(("within", "fault"), WRONG)
def test_fail_open_releases_the_original_on_an_error(within: str, fault: str, on_fail: str) -> None:
    result = guard(fault, within, on_fail=on_fail, fail_open=True).moderate(TEXT)
    if fault == "unfinished":  # no error, only no rewrite
        assert result.text == MASKED
        return
    assert (result.action, result.text) == ("unverified", TEXT)
    assert result.errors
    assert not result.safe


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("on_fail", ["block", "mask"])
@pytest.mark.parametrize("fault", list(INSTEAD))
def test_a_useless_rewrite_is_no_error(fault: str, on_fail: str, fail_open: bool) -> None:
    result = guard(fault, on_fail=on_fail, fail_open=fail_open).moderate(TEXT)
    assert result.action in ("rewrite", "mask", "block")
    assert not leaks(result)
    assert result.errors == ()
    assert result.safe


@pytest.mark.parametrize("fault", list(INSTEAD))
def test_without_a_mask_a_useless_rewrite_blocks(fault: str) -> None:
    result = guard(fault, ladder=("rewrite", "candidates")).moderate(TEXT)
    assert not leaks(result)
    if fault != "keep":  # barring makes an engine that keeps everything write something else
        assert (result.action, result.text) == ("block", BLOCKED)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_detect_raises_what_moderate_decides(fault: str) -> None:
    with pytest.raises(EngineError) as caught:
        guard(fault).detect(TEXT)
    assert "idiot" not in str(caught.value)
    assert caught.value.retryable
    assert guard(fault).rewrite(TEXT) == BLOCKED


def test_nothing_of_the_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        guard("raise").moderate(TEXT)
    assert "idiot" not in caplog.text


@pytest.mark.parametrize("within", ["detect", "generate"])
def test_one_text_does_not_cost_the_others_theirs(within: str) -> None:
    texts = ["You idiot Ed.", "All is well.", "You idiot Bob, trash!", "You stupid man."]
    failing = guard("raise", within, only="Bob")
    results = failing.moderate_many(texts)
    assert results == [failing.moderate(text) for text in texts]
    assert [result.action for result in results] == [
        "rewrite", "pass", "block" if within == "detect" else "mask", "rewrite",
    ]  # fmt: skip
    assert [bool(result.errors) for result in results] == [False, False, True, False]


def test_what_fails_only_at_the_last_look_is_not_released() -> None:
    # Two neighbours are verified each alone: only the whole text makes the engine fail.
    failing = guard("raise", "detect", only="person. What")
    texts = ["You idiot. What trash.", "You idiot."]
    results = failing.moderate_many(texts)
    assert [result.action for result in results] == ["block", "rewrite"]
    assert results == [failing.moderate(text) for text in texts]


def test_observing_releases_what_could_not_be_judged() -> None:
    result = guard("raise", mode="observe").moderate(TEXT)
    assert (result.action, result.text) == ("unverified", TEXT)
    assert result.errors


# -------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("within", ["detect", "generate"])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, BLOCKED),
        ({"on_fail": "mask"}, "[removed]"),
        ({"fail_open": True}, TEXT),
        ({"fail_open": True, "on_fail": "mask"}, TEXT),
    ],
)
def test_a_hanging_engine_is_given_up(within: str, policy: dict[str, Any], expected: str) -> None:
    hanging = guard("hang", within, deadline_ms=150, **policy)
    engine: Any = hanging.runtime.engine
    start = time.perf_counter()
    result = hanging.moderate(TEXT)
    took = time.perf_counter() - start
    assert 0.1 < took < 2
    assert result.text == expected
    assert result.errors[-1].startswith("DeadlineExceeded: ")
    with pytest.raises(DeadlineExceeded):  # the engine is still busy
        hanging.detect(TEXT)
    engine.fault = None
    engine.release.set()
    assert "person" in Guard(hanging.runtime).rewrite(TEXT)
    assert "person" in hanging.rewrite(TEXT)


def test_a_deadline_covers_the_whole_call() -> None:
    hanging = guard("hang", deadline_ms=150)
    start = time.perf_counter()
    results = hanging.moderate_many([TEXT] * 10)
    assert time.perf_counter() - start < 2
    assert {result.text for result in results} == {BLOCKED}
    hanging.runtime.engine.release.set()  # type: ignore[attr-defined]


CALLS = [{"args": {"text": TEXT}}, {"function": {"arguments": f'{{"text": "{TEXT}'}}]
"""Tool calls whose arguments are JSON, and text: they are two batches."""


@pytest.mark.parametrize(
    ("ask", "count"),
    [
        (lambda hanging: hanging.moderate_tool_calls(CALLS), 2),
        (
            lambda hanging: hanging.wrap(
                lambda: [TEXT, {"role": "assistant", "content": TEXT, "tool_calls": CALLS}]
            )(),
            4,
        ),
    ],
)
def test_a_deadline_covers_all_batches_of_a_call(ask: Callable[[Guard], Any], count: int) -> None:
    results: list[Moderation] = []
    hanging = guard("hang", deadline_ms=400)
    hanging = Guard(hanging.runtime, policy=hanging.policy, on_result=results.append)
    start = time.perf_counter()
    ask(hanging)
    took = time.perf_counter() - start
    hanging.runtime.engine.release.set()  # type: ignore[attr-defined]
    assert 0.3 < took < 0.75
    assert len(results) == count
    assert all(each.errors[0].startswith("DeadlineExceeded: ") for each in results)
    assert {each.provenance.policy_hash for each in results} == {hanging.policy.hash}


def test_each_call_has_a_deadline_of_its_own() -> None:
    patient = Guard(runtime(), policy=Policy(deadline_ms=1_000))
    for _ in range(3):
        (first, second) = patient.moderate_tool_calls(CALLS)
        assert (first.moderation.action, second.moderation.action) == ("rewrite", "rewrite")
        time.sleep(0.6)


def test_the_others_of_a_batch_keep_to_the_deadline_when_one_fails() -> None:
    engine = ByteEngine(fault="raise", within="detect")
    judge = engine.detect

    def slowly(windows: Any) -> Any:
        time.sleep(0.1)
        return judge(windows)

    engine.detect = slowly  # type: ignore[method-assign]
    start = time.perf_counter()
    results = Guard(runtime(engine), policy=Policy(deadline_ms=250)).moderate_many([TEXT] * 20)
    assert time.perf_counter() - start < 1
    assert results[-1].errors[0].startswith("DeadlineExceeded: ")


def test_a_deadline_that_is_met_changes_nothing() -> None:
    patient = Guard(runtime(), policy=Policy(deadline_ms=60_000))
    assert patient.rewrite(TEXT) == Guard(runtime()).rewrite(TEXT)


def test_an_abandoned_call_that_never_began_is_not_made() -> None:
    hanging = guard("hang", deadline_ms=100)
    engine: Any = hanging.runtime.engine
    hanging.moderate(TEXT)
    count = len(engine.judged)
    hanging.moderate(TEXT)  # waits for its turn in vain
    engine.release.set()
    deadline = time.monotonic() + 5
    while any(t.name == "srllm-guard-engine" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(engine.judged) == count


def test_the_loop_runs_on_while_an_engine_hangs() -> None:
    hanging = guard("hang", deadline_ms=300)

    async def both() -> tuple[Moderation, int]:
        task = asyncio.create_task(hanging.amoderate(TEXT))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return await task, ticks

    result, ticks = asyncio.run(both())
    hanging.runtime.engine.release.set()  # type: ignore[attr-defined]
    assert result.action == "block"
    assert ticks > 5
