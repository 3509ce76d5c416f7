"""SR-LLM on another machine: a server decodes and scores, detection and every check stay here.

The server is vLLM, or whatever else takes and returns token ids on `/v1/completions`, and serves
the base with the bundle's adapter, merged or as a LoRA module. Hidden states are not served, so
detection, a small part of the work, runs on an engine of this machine. What the server says is only
a proposal: it passes the same verification as ever, and what it was told not to say is looked for
here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from srllm_guard import runtime
from srllm_guard.engines.base import (
    Asked,
    Continuation,
    Engine,
    Floats,
    Ids,
    Request,
    Scores,
    Window,
    check_asked,
    check_request,
)
from srllm_guard.engines.completions import Completions
from srllm_guard.engines.pick import SHARE, next_barred
from srllm_guard.errors import EngineError, ModelError
from srllm_guard.forks import leave_in_children, renew_in_children

T = TypeVar("T")
R = TypeVar("R")

BARRED = -100.0
"""Bias of a logit that no token survives, the lowest that the API takes."""

DETOURS = 16
"""Most times that a continuation is led around what is barred."""

PLAIN: dict[str, Any] = {
    "add_special_tokens": False,
    "frequency_penalty": 0.0,
    "ignore_eos": True,
    "logprobs": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
    "top_k": -1,
}
"""What every request says, so that no default of a server changes what is decoded. Older servers
know `return_tokens_as_token_ids` alone."""

PROBE = "Everybody is welcome to share what they think about this."
"""What is scored here and there to see whether both run the same model."""

FAR = 0.5
"""Natural logarithm by which both may differ on a token of it, on average: half precision costs a
tenth of that, a server without the adapter many times as much."""


class RemoteEngine:
    """A local engine that lets a server decode and score.

    Args:
        local: detects.
        server: decodes and scores.

    Greedy continuations are those of an engine here; what is sampled is the server's own draw, the
    same for the same seed. It lives on in a forked child.
    """

    name = "remote"

    def __init__(self, local: Engine, server: Completions) -> None:
        self.device = f"{local.device}+{server.url}"
        # The server has to decode one token where all that it is asked for is to score.
        self.max_tokens = local.max_tokens - 1
        self.together = server.connections
        self._local = local
        self._server = server
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forget all threads: after a fork they are those of the parent."""
        self._pool = ThreadPoolExecutor(self._server.connections, "srllm-guard-remote")

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        return self._local.detect(windows)

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""
        return self._each(self._continue, requests)

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        check_asked(asked, self.max_tokens)
        return self._each(self._likelihoods, asked)

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        server = self._server
        return {
            "url": server.url,
            "model": server.model,
            "timeout_s": server.timeout_s,
            "retries": server.retries,
            "connections": server.connections,
            "detection": {"engine": self._local.name, **self._local.info()},
        }

    def close(self) -> None:
        """Let go of connections and threads; the engine cannot be used any more."""
        leave_in_children(self)
        self._pool.shutdown(cancel_futures=True)
        self._server.close()

    def _each(self, ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Ask about all at once, each once: the server batches what comes together."""
        fresh = list(dict.fromkeys(items))
        found = dict(zip(fresh, self._pool.map(ask, fresh), strict=True))
        return [found[item] for item in items]

    def _continue(self, request: Request) -> Continuation:
        limit = check_request(request, self.max_tokens)
        ids: Ids = ()
        alone = [sequence[0] for sequence in request.barred if len(sequence) == 1]
        for _ in range(DETOURS):
            more, finished = self._decode(request, ids, limit - len(ids), alone)
            at = _first_barred(request.barred, ids, more)
            if at is None:
                return Continuation((*ids, *more), finished)
            # A server bars no sequences of ids. It is asked for one other token at that place.
            ids = (*ids, *more)[:at]
            barred = next_barred(request.barred, ids)
            more, finished = self._decode(request, ids, 1, barred)
            if finished:
                return Continuation(ids, finished=True)
            if more[0] in barred:
                break
            ids += more
            if len(ids) == limit:
                break
        return Continuation(ids, finished=False)

    def _decode(
        self, request: Request, ids: Ids, limit: int, barred: Sequence[int]
    ) -> tuple[Ids, bool]:
        """Up to `limit` ids that follow, and whether a stop id ended them."""
        draws = request.temperature > 0
        body = {
            **PLAIN,
            "prompt": [*request.prompt, *ids],
            "max_tokens": limit,
            "stop_token_ids": sorted(request.stop),
            "temperature": request.temperature,
            "top_p": SHARE if draws else 1.0,
        }
        if draws:
            body["seed"] = request.seed
        if barred:
            body["logit_bias"] = {str(index): BARRED for index in barred}
        choice = self._server.ask(body)
        found, reason = _ids(choice), choice.get("finish_reason")
        stop = next((n for n, index in enumerate(found) if index in request.stop), None)
        if stop is not None:
            return found[:stop], True
        ended = reason == "stop" or (reason == "length" and found)
        if not ended or len(found) > limit:
            raise EngineError(
                f"The server gave {len(found)} ids without an end; 1 to {limit} were asked for."
            )
        return found, reason == "stop"

    def _likelihoods(self, asked: Asked) -> Floats:
        prompt = (*asked.prompt, *asked.ids)
        choice = self._server.ask(
            {
                **PLAIN,
                "prompt": list(prompt),
                "max_tokens": 1,
                "prompt_logprobs": 0,
                "temperature": 0.0,
            }
        )
        given = choice.get("prompt_logprobs")
        if not isinstance(given, list) or len(given) != len(prompt):
            raise EngineError(
                "The server gave no likelihoods of the prompt.",
                hint="It has to know `prompt_logprobs`, as vLLM does.",
                retryable=False,
            )
        start = len(asked.prompt)
        pairs = zip(given[start:], asked.ids, strict=True)
        return np.array([_chance(place, index) for place, index in pairs], np.float32)


def load(
    url: str,
    *,
    served: str,
    api_key: str | None = None,
    timeout_s: float = 30.0,
    retries: int = 2,
    connections: int = 32,
    check: bool = True,
    model: str | os.PathLike[str] | None = None,
    **local: Any,
) -> runtime.Runtime:
    """Load a bundle for detection here and rewriting on a server: `Guard(remote.load(...))`.

    Args:
        url: of the server, such as `http://gpu-1:8000/v1`.
        served: name that the server knows the model by, with the bundle's adapter in it.
        api_key: sent as a bearer token; None takes it from `SRLLM_GUARD_API_KEY`, if that is set.
        timeout_s: seconds an attempt may take.
        retries: attempts after the first, with growing waits; after a timeout, a lost connection,
            and the statuses that say that the server is busy or broken.
        connections: most requests at a time.
        check: whether a sentence is scored here and there at once, to see that both run the same
            model.
        model: of the bundle, as of `Guard`.
        **local: options of `runtime.load` for the engine here.

    Raises:
        ConfigError: an option that makes no sense.
        EngineError: the server does not answer.
        MissingExtra: httpx or a package of the engine here is not installed.
        ModelError: the server runs another model, or the bundle's files are missing or corrupt.
    """
    with ExitStack() as opened:  # closed again where what follows fails
        server = Completions(
            url,
            served,
            api_key=api_key,
            timeout_s=timeout_s,
            retries=retries,
            connections=connections,
        )
        opened.enter_context(closing(server))
        here = runtime.load(model, **local)
        engine = RemoteEngine(here.engine, server)
        opened.enter_context(closing(engine))
        if check:
            _same_model(here, engine)
        opened.pop_all()
    return replace(here, engine=engine)


def _same_model(here: runtime.Runtime, engine: RemoteEngine) -> None:
    asked = [Asked(here.prompt.rewrite(PROBE, [(0, 9)]), here.prompt.target(PROBE))]
    (mine,), (theirs,) = here.engine.score(asked), engine.score(asked)
    distance = float(np.abs(mine - theirs).mean())
    if not distance < FAR:
        raise ModelError(
            f"The server's model is not the bundle's: likelihoods of a token differ by "
            f"{distance:.1f} on average.",
            hint="Serve the base with the bundle's adapter, merged or as a LoRA module, and give "
            "that name as `served`.",
        )


def _ids(choice: dict[str, Any]) -> Ids:
    """The ids of a completion."""
    found = choice.get("token_ids")
    if found is None:
        logprobs = choice.get("logprobs")
        tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
        found = [_id(token) for token in tokens] if isinstance(tokens, list) else None
    if not isinstance(found, list) or not all(type(each) is int and each >= 0 for each in found):
        raise EngineError(
            "The server gave no token ids.",
            hint="It has to know `return_token_ids` or `return_tokens_as_token_ids`, as vLLM does.",
            retryable=False,
        )
    return tuple(found)


def _id(token: object) -> int | None:
    text = str(token).removeprefix("token_id:")
    return int(text) if text.isdecimal() and text != token else None


def _chance(place: object, index: int) -> float:
    """The logarithm that the server gives one token of the prompt."""
    entry = place.get(str(index)) if isinstance(place, dict) else None
    value = entry.get("logprob") if isinstance(entry, dict) else entry
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise EngineError("The server gave likelihoods of other tokens than it was asked for.")
    return float(value)


def _first_barred(barred: Sequence[Ids], ids: Ids, more: Ids) -> int | None:
    """The place among both at which an id of `more` completes a barred sequence."""
    tail = ids
    for index in more:
        if index in next_barred(barred, tail):
            return len(tail)
        tail += (index,)
    return None
