"""The part of vLLM's `/v1/completions` that the remote engine needs, around an engine of ours."""

from __future__ import annotations

import threading
from typing import Any

from srllm_guard.engines.base import Asked, Engine, Request
from tests.middleware.server import Answer


def completions(engine: Engine, *, biased: bool = True, ids: str = "token_ids") -> Answer:
    """Answers requests by `engine`.

    Args:
        engine: decodes and scores; one request at a time.
        biased: whether it heeds `logit_bias`.
        ids: "token_ids", or "logprobs" as servers do that know no token ids.
    """
    turn = threading.Lock()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        with turn:
            return {"object": "text_completion", "choices": [_choice(engine, body, biased, ids)]}

    return answer


def _choice(engine: Engine, body: dict[str, Any], biased: bool, ids: str) -> dict[str, Any]:
    prompt = tuple(body["prompt"])
    if "prompt_logprobs" in body:
        (chances,) = engine.score([Asked(prompt[:1], prompt[1:])])
        places: list[Any] = [
            {str(index): {"logprob": float(chance), "rank": 1, "decoded_token": ""}}
            for index, chance in zip(prompt[1:], chances, strict=True)
        ]
        return {
            "index": 0,
            "text": "",
            "finish_reason": "length",
            "token_ids": [0],
            "prompt_logprobs": [None, *places],
        }
    bias = body.get("logit_bias") or {}
    request = Request(
        prompt=prompt,
        stop=frozenset(body["stop_token_ids"]),
        limit=body["max_tokens"],
        barred=tuple((int(index),) for index in bias if biased),
        temperature=body["temperature"],
        seed=body.get("seed", 0),
    )
    (found,) = engine.generate([request])
    said = [*found.ids, *(sorted(request.stop)[:1] if found.finished else [])]
    return {
        "index": 0,
        "text": "",
        "finish_reason": "stop" if found.finished else "length",
        "stop_reason": said[-1] if found.finished else None,
        "token_ids": said if ids == "token_ids" else None,
        "logprobs": {"tokens": [f"token_id:{index}" for index in said]},
    }
