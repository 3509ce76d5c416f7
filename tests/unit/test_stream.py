from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srllm_guard import Blocked, Guard, Moderation, Policy
from srllm_guard.engines.base import Scores, Window
from srllm_guard.middleware.stream import TextStream
from tests.byte_engine import ByteEngine, runtime
from tests.checks import check

MESSAGE = Policy().block_message
HARD: dict[str, Any] = {"ladder": ("block",)}
"""A policy under which what is unsafe is withheld at once."""


def guard(engine: ByteEngine | None = None, **policy: Any) -> Guard:
    return Guard(runtime(engine or ByteEngine()), policy=Policy(**policy))


def shown(made: Guard, *chunks: str) -> list[str]:
    """What each chunk lets out, and the end."""
    text = TextStream(made)
    return [*(text.feed(chunk) for chunk in chunks), text.close()]


async def alist(items: AsyncIterator[str]) -> list[str]:
    return [item async for item in items]


async def asynchronous(chunks: Iterable[str]) -> AsyncIterator[str]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


class Source(Iterator[str]):
    """Chunks, and whether they were closed."""

    def __init__(self, *chunks: str | Exception) -> None:
        self.left = [*chunks]
        self.closed = False

    def __next__(self) -> str:
        if not self.left:
            raise StopIteration
        if isinstance(chunk := self.left.pop(0), Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.closed = True


def test_a_safe_sentence_is_shown_when_the_next_one_has_begun() -> None:
    assert shown(guard(), "Hi ", "Ed.", " ", "How are", " you?") == [
        "", "", "", "Hi Ed.", "", " How are you?",
    ]  # fmt: skip


def test_an_unsafe_sentence_is_rewritten_before_it_is_shown() -> None:
    chunks = ["Hi Ed. You id", "iot Bob. Bye", " now. See you."]
    assert shown(guard(), *chunks) == [
        "Hi Ed.", "", " You person Bob. Bye now.", " See you.",
    ]  # fmt: skip


def test_only_what_can_be_left_out_waits_for_the_next_sentence() -> None:
    chunks = ["You idiot Bob. Bye", " now. See"]
    assert shown(guard(ladder=("rewrite", "mask")), *chunks)[0] == "You person Bob."
    assert shown(guard(), *chunks)[0] == ""
    assert shown(guard(), "You idiot Bob.\n")[0] == "You person Bob."


def test_a_sentence_that_says_nothing_else_is_left_out() -> None:
    made = guard(ByteEngine(fault="empty"))
    assert "".join(shown(made, *"Hi Ed. You are an idiot. See you. Bye.")) == (
        "Hi Ed. See you. Bye."
    )


def test_all_complete_sentences_of_a_chunk_are_judged_in_one_call() -> None:
    engine = ByteEngine()
    calls = []
    detect = engine.detect
    engine.detect = lambda windows: calls.append(len(windows)) or detect(windows)  # type: ignore[method-assign, func-returns-value]
    text = TextStream(guard(engine))
    text.feed("One is here. Two are here. Three are here. Four")
    assert calls == [1]
    text.feed(" are here")
    assert calls == [1]
    text.close()
    assert calls == [1, 1]


def test_the_work_is_linear_in_the_text() -> None:
    engine = ByteEngine()
    text = TextStream(guard(engine))
    for n in range(300):
        text.feed(f"This is sentence number {n} of a long text." + " \n"[n % 20 == 0])
    text.close()
    assert sum(len(window.ids) for window in engine.judged) < 300 * 1_100
    assert len(text._text) < 8_000
    assert len(text._passage._repair.draft.segments) < 60


def test_the_result_says_what_the_whole_text_was() -> None:
    heard: list[Moderation] = []
    made = Guard(runtime(), on_result=heard.append)
    text = TextStream(made)
    whole = "Hi Ed. You idiot Bob. What trash is that. Bye now."
    for sign in whole:
        text.feed(sign)
    assert text.result is None
    text.close()
    assert heard == [text.result]
    assert text.result == made.moderate(whole)


def test_a_block_leaves_what_was_verified_and_ends_the_stream() -> None:
    made = guard(**HARD)
    source = Source("Hi Ed.\n", "Nice day.\nYou id", "iot.\nMore", " of it.\n")
    assert list(made.stream(source)) == ["Hi Ed.", "\nNice day.", f"\n{MESSAGE}"]
    assert source.closed
    assert source.left == [" of it.\n"]


def test_a_block_can_raise() -> None:
    made = guard(on_block="raise", **HARD)
    found: list[str] = []
    with pytest.raises(Blocked) as caught:
        found.extend(made.stream(["Hi Ed.\nYou idiot.\nMore", " of it.\n"]))
    assert "".join(found).startswith("Hi Ed.")
    assert "idiot" not in "".join(found)
    assert caught.value.moderation.action == "block"
    text = TextStream(made)
    with pytest.raises(Blocked):
        text.feed("You idiot.\n")
    assert (text.feed("Hi."), text.flush(), text.close()) == ("", "", "")


def test_another_language_is_withheld_where_the_policy_says_so() -> None:
    foreign = "Das Wetter ist heute sehr schön, und wir gehen alle zusammen in den Park. " * 6
    parts = shown(guard(unverified="block"), *foreign.split(" "))
    assert "".join(parts) == MESSAGE
    assert "".join(shown(guard(), *foreign)) == foreign


def test_a_beginning_that_looks_foreign_waits_for_more() -> None:
    text = "Bonjour mes amis, comment allez-vous. "
    rest = "She said that to all of us, and then we went to the station together. " * 4
    found = shown(guard(), text + "She", rest[3:], "You idiot Bob. ")
    assert found[0] == ""
    assert "".join(found) == text + rest + "You person Bob. "


@pytest.mark.parametrize("within", ["detect", "generate"])
def test_a_failing_engine_withholds_from_there_on(within: str) -> None:
    engine = ByteEngine(fault="raise", within=within, only="idiot")
    made = guard(engine, ladder=("rewrite", "block"))
    found = shown(made, "Hi Ed.\n", "You idiot Bob.\n", "Nice day.\n")
    assert "".join(found) == f"Hi Ed.\n{MESSAGE}"


@pytest.mark.parametrize("within", ["detect", "generate"])
def test_a_policy_that_fails_open_lets_pass_what_could_not_be_judged(within: str) -> None:
    engine = ByteEngine(fault="raise", within=within, only="idiot")
    made = guard(engine, ladder=("rewrite", "block"), fail_open=True)
    text = TextStream(made)
    whole = "Hi Ed.\nYou idiot Bob.\nNice day.\n"
    assert "".join([*(text.feed(line) for line in whole.splitlines(True)), text.close()]) == whole
    assert text.result is not None
    assert text.result.action == "unverified"
    assert text.result.errors


def test_a_deadline_counts_for_each_piece() -> None:
    engine = ByteEngine(fault="hang", within="detect", only="idiot")
    made = guard(engine, deadline_ms=500)
    try:
        assert "".join(shown(made, "Hi Ed.\n", "You idiot.\n", "Bye.\n")) == f"Hi Ed.\n{MESSAGE}"
    finally:
        engine.release.set()


def test_an_error_of_the_producer_comes_after_what_was_verified() -> None:
    source = Source("Hi Ed. You idiot Bob. And", ValueError("producer"))
    found: list[str] = []
    with pytest.raises(ValueError, match="producer"):
        found.extend(guard().stream(source))
    assert "".join(found) == "Hi Ed. You person Bob. And"
    assert source.closed


WITHHELD = "You idiot there. But see that stupid man over there"
"""Under `STRICT`: a sentence that is made safe, and one that is not."""


def strict() -> Guard:
    """Rewrites one sentence of `WITHHELD`, and raises at the other."""
    engine = ByteEngine(fault="raise", within="generate", only="stupid")
    return guard(engine, ladder=("rewrite", "omit", "block"), on_block="raise")


def test_the_end_is_given_before_its_block_is_raised() -> None:
    text = TextStream(guard(on_block="raise", **HARD))
    assert text.feed("Fine day. You idiot") == "Fine day."
    assert text.close() == " "
    with pytest.raises(Blocked):
        text.close()
    assert text.close() == ""


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_block_at_the_end_goes_before_the_error_of_the_producer(way: str) -> None:
    found: list[str] = []

    async def producer() -> AsyncIterator[str]:
        yield WITHHELD
        raise ValueError("producer")

    async def arun() -> None:
        async for part in strict().astream(producer()):
            found.append(part)  # noqa: PERF401 - a comprehension would be lost with the error

    def run() -> None:
        found.extend(strict().stream(Source(WITHHELD, ValueError("producer"))))

    with pytest.raises(Blocked):
        run() if way == "sync" else asyncio.run(arun())
    assert "".join(found).strip() == "You person there."


class Container:
    """Not an iterator, but closed like one."""

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Iterator[str]:
        yield from ("Hi Ed. How", " are you. I")

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("limit", [None, 10_000])
def test_what_gives_iterators_is_closed_with_them(limit: float | None) -> None:
    source = Container()
    with closing(guard(max_holdback_ms=limit).stream(source)) as parts:  # type: ignore[type-var]
        assert next(parts) == "Hi Ed."
    assert source.closed


def test_a_thread_draws_only_where_something_can_be_due() -> None:
    def threads() -> Iterator[str]:
        yield threading.current_thread().name

    assert [*guard(max_holdback_ms=None).stream(threads())] == ["MainThread"]
    assert [*guard(mode="observe").stream(threads())] == ["MainThread"]
    assert [*guard().stream(threads())] == ["srllm-guard-stream"]


def test_closing_the_consumer_closes_the_producer() -> None:
    source = Source("Hi Ed. How", " are you. I", "am fine.")
    with closing(guard().stream(source)) as parts:  # type: ignore[type-var]
        assert next(parts) == "Hi Ed."
    assert source.closed
    assert source.left


def test_cancelling_the_consumer_cancels_the_producer() -> None:
    closed = []

    async def endless() -> AsyncIterator[str]:
        try:
            yield "Hi Ed. How"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def run() -> list[str]:
        found: list[str] = []
        first = asyncio.Event()

        async def consume() -> None:
            async for part in guard().astream(endless()):
                found.append(part)
                first.set()

        task = asyncio.create_task(consume())
        await first.wait()
        task.cancel()
        await asyncio.wait({task})
        async with aclosing(guard().astream(endless())) as parts:  # type: ignore[type-var]
            found.append(await anext(parts))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    assert asyncio.run(run()) == ["Hi Ed.", "Hi Ed."]
    assert closed == [True, True]


def test_what_is_held_for_too_long_is_judged_as_it_is() -> None:
    ready = threading.Event()

    def slow() -> Iterator[str]:
        yield "You idiot and then"
        ready.wait(10)
        yield " we left. Bye."

    found = []
    for part in guard(max_holdback_ms=30).stream(slow()):
        found.append(part)
        ready.set()
    assert found[0].strip() == "You person and"
    assert "".join(found) == "You person and then we left. Bye."


def test_the_time_of_judging_does_not_count() -> None:
    engine = ByteEngine()
    detect = engine.detect

    def slow(windows: Sequence[Window]) -> list[Scores]:
        time.sleep(0.1)
        return detect(windows)

    engine.detect = slow  # type: ignore[method-assign]
    made = guard(engine, max_holdback_ms=80)
    assert (
        "".join(made.stream(["Hi Ed. You are an", " idiot. Bye."]))
        == "Hi Ed. You are an person. Bye."
    )


def test_blanks_that_are_shown_are_no_part_of_an_edit() -> None:
    text = TextStream(guard(ByteEngine(fault="empty"), max_holdback_ms=10_000))
    found = text.feed("Fine day ") + text.flush()
    assert found == "Fine day "
    found += text.feed("Idiot idiot. Bye now.") + text.close()
    assert found == "Fine day Bye now."
    assert text.result is not None
    assert text.result.text == found
    check(text.result)


@pytest.mark.parametrize("mask", [False, True])
def test_what_failed_on_the_way_is_in_the_result(mask: bool) -> None:
    engine = ByteEngine(fault="raise", within="generate")
    made = guard(engine, ladder=("rewrite", "mask") if mask else ("rewrite",), on_fail="mask")
    text = TextStream(made)
    whole = "Hi Ed. You idiot Bob. Bye now."
    text.feed(whole)
    text.close()
    assert text.result is not None
    assert text.result.errors
    assert text.result == made.moderate(whole)


FOREIGN = "Das Wetter ist heute sehr schön, und wir gehen alle zusammen in den Park. " * 6
FIRST = "The Quux idiot told us that we should go to the station with all of our friends. "


def test_another_language_is_blocked_whatever_failed_before_it() -> None:
    engine = ByteEngine(fault="raise", within="detect", only="Quux")
    made = guard(engine, fail_open=True, on_fail="mask", unverified="block")
    text = TextStream(made)
    found = "".join(text.feed(part) for part in (FIRST + "\n", FOREIGN)) + text.close()
    assert found.startswith(FIRST)
    assert found.endswith(MESSAGE)
    assert text.result is not None
    assert text.result.action == "block"
    assert not text.result.safe
    assert text.result.after is not None
    assert not text.result.after.verified


def test_a_stream_that_ends_withheld_is_no_safer_for_what_went_before() -> None:
    text = TextStream(guard(**HARD))
    assert "".join(
        [text.feed(FOREIGN), text.feed("\nYou idiot, go away with all of your friends.")]
    )
    text.close()
    assert text.result is not None
    assert text.result.action == "block"
    assert not text.result.safe


def test_nothing_is_due_while_nothing_is_held() -> None:
    text = TextStream(guard(max_holdback_ms=1_000))
    assert text.due is None
    before = time.monotonic()
    text.feed("Hi")
    assert text.due is not None
    assert before + 1 <= text.due <= time.monotonic() + 1
    text.close()
    assert text.due is None
    endless = TextStream(guard(max_holdback_ms=None))
    endless.feed("Hi")
    assert endless.due is None


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_sentence_that_is_too_long_is_cut_at_the_same_place(size: int) -> None:
    text = "the day was long and " * 20 + "you idiot went home " * 5
    chunks = [text[n : n + size] for n in range(0, len(text), size)]
    made = guard(max_holdback_chars=100)
    stream = TextStream(made)
    held = 0
    found = ""
    for n, chunk in enumerate(chunks):
        found += stream.feed(chunk)
        held = max(held, len("".join(chunks[: n + 1])) - len(found))
    found += stream.close()
    assert found == text.replace("idiot", "person")
    assert held <= 101 + len("person") * 5 or size == 1_000
    assert stream.result is not None
    assert len(stream.result.edits) == 2


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_line_that_is_too_long_is_cut_where_quotations_are_kept(size: int) -> None:
    text = "the day was long and we went home at last " * 16
    made = guard(max_holdback_chars=50, max_holdback_ms=None, protect_quotations=True)
    stream = TextStream(made)
    held, found = 0, ""
    for n in range(0, len(text), size):
        found += stream.feed(text[n : n + size])
        held = max(held, len(text[: n + size]) - len(found))
    assert held <= 51
    assert found + stream.close() == text


@pytest.mark.parametrize("size", [65, 1_000])
def test_whole_lines_are_kept_together_where_they_fit(size: int) -> None:
    text = 'He said "you are an idiot. Go away" to me.\n' * 9
    made = guard(max_holdback_chars=60, protect_quotations=True)
    assert "".join(shown(made, *(text[n : n + size] for n in range(0, len(text), size)))) == text


def test_halves_of_a_character_are_put_together() -> None:
    assert "".join(shown(guard(), "Nice \ud83d", "\ude00 day. ", "Bye \ud83d")) == (
        "Nice 😀 day. Bye \ud83d"
    )


def test_chunks_that_cut_anything() -> None:
    made = guard()
    text = "Caf\u0065\u0301 owners are fine.\r\n\r\nYou idiot Bob.\r\nBye."
    assert "".join(shown(made, *text, "")) == made.rewrite(text)
    assert shown(made, "", "") == ["", "", ""]
    with pytest.raises(TypeError, match="expected str, got bytes"):
        TextStream(made).feed(b"Hi.")  # type: ignore[arg-type]


def test_observing_adds_no_delay_and_only_reports() -> None:
    heard: list[Moderation] = []
    done = threading.Event()

    def hear(result: Moderation) -> None:
        heard.append(result)
        done.set()

    made = Guard(runtime(), policy=Policy(mode="observe"), on_result=hear)
    chunks = ["You id", "iot. \ud83d", "\ude00"]
    assert list(made.stream(chunks)) == chunks
    assert done.wait(10)
    assert heard[0].before.unsafe
    assert len(heard) == 1


def test_quotations_are_kept_where_the_policy_says_so() -> None:
    text = 'He said "you are an idiot. Go away" to me. What an idiot he is.\nBye.'
    made = guard(protect_quotations=True)
    assert "".join(shown(made, *text)) == made.rewrite(text)


def test_an_open_code_block_is_judged_when_too_much_is_held() -> None:
    made = guard(max_holdback_chars=60)
    text = "```\n" + "call(1);\n" * 20 + "x = idiot\n```\nBye idiot Bob.\n"
    assert "".join(shown(made, *text)) == text.replace("idiot", "person")


def story(n: int) -> str:
    return f"Number {n} is here. You idiot {n} Bob. Goodbye to number {n}."


def test_streams_in_threads_know_nothing_of_each_other() -> None:
    made = guard()
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda n: "".join(made.stream(story(n))), range(64)))
    assert found == [story(n).replace("idiot", "person") for n in range(64)]


def test_async_streams_know_nothing_of_each_other() -> None:
    made = guard()

    async def run() -> list[str]:
        streams = [made.astream(asynchronous(re.findall(".{1,25}", story(n)))) for n in range(64)]
        return ["".join(parts) for parts in await asyncio.gather(*map(alist, streams))]

    assert asyncio.run(run()) == [story(n).replace("idiot", "person") for n in range(64)]


PARTS = [
    "Hello there", "I met Mr", " Smith", " etc", "You idiot ", "You are an idiot. ", "What trash! ",
    " lazy", "The", ". ", "! ", "? ", "...", "\n", "\n\n", "\r\n", "    f(1)\n", "```\n", "- ",
    "> ", "**", '"', "“", "”", "(", ")", "Bob: ", "Ann: hi\n", ":)", "😀", "。",
    "http://x.com/a.b ", "5", "e\u0301", "word " * 30, "You idiot owe me 555. ",
    "The weather here is fine today. " * 3,
]  # fmt: skip
PIECES = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)
POLICIES: list[dict[str, Any]] = [
    {},
    {"ladder": ("mask", "block")},
    {"ladder": (), "on_fail": "mask"},
    {"protect_quotations": True},
    {"unverified": "block"},
    {"threshold": 0.0},
]


@pytest.mark.parametrize("fault", [None, "empty"])
@given(text=PIECES, steps=st.lists(st.integers(1, 60), min_size=1, max_size=9), data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_stream_is_the_whole_text_however_it_is_cut(
    fault: str | None, text: str, steps: list[int], data: st.DataObject
) -> None:
    policy = data.draw(st.sampled_from(POLICIES))
    made = guard(ByteEngine(fault=fault), min_likelihood=-2, max_holdback_chars=100_000, **policy)
    whole = made.moderate(text)
    stream = TextStream(made)
    found, at = "", 0
    for n in range(len(text)):
        step = steps[n % len(steps)]
        found += stream.feed(text[at : at + step])
        at += step
    found += stream.close()
    assert stream.result is not None
    assert found == stream.result.text
    if whole.after is None and whole.action in ("block", "mask"):
        assert found.endswith(whole.text)
    elif not any("unverified_language" in edit.reasons for edit in whole.edits):
        found_before = stream.result.before
        if not whole.before.verified:
            # A beginning too short to tell the language of is judged, which the whole is not.
            assert not found_before.verified
            assert found_before.language == whole.before.language
            assert found_before.unsafe == whole.before.unsafe
            assert replace(stream.result, before=whole.before) == whole
        else:
            assert stream.result == whole
