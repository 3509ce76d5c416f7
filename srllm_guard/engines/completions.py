"""The client of one server that continues token ids: `/v1/completions` as vLLM speaks it.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#completions-api
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from srllm_guard.errors import ConfigError, EngineError, MissingExtra
from srllm_guard.forks import leave_in_children, renew_in_children

try:
    import httpx
except ImportError as error:
    raise MissingExtra(extra="remote", needed_for="an engine on another machine") from error

API_KEY = "SRLLM_GUARD_API_KEY"
"""Environment variable that holds the key where none is given."""

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
"""Seconds between attempts: they double, and some of it is drawn so that callers do not march in
step."""

CONNECT_S = 5.0


class Completions:
    """Asks one server for completions, again where that may help.

    Safe to share between threads; a forked child has connections of its own.

    Args:
        url: of the server, such as `http://gpu-1:8000/v1`.
        model: name that the server knows the model by.
        api_key: sent as a bearer token; None takes it from `SRLLM_GUARD_API_KEY`, if that is set.
        timeout_s: seconds an attempt may take.
        retries: attempts after the first.
        connections: most requests at a time.

    Raises:
        ConfigError: an option that makes no sense.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        connections: int = 32,
    ) -> None:
        self.url = _checked(url)
        self.model = model
        self.timeout_s, self.retries, self.connections = timeout_s, retries, connections
        if not timeout_s > 0 or retries < 0 or connections < 1:
            raise ConfigError(
                f"timeout_s is {timeout_s}, retries {retries}, connections {connections}.",
                hint="Allowed: above 0; 0 or more; 1 or more.",
            )
        key = os.environ.get(API_KEY) if api_key is None else api_key
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._certificates = httpx.create_ssl_context()
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forget all connections: after a fork they are those of the parent."""
        most = self.connections
        self._client = httpx.Client(
            headers=self._headers,
            verify=self._certificates,
            timeout=httpx.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s)),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
        )

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The one choice that the server answers a request with.

        Args:
            body: fields of the request; the model is added.

        Raises:
            EngineError: it did not answer, refused, or answered what is no completion. The message
                holds nothing of what was asked or answered.
        """
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                reply = self._client.post(
                    f"{self.url}/completions", json={"model": self.model, **body}
                )
            except httpx.RequestError as error:
                if last:
                    raise self._failed(f"failed with {type(error).__name__}") from error
                time.sleep(_wait(attempt))
                continue
            if reply.status_code in TRANSIENT and not last:
                time.sleep(_wait(attempt, reply.headers.get("retry-after")))
                continue
            return self._choice(reply)
        raise AssertionError  # the last attempt has returned or raised

    def close(self) -> None:
        """Let go of all connections; nothing can be asked any more."""
        leave_in_children(self)
        self._client.close()

    def _choice(self, reply: httpx.Response) -> dict[str, Any]:
        if reply.status_code != 200:
            raise self._failed(
                f"answered with status {reply.status_code}",
                hint="Look at its log; check url, model and api_key.",
                retryable=reply.status_code in TRANSIENT,
            )
        try:
            choices = reply.json()["choices"]
            choice = choices[0] if len(choices) == 1 else None
        except (ValueError, TypeError, LookupError):
            choice = None
        if not isinstance(choice, dict):
            # Not within `except`: what cannot be parsed is part of a parser's error.
            raise self._failed("answered what is no completion")
        return choice

    def _failed(
        self, what: str, *, hint: str = "Is it running?", retryable: bool = True
    ) -> EngineError:
        return EngineError(f"The server at {self.url} {what}.", hint=hint, retryable=retryable)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except (TypeError, httpx.InvalidURL):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        # The value is not shown: it may hold a password.
        raise ConfigError(
            "The url of the server is none of the form http://host:8000/v1.",
            hint="Give the key of the server as api_key.",
        )
    return str(parsed).rstrip("/")


def _wait(attempt: int, asked_for: str | None = None) -> float:
    """Seconds until the next attempt; the server may ask for more."""
    wait: float = FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25)  # noqa: S311
    with suppress(ValueError):  # a date
        wait = max(wait, float(asked_for or 0))
    return min(wait, LONGEST_WAIT_S)
