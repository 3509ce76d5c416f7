"""The verbs of `Guard` that put it around other people's calls; each imports what it needs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from srllm_guard.policy import Policy

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable

    from srllm_guard.guard import Guard
    from srllm_guard.middleware.langchain import GuardedChatModel, GuardRunnable
    from srllm_guard.middleware.selectors import Selector
    from srllm_guard.structure.formats import Format

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C")

Direction = bool | Policy
"""Whether one direction of a call is guarded; a policy guards it by that policy."""


def directed(guard: Guard, direction: Direction) -> Guard | None:
    """The guard of one direction; None where it is not guarded."""
    if isinstance(direction, Policy):
        return guard.with_policy(direction)
    return guard if direction else None


class MiddlewareVerbs:
    """What `Guard` inherits: the guard around functions, streams, chat models and clients.

    Wherever a text is withheld here, the policy's `on_block` says whether its message stands in the
    place of the text or `Blocked` is raised.
    """

    def stream(self, chunks: Iterable[str]) -> Iterator[str]:
        """Yield the text of a stream, of which every character has passed the guard.

        A sentence is held until it is complete and verified. What comes out, joined, is what
        `rewrite` makes of the whole text, however it was cut into chunks, but for what can only be
        known at its end: a text that cannot be made safe is withheld from the sentence on that
        shows it.

        Args:
            chunks: text in pieces; closed when the consumer stops early.

        Raises:
            TypeError: a chunk is not a string.
            Blocked: a text was withheld, and the policy says `on_block="raise"`.
        """
        from srllm_guard.middleware.stream import stream

        return stream(cast("Guard", self), chunks)

    def astream(self, chunks: AsyncIterable[str]) -> AsyncIterator[str]:
        """`stream` of an async iterator, without blocking the event loop."""
        from srllm_guard.middleware.stream import astream

        return astream(cast("Guard", self), chunks)

    @overload
    def wrap(
        self,
        function: F,
        /,
        *,
        inputs: Direction = ...,
        outputs: Direction = ...,
        input_text: Selector | None = ...,
        output_text: Selector | None = ...,
        format: Format = ...,
    ) -> F: ...

    @overload
    def wrap(
        self,
        function: None = None,
        /,
        *,
        inputs: Direction = ...,
        outputs: Direction = ...,
        input_text: Selector | None = ...,
        output_text: Selector | None = ...,
        format: Format = ...,
    ) -> Callable[[F], F]: ...

    def wrap(
        self,
        function: F | None = None,
        /,
        *,
        inputs: Direction = False,
        outputs: Direction = True,
        input_text: Selector | None = None,
        output_text: Selector | None = None,
        format: Format = "text",
    ) -> F | Callable[[F], F]:
        """Guard what a function takes or returns; also as a decorator, with or without arguments.

        The texts of a direction are moderated within one deadline; all else goes by untouched, and
        so does the very same object where nothing had to change. Strings are known, chat messages,
        content blocks, completions, responses and their streams as OpenAI, Anthropic and LangChain
        have them (dicts or objects; in a stream, dicts or the objects of their packages), and
        lists, tuples, dataclasses, pydantic models and named tuples of all these. Anything else is
        refused unless a selector says where its text is.

        Args:
            function: a function, method, partial or callable object, sync or async, or a generator
                of either kind, whose pieces are guarded as `stream` does it: they are held until
                they are verified, so what is sent into such a generator does not reach it.
            inputs: whether the text in its arguments is moderated before it is called; a policy
                moderates it by that policy. Of chat messages only those of users and tools are: the
                application wrote the instructions, and answers were moderated when they were given.
            outputs: likewise the text that it returns or yields.
            input_text: where the text is in the arguments: a path that begins with the name of a
                parameter ("messages[*].content"), several paths, or a pair of functions: one takes
                a dict of the arguments and gives a list of texts, the other takes the dict and as
                many texts and gives a dict with these.
            output_text: likewise, in what is returned, or in each item of a stream.
            format: what returned texts are written in, see `moderate`; streams are plain text.

        Returns:
            A function of the same kind with the same signature, docstring and type hints. Where a
            text is withheld and the policy puts a message in its place, the message is what the
            function takes; with `on_block="raise"` it is not called.

        Raises:
            TypeError: not callable.
            ConfigError: a direction or selector that makes no sense. When the function is called,
                ShapeError: where the text is in a value is not known; FormatError: a text that it
                returns is not in this format; and Blocked.
        """
        from srllm_guard.middleware.wrap import wrap

        def guarded(function: F) -> F:
            return wrap(
                cast("Guard", self),
                function,
                inputs=inputs,
                outputs=outputs,
                input_text=input_text,
                output_text=output_text,
                format=format,
            )

        return guarded if function is None else guarded(function)

    def as_runnable(self, *, key: str | None = None) -> GuardRunnable:
        """The guard as a LangChain runnable: `prompt | llm | guard.as_runnable()`.

        Args:
            key: of the text, where the input is a dict.

        Raises:
            MissingExtra: langchain-core is not installed.
        """
        from srllm_guard.middleware.langchain import GuardRunnable

        return GuardRunnable(guard=cast("Guard", self), key=key)

    @overload
    def guard_model(
        self, model: BaseChatModel, *, inputs: Direction = ..., outputs: Direction = ...
    ) -> GuardedChatModel: ...

    @overload
    def guard_model(
        self, model: Runnable[Any, Any], *, inputs: Direction = ..., outputs: Direction = ...
    ) -> Runnable[Any, Any]: ...

    def guard_model(
        self, model: Runnable[Any, Any], *, inputs: Direction = True, outputs: Direction = True
    ) -> Runnable[Any, Any]:
        """A LangChain chat model whose messages are guarded, itself a chat model.

        Args:
            model: a chat model, or a runnable with one in it, such as `bind_tools` returns.
            inputs: whether what users and tools say is moderated before the model sees it.
            outputs: whether what it answers is moderated, streams and tool calls included.

        Raises:
            TypeError: neither.
            MissingExtra: langchain-core is not installed.
        """
        from srllm_guard.middleware.langchain import guard_model

        return guard_model(cast("Guard", self), model, inputs=inputs, outputs=outputs)

    def openai(self, client: C, *, inputs: Direction = False, outputs: Direction = True) -> C:
        """An `OpenAI` or `AsyncOpenAI` client whose chats and responses are guarded.

        Args:
            client: any client of the openai package; it is not changed.
            inputs: whether what is sent is moderated.
            outputs: whether what comes back is moderated, streams included.

        Raises:
            TypeError: not a client of the openai package.
            MissingExtra: openai is not installed.
        """
        from srllm_guard.middleware.openai.client import guarded

        return guarded(cast("Guard", self), client, inputs=inputs, outputs=outputs)
