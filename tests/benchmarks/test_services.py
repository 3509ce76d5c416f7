"""The clients of outside judges, against a server on loopback that speaks as the services do."""

from __future__ import annotations

import gc
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.services import TRIES, OpenAIModeration, Perspective, ServiceError, services

SECRET = "you fool, with a text that no message may hold"


@dataclass
class Asked:
    """One request that arrived."""

    path: str
    headers: Message
    body: Any


@dataclass
class Service:
    """Keeps what it is asked; refuses first, then answers."""

    answer: Callable[[Any], Any]
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers of the first answers."""
    asked: list[Asked] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Any], Any]], Service]]:
    """Starts services that answer a decoded body with what a function makes of it."""
    monkeypatch.setenv("no_proxy", "*")
    running: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[Any], Any]) -> Service:
        service = Service(answer)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(service))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        service.url = f"http://127.0.0.1:{server.server_port}/v1/judge"
        return service

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
    gc.collect()


def handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            service.asked.append(Asked(self.path, self.headers, body))
            if service.refusals:
                status, headers = service.refusals.pop(0)
                content = {"error": f"cannot judge {SECRET}"}
            else:
                status, headers, content = 200, {}, service.answer(body)
            sent = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(sent))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            """Say nothing on standard error."""

    return Handler


def toxicity(body: Any) -> Any:
    """As Perspective answers: the text says its own score."""
    score = float(body["comment"]["text"].rsplit(maxsplit=1)[-1])
    return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": score}}}}


def flags(body: Any) -> Any:
    """As the moderation endpoint answers: what speaks of fools is flagged."""
    return {"results": [{"flagged": "fool" in text} for text in body["input"]]}


Serve = Callable[[Callable[[Any], Any]], Service]


def test_perspective_is_asked_as_its_reference_says(serve: Serve) -> None:
    service = serve(toxicity)
    judge = Perspective("some-key", service.url, pause=0)
    found = judge.unsafe(["lovely ♥ 0.1", "one half 0.5", "just below 0.4999", "awful 0.98"])
    assert found.dtype == bool
    assert found.tolist() == [False, True, False, True]
    first = service.asked[0]
    assert first.path == "/v1/judge"  # the key is in no URL
    assert first.headers["X-Goog-Api-Key"] == "some-key"
    assert first.headers["Content-Type"] == "application/json"
    assert first.body == {
        "comment": {"text": "lovely ♥ 0.1"},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": True,
    }
    assert len(service.asked) == 4


def test_moderation_is_asked_in_batches_and_keeps_the_order(serve: Serve) -> None:
    service = serve(flags)
    judge = OpenAIModeration("some-key", service.url)
    texts = [f"fool {n}" if n % 3 == 0 else f"friend {n}" for n in range(20)]
    found = judge.unsafe(texts)
    assert found.dtype == bool
    assert found.tolist() == [n % 3 == 0 for n in range(20)]
    assert [asked.body["input"] for asked in service.asked] == [texts[:16], texts[16:]]
    first = service.asked[0]
    assert first.body["model"] == "omni-moderation-latest"
    assert set(first.body) == {"model", "input"}
    assert first.headers["Authorization"] == "Bearer some-key"
    assert first.headers["Content-Type"] == "application/json"


def test_no_text_is_no_request(serve: Serve) -> None:
    service = serve(flags)
    for judge in (Perspective("k", service.url, pause=0), OpenAIModeration("k", service.url)):
        found = judge.unsafe([])
        assert found.shape == (0,)
        assert found.dtype == bool
    assert service.asked == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_service_is_asked_again(serve: Serve, status: int) -> None:
    service = serve(flags)
    service.refusals = [(status, {"Retry-After": "0"})] * 2
    judge = OpenAIModeration("k", service.url)
    assert judge.unsafe(["a fool", "a friend"]).tolist() == [True, False]
    assert len(service.asked) == 3
    assert service.asked[0].body == service.asked[2].body


def test_a_service_that_stays_busy_is_given_up(serve: Serve) -> None:
    service = serve(flags)
    service.refusals = [(429, {"Retry-After": "0"})] * TRIES
    with pytest.raises(ServiceError, match="answered 429") as caught:
        OpenAIModeration("k", service.url).unsafe([SECRET])
    assert SECRET not in str(caught.value)
    assert len(service.asked) == TRIES


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_has_the_status_and_neither_text_nor_key(serve: Serve, status: int) -> None:
    service = serve(toxicity)
    for judge in (
        Perspective("some-key", service.url, pause=0),
        OpenAIModeration("some-key", service.url),
    ):
        service.refusals, service.asked = [(status, {})], []
        with pytest.raises(ServiceError) as caught:
            judge.unsafe([SECRET])
        assert str(caught.value) == f"{service.url} answered {status}."
        assert caught.value.__suppress_context__
        assert len(service.asked) == 1  # it does not help to ask again


def test_a_service_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:  # bound and not listening: nobody answers, nobody else may
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(ServiceError, match="cannot be reached") as caught:
            Perspective("k", url, pause=0).unsafe([SECRET])
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value, OSError)  # what the command lines catch


def test_a_service_that_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with server.accept()[0] as connection:
                connection.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(ServiceError, match="cannot be reached"):
            Perspective("k", url, pause=0).unsafe([SECRET])
        thread.join()


def test_a_date_to_come_back_is_not_read(serve: Serve) -> None:
    service = serve(flags)
    service.refusals = [(503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})]
    assert OpenAIModeration("k", service.url).unsafe(["a fool"]).tolist() == [True]


def test_a_service_is_there_when_its_key_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detoxify", None)  # as where it is not installed
    assert services({}) == []
    assert services({"PERSPECTIVE_API_KEY": "", "OPENAI_API_KEY": ""}) == []
    both = services({"PERSPECTIVE_API_KEY": "p", "OPENAI_API_KEY": "o"})
    assert [judge.name for judge in both] == ["Perspective API", "OpenAI moderation"]
    assert [judge.name for judge in services({"OPENAI_API_KEY": "o"})] == ["OpenAI moderation"]
