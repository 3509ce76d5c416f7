"""`Guard.wrap`: every kind of callable, both directions, and nothing about the function lost."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from srllm_guard import Blocked, Guard, Moderation, Policy
from srllm_guard.errors import ConfigError, ShapeError
from tests.byte_engine import ByteEngine, runtime
from tests.checks import guard

UNSAFE, SAFE = "You are an idiot.", "You are an person."
NEVER = Policy(ladder=(), block_message="[withheld]")
RAISE = Policy(ladder=(), on_block="raise")


def test_what_a_function_returns_is_guarded_and_what_it_takes_is_not(byte_guard: Guard) -> None:
    taken = []

    @byte_guard.wrap
    def answer(question: str) -> str:
        taken.append(question)
        return UNSAFE

    assert answer("You stupid thing?") == SAFE
    assert taken == ["You stupid thing?"]


def test_inputs_are_guarded_where_that_is_said(byte_guard: Guard) -> None:
    echo: Callable[..., Any] = byte_guard.wrap(
        lambda *args, **kwargs: (args, kwargs), inputs=True, outputs=False
    )
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Never say idiot."},
        {"role": "assistant", "content": "No, idiot."},
        {"role": "user", "content": "You idiot.", "name": "idiot"},
        {"role": "tool", "content": [{"type": "text", "text": "stupid"}], "tool_call_id": "1"},
    ]
    args, kwargs = echo(messages, 3, question="An idiot?", limit=None)
    assert kwargs == {"question": "An person?", "limit": None}
    assert args[1] == 3
    assert args[0] == [
        *messages[:2],
        {"role": "user", "content": "You person.", "name": "idiot"},
        {"role": "tool", "content": [{"type": "text", "text": "person"}], "tool_call_id": "1"},
    ]
    assert args[0][0] is messages[0]
    assert messages[2]["content"] == "You idiot."  # a copy was changed


def test_a_keyword_does_not_hide_a_parameter_of_its_name(byte_guard: Guard) -> None:
    def ask(text: str, /, *more: str, **others: Any) -> Any:
        return text, more, others

    wrapped = byte_guard.wrap(ask, inputs=True, outputs=False)
    hidden = {"text": "fine", "more": "fine", "others": "An idiot."}
    assert wrapped("You idiot.", "An idiot.", **hidden) == (
        "You person.",
        ("An person.",),
        {"text": "fine", "more": "fine", "others": "An person."},
    )
    assert wrapped("Fine.", text="You idiot.") == ("Fine.", (), {"text": "You person."})
    assert wrapped("You idiot.", more="An idiot.") == ("You person.", (), {"more": "An person."})
    assert asyncio.run(_awaited(byte_guard, ask)) == ("You person.", (), {"text": "fine"})
    by_path = byte_guard.wrap(ask, inputs=True, outputs=False, input_text="text")
    assert by_path("You idiot.", more="An idiot.") == ("You person.", (), {"more": "An idiot."})
    with pytest.raises(ShapeError, match="'text' is called like a parameter"):
        by_path("You idiot.", text="fine")


async def _awaited(guard: Guard, function: Callable[..., Any]) -> Any:
    async def ask(text: str, /, **others: Any) -> Any:
        return function(text, **others)

    return await guard.wrap(ask, inputs=True, outputs=False)("You idiot.", text="fine")


def test_each_direction_may_have_its_own_policy(byte_guard: Guard) -> None:
    both: Callable[..., Any] = byte_guard.wrap(
        lambda text: text + " idiot", inputs=NEVER, outputs=Policy(mode="observe")
    )
    assert both("You idiot.") == "[withheld] idiot"
    assert both("Hello.") == "Hello. idiot"


def test_safe_values_are_the_very_same_objects(byte_guard: Guard) -> None:
    @dataclass
    class Answer:
        text: str
        more: list[Any]

    value = Answer("Fine.", [{"role": "user", "content": "Fine."}, 3, None])
    echo: Callable[..., Any] = byte_guard.wrap(lambda value: value, inputs=True)
    assert echo(value) is value
    assert echo(value=value) is value


def test_all_texts_of_a_call_are_one_batch() -> None:
    engine = ByteEngine()
    batches = []
    detect = engine.detect
    engine.detect = lambda windows: batches.append(len(windows)) or detect(windows)  # type: ignore
    wrapped: Callable[..., Any] = guard(engine).wrap(
        lambda: ["One fine day.", ("Two fine days.", "Three fine days.")]
    )
    wrapped()
    assert len(batches) == 1


def test_tool_calls_of_an_answer_are_guarded(byte_guard: Guard) -> None:
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "say", "arguments": '{"text": "You idiot, go"}'},
    }
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = byte_guard.wrap(lambda: message)()
    assert answer["tool_calls"][0]["function"]["arguments"] == '{"text": "You person, go"}'
    assert answer["tool_calls"][0]["id"] == "1"
    asked: Callable[..., Any] = byte_guard.wrap(
        lambda messages: messages, inputs=True, outputs=False
    )
    messages = [message]
    assert asked(messages) is messages


class TestBlocked:
    def test_the_message_takes_the_place_of_the_text(self, byte_guard: Guard) -> None:
        assert byte_guard.wrap(lambda: [UNSAFE, "Fine."], outputs=NEVER)() == [
            "[withheld]",
            "Fine.",
        ]
        seen: list[str] = []
        byte_guard.wrap(seen.append, inputs=NEVER)("You idiot.")
        assert seen == ["[withheld]"]

    def test_or_it_is_raised_and_the_function_is_not_called(self, byte_guard: Guard) -> None:
        seen: list[str] = []
        with pytest.raises(Blocked) as raised:
            byte_guard.wrap(seen.append, inputs=RAISE)("You idiot.")
        assert seen == []
        assert raised.value.moderation.original == "You idiot."
        assert "idiot" not in f"{raised.value} {raised.value!r}"
        with pytest.raises(Blocked):
            byte_guard.wrap(lambda: UNSAFE, outputs=RAISE)()

    def test_so_it_is_with_arguments_of_tool_calls(self, byte_guard: Guard) -> None:
        message: dict[str, Any] = {
            "role": "assistant",
            "tool_calls": [{"args": {"text": "You idiot, go"}}],
        }
        with pytest.raises(Blocked):
            byte_guard.wrap(lambda: message, outputs=RAISE)()
        done = byte_guard.wrap(lambda: message, outputs=NEVER)()
        assert done["tool_calls"][0]["args"] == {"text": "[withheld]"}


class TestAsync:
    def test_a_coroutine_function(self, byte_guard: Guard) -> None:
        @byte_guard.wrap(inputs=True)
        async def answer(question: str) -> str:
            return f"{question} {UNSAFE}"

        assert inspect.iscoroutinefunction(answer)
        assert asyncio.run(answer("An idiot?")) == f"An person? {SAFE}"

    def test_an_awaitable_of_a_plain_function(self, byte_guard: Guard) -> None:
        async def inner() -> str:
            return UNSAFE

        async def run() -> str:
            found: str = await byte_guard.wrap(lambda: inner())()
            return found

        assert asyncio.run(run()) == SAFE

    def test_the_event_loop_goes_on(self) -> None:
        engine = ByteEngine(fault="hang", within="detect")
        wrapped: Callable[..., Any] = guard(engine).wrap(lambda: asyncio.sleep(0, UNSAFE))

        async def run() -> str:
            task = asyncio.ensure_future(wrapped())
            await asyncio.sleep(0.02)
            engine.release.set()  # who could do that, were the loop blocked?
            found: str = await task
            return found

        assert asyncio.run(run()) == SAFE

    def test_context_variables_are_seen(self) -> None:
        user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
        seen = []
        hooked = Guard(runtime(), on_result=lambda _: seen.append(user.get()))

        @hooked.wrap
        async def answer() -> str:
            return user.get()

        async def run(name: str) -> str:
            user.set(name)
            return await answer()

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(run(f"user {n}") for n in range(9)))

        assert asyncio.run(all_of_them()) == [f"user {n}" for n in range(9)]
        assert sorted(seen) == [f"user {n}" for n in range(9)]


class TestMethods:
    def test_methods_of_all_kinds(self, byte_guard: Guard) -> None:
        class Bot:
            name = "stupid"

            @byte_guard.wrap(inputs=True)
            def ask(self, question: str) -> tuple[object, str]:
                return type(self), question

            @byte_guard.wrap
            @classmethod
            def of_class(cls) -> str:
                return f"{cls.__name__} idiot"

            @classmethod
            @byte_guard.wrap(inputs=True)
            def inside(cls, text: str) -> str:
                return f"{cls.__name__} {text}"

            @byte_guard.wrap
            @staticmethod
            def static() -> str:
                return UNSAFE

            @byte_guard.wrap
            async def later(self) -> str:
                return self.name

        class Child(Bot):
            pass

        assert Bot().ask("An idiot?") == (Bot, "An person?")
        assert Child.of_class() == "Child person"
        assert Child.inside("idiot") == "Child person"
        assert Bot.static() == Bot().static() == SAFE
        assert asyncio.run(Bot().later()) == "person"
        assert Bot.name == "stupid"
        assert byte_guard.wrap(Bot().ask, inputs=True)("idiot") == (Bot, "person")

    def test_a_method_may_return_its_class(self, byte_guard: Guard) -> None:
        assert byte_guard.wrap(lambda: int)() is int


class TestLooks:
    """A wrapped function looks like the function."""

    def test_signature_docstring_and_hints(self, byte_guard: Guard) -> None:
        def answer(question: str, *, limit: int = 3) -> list[str]:
            """Answer a question."""
            return [question] * limit

        answer.mark = "kept"  # type: ignore[attr-defined]
        wrapped = byte_guard.wrap(answer)
        assert inspect.signature(wrapped) == inspect.signature(answer)
        assert typing.get_type_hints(wrapped) == typing.get_type_hints(answer)
        for name in ("__name__", "__qualname__", "__doc__", "__module__", "mark"):
            assert getattr(wrapped, name) == getattr(answer, name)
        assert inspect.unwrap(wrapped) is answer

    def test_partials(self, byte_guard: Guard) -> None:
        def answer(prefix: str, question: str) -> str:
            """Answer."""
            return f"{prefix} {question}"

        part = functools.partial(answer, "You idiot.")
        wrapped: Any = byte_guard.wrap(part, inputs=True, outputs=False)
        assert wrapped("stupid") == "You idiot. person"  # only what the caller gave
        assert (wrapped.__name__, wrapped.__doc__) == ("answer", "Answer.")
        assert list(inspect.signature(wrapped).parameters) == ["question"]

        async def later() -> str:
            return UNSAFE

        assert inspect.iscoroutinefunction(byte_guard.wrap(functools.partial(later)))

    def test_objects_that_can_be_called(self, byte_guard: Guard) -> None:
        class Bot:
            """A bot."""

            def __init__(self) -> None:
                self.secret = "idiot"

            def __call__(self, question: str) -> str:
                return question

        class Later:
            async def __call__(self) -> str:
                return UNSAFE

        wrapped: Any = byte_guard.wrap(Bot(), inputs=True)
        assert wrapped("idiot") == "person"
        assert (wrapped.__name__, wrapped.__doc__) == ("Bot", "A bot.")
        assert list(inspect.signature(wrapped).parameters) == ["question"]
        assert not hasattr(wrapped, "secret")
        later = byte_guard.wrap(Later())
        assert inspect.iscoroutinefunction(later)
        assert asyncio.run(later()) == SAFE

    def test_builtins_tell_no_signature(self, byte_guard: Guard) -> None:
        assert byte_guard.wrap(max, inputs=True)("an idiot", "a fool") == "an person"

    @pytest.mark.parametrize(
        "kind",
        [
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
            inspect.isfunction,
        ],
    )
    def test_the_kind_stays(self, byte_guard: Guard, kind: Callable[[object], bool]) -> None:
        async def coroutine() -> None: ...

        def generator() -> Any:
            yield ""

        async def async_generator() -> Any:
            yield ""

        for function in (coroutine, generator, async_generator):
            assert kind(byte_guard.wrap(function)) is kind(function)


class TestSelectors:
    def test_paths_into_results(self, byte_guard: Guard) -> None:
        result: dict[str, Any] = {
            "answer": {"texts": ["idiot", "Fine."], "by": "idiot"},
            "id": "idiot",
        }
        wrapped: Callable[..., Any] = byte_guard.wrap(lambda: result, output_text="answer.texts[*]")
        assert wrapped() == {"answer": {"texts": ["person", "Fine."], "by": "idiot"}, "id": "idiot"}
        assert result["answer"]["texts"] == ["idiot", "Fine."]

    def test_paths_into_arguments(self, byte_guard: Guard) -> None:
        def ask(client: object, prompt: str, *more: str, **options: Any) -> Any:
            return client, prompt, more, options

        paths = ["prompt", "more[-1]", "options_text"]
        ask = byte_guard.wrap(ask, inputs=True, outputs=False, input_text=paths)
        found = ask("idiot", "idiot", "idiot", "idiot", options_text="idiot", seed="idiot")
        assert found[:3] == ("idiot", "person", ("idiot", "person"))
        assert found[3] == {"options_text": "person", "seed": "idiot"}

    def test_an_argument_that_was_not_given_needs_no_guard(self, byte_guard: Guard) -> None:
        def ask(prompt: str, system: str = "idiot") -> str:
            return prompt + system

        paths = ["prompt", "system"]
        wrapped = byte_guard.wrap(ask, inputs=True, outputs=False, input_text=paths)
        assert wrapped("You idiot, ") == "You person, idiot"
        assert wrapped("You ", system="idiot") == "You person"

    def test_functions(self, byte_guard: Guard) -> None:
        def put(value: dict[str, bytes], texts: typing.Sequence[str]) -> dict[str, bytes]:
            return value | {"raw": texts[0].encode()}

        wrapped: Callable[..., Any] = byte_guard.wrap(
            lambda raw: {"raw": raw, "id": 7}, output_text=(lambda v: [v["raw"].decode()], put)
        )
        assert wrapped(b"You idiot.") == {"raw": b"You person.", "id": 7}

    def test_functions_that_get_something_else(self, byte_guard: Guard) -> None:
        wrong: list[Callable[..., Any]] = [
            lambda value: "a text",
            lambda value: [value],
            lambda value: None,
        ]
        for get in wrong:
            wrapped: Callable[..., Any] = byte_guard.wrap(
                lambda: 3, output_text=(get, lambda value, texts: value)
            )
            with pytest.raises(ShapeError, match="has to give a list of str"):
                wrapped()

    def test_a_format(self, byte_guard: Guard) -> None:
        wrapped: Callable[..., Any] = byte_guard.wrap(
            lambda: '{"id": "idiot", "note": "You idiot!"}', format="json"
        )
        assert wrapped() == '{"id": "idiot", "note": "You person!"}'


class TestRefusals:
    @pytest.mark.parametrize(
        "value", [{"answer": "idiot"}, b"idiot", object(), {"idiot"}, {"role": "user", "parts": []}]
    )
    def test_a_value_in_which_no_text_is_known(self, byte_guard: Guard, value: Any) -> None:
        with pytest.raises(ShapeError, match=type(value).__name__) as refused:
            byte_guard.wrap(lambda: value)()
        assert isinstance(refused.value, TypeError)
        assert "output_text" in refused.value.hint
        assert "idiot" not in str(refused.value)
        called = []
        with pytest.raises(ShapeError, match=r"at \w+"):
            byte_guard.wrap(lambda text: called.append(text), inputs=True)(value)
        assert called == []

    @pytest.mark.parametrize("function", [None, "text", 3, str, Guard])
    def test_what_is_no_function(self, byte_guard: Guard, function: Any) -> None:
        with pytest.raises(TypeError, match="expected a function"):
            byte_guard.wrap(function, outputs=True) if function else byte_guard.wrap()(None)  # type: ignore[type-var]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"outputs": "yes"}, "outputs is a str"),
            ({"inputs": None}, "inputs is a NoneType"),
            ({"input_text": "text"}, "inputs is False"),
            ({"outputs": False, "output_text": "text"}, "outputs is False"),
            ({"output_text": "a..b"}, "at character 1"),
            ({"output_text": 3}, "A selector is a int"),
            ({"output_text": []}, "A selector is a list"),
            ({"output_text": (len,)}, "A selector is a tuple"),
            ({"inputs": True, "input_text": "prompt.text"}, "no parameter"),
            ({"inputs": True, "input_text": ["text", "[0]"]}, "no parameter"),
        ],
    )
    def test_options_that_make_no_sense(
        self, byte_guard: Guard, options: dict[str, Any], says: str
    ) -> None:
        def function(text: str) -> str:
            return text

        with pytest.raises(ConfigError, match=says) as refused:
            byte_guard.wrap(function, **options)
        assert refused.value.hint

    def test_nothing_to_guard_is_nothing_in_the_way(self, byte_guard: Guard) -> None:
        value = object()
        assert byte_guard.wrap(lambda: value, outputs=False)() is value


def test_the_audit_hook_hears_of_every_text_once() -> None:
    heard: list[Moderation] = []
    hooked = Guard(runtime(), on_result=heard.append)
    echo: Callable[..., Any] = hooked.wrap(lambda texts: texts, inputs=Policy(threshold=0.4))
    echo([UNSAFE, "Fine."])
    assert [result.original for result in heard] == [UNSAFE, "Fine.", SAFE, "Fine."]
    assert heard[0].provenance.policy_hash == Policy(threshold=0.4).hash
    assert heard[2].provenance.policy_hash == Policy().hash


def test_one_wrapped_function_serves_many_threads(byte_guard: Guard) -> None:
    from concurrent.futures import ThreadPoolExecutor

    echo = byte_guard.wrap(lambda text: f"{text} idiot", inputs=True)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(echo, [f"Number {n} is an idiot." for n in range(40)]))
    assert found == [f"Number {n} is an person. person" for n in range(40)]
