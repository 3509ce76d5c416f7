"""The remote engine against a server on loopback that runs the same model: equal to it, or loud."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
torch = pytest.importorskip("torch")

from srllm_guard import Guard  # noqa: E402
from srllm_guard.engines.base import Asked, Request, Window  # noqa: E402
from srllm_guard.engines.completions import Completions  # noqa: E402
from srllm_guard.engines.remote import RemoteEngine, load  # noqa: E402
from srllm_guard.engines.torch import TorchEngine  # noqa: E402
from srllm_guard.errors import ConfigError, EngineError, ModelError  # noqa: E402
from srllm_guard.prompt import Prompt  # noqa: E402
from tests.byte_engine import ByteEngine, runtime  # noqa: E402
from tests.contract.conftest import Tiny, drafted  # noqa: E402
from tests.middleware.server import Fault, Server, serving  # noqa: E402
from tests.middleware.vllm import completions  # noqa: E402

SOURCES = ["an idiot of a man", "two lazy people", "trash like them and him"]


@pytest.fixture(scope="module")
def local(tiny: Tiny) -> TorchEngine:
    return TorchEngine(tiny.bundle, tiny.base, "cpu")


@pytest.fixture(scope="module")
def server(local: TorchEngine) -> Iterator[Server]:
    with serving(completions=completions(local)) as found:
        yield found


def engine(
    local: Any, server: Server, *, retries: int = 0, timeout_s: float = 20.0
) -> RemoteEngine:
    return RemoteEngine(
        local, Completions(server.url, "sr-llm", retries=retries, timeout_s=timeout_s)
    )


@pytest.fixture
def remote(local: TorchEngine, server: Server) -> Iterator[RemoteEngine]:
    made = engine(local, server)
    yield made
    made.close()


def test_it_is_an_engine(remote: RemoteEngine, local: TorchEngine, prompt: Prompt) -> None:
    window, _ = prompt.window("an idiot of a man", [(0, 17)])
    (mine,), (theirs,) = local.detect([window]), remote.detect([window])
    assert isinstance(window, Window)
    np.testing.assert_array_equal(mine.labels, theirs.labels)
    assert json.loads(json.dumps(remote.info()))["model"] == "sr-llm"
    assert remote.name == "remote"


def test_it_decodes_what_the_local_engine_does(
    remote: RemoteEngine, local: TorchEngine, prompt: Prompt
) -> None:
    requests = drafted(prompt, SOURCES, 12)
    assert remote.generate(requests) == local.generate(requests)
    assert remote.generate([]) == []


def test_a_stop_id_ends_a_continuation(
    remote: RemoteEngine, local: TorchEngine, prompt: Prompt
) -> None:
    (free,) = local.generate(drafted(prompt, SOURCES[:1], 12))
    asked = replace(drafted(prompt, SOURCES[:1], 12)[0], stop=frozenset({free.ids[5]}))
    (found,) = remote.generate([asked])
    assert found == local.generate([asked])[0]
    assert found.finished


@pytest.mark.parametrize("width", [1, 2, 3])
def test_barred_sequences_are_led_around(
    remote: RemoteEngine, local: TorchEngine, prompt: Prompt, width: int
) -> None:
    requests = []
    for request, free in zip(
        drafted(prompt, SOURCES, 12), local.generate(drafted(prompt, SOURCES, 12)), strict=True
    ):
        barred = (free.ids[2 : 2 + width], free.ids[6 : 6 + width])
        requests.append(replace(request, barred=barred))
    assert remote.generate(requests) == local.generate(requests)


def test_a_server_that_bars_nothing_is_not_believed(local: TorchEngine, prompt: Prompt) -> None:
    (free,) = local.generate(drafted(prompt, SOURCES[:1], 12))
    asked = replace(drafted(prompt, SOURCES[:1], 12)[0], barred=(free.ids[3:5],))
    with serving(completions=completions(local, biased=False)) as deaf:
        remote = engine(local, deaf)
        (found,) = remote.generate([asked])
        remote.close()
    assert free.ids[3:5] not in list(pairwise(found.ids))
    assert found.ids == free.ids[: len(found.ids)]
    assert not found.finished


def test_draws_are_repeatable(remote: RemoteEngine, prompt: Prompt) -> None:
    requests = [
        replace(drafted(prompt, SOURCES[:1], 12)[0], temperature=0.9, seed=n) for n in (1, 2, 1)
    ]
    first, other, again = remote.generate(requests)
    assert first == again != other


def test_likelihoods_are_those_of_the_local_engine(
    remote: RemoteEngine, local: TorchEngine, prompt: Prompt
) -> None:
    asked = [Asked(prompt.rewrite(text, [(0, 3)]), prompt.target(text)) for text in SOURCES]
    for mine, theirs in zip(local.score(asked), remote.score(asked), strict=True):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_what_is_too_long_is_refused_here(remote: RemoteEngine) -> None:
    long = tuple(range(7, 7 + 8)) * (remote.max_tokens // 8 + 1)
    with pytest.raises(EngineError, match="the model takes"):
        remote.generate([Request(long, frozenset({1}), 4)])
    with pytest.raises(EngineError, match="prompt has 0 tokens; the model takes"):
        remote.generate([Request((), frozenset({1}), 4)])
    with pytest.raises(EngineError, match="the model takes"):
        remote.score([Asked(long, (5,))])


def test_older_servers_name_tokens_by_their_ids(local: TorchEngine, prompt: Prompt) -> None:
    requests = drafted(prompt, SOURCES, 8)
    with serving(completions=completions(local, ids="logprobs")) as older:
        remote = engine(local, older)
        found = remote.generate(requests)
        remote.close()
    assert found == local.generate(requests)


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": "", "finish_reason": "stop", **fields}]}


FAULTS: dict[str, Any] = {
    "no JSON": Fault(200, b"<html>idiot</html>"),
    "no choices": {"error": "idiot"},
    "two choices": {"choices": [{}, {}]},
    "no ids": choice(text="idiot"),
    "a negative id": choice(token_ids=[-3]),
    "ids that are text": choice(token_ids=["idiot"]),
    "ids that are flags": choice(token_ids=[True]),
    "too many ids": choice(token_ids=[9] * 50),
    "no reason": choice(token_ids=[9], finish_reason="idiot"),
    "refused": Fault(400, b"idiot"),
    "broken": Fault(500, b"idiot"),
    "not what it is packed as": Fault(200, b"idiot", {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_errors_that_quote_nothing(
    local: TorchEngine, prompt: Prompt, fault: str
) -> None:
    with serving(completions=lambda body: FAULTS[fault]) as server:
        remote = engine(local, server)
        with pytest.raises(EngineError) as caught:
            remote.generate(drafted(prompt, SOURCES[:1], 8))
        with pytest.raises(EngineError) as scored:
            remote.score([Asked((7, 8), (9,))])
        remote.close()
    for error in (caught.value, scored.value):
        assert "idiot" not in f"{error} {error.__cause__}"


@pytest.mark.parametrize(
    "places",
    [None, [None], [None, {"8": {"logprob": -1.0}}, {"1": {"logprob": -1.0}}], [None, 1, "idiot"]],
)
def test_likelihoods_of_something_else_are_refused(local: TorchEngine, places: Any) -> None:
    with serving(completions=lambda body: choice(token_ids=[9], prompt_logprobs=places)) as server:
        remote = engine(local, server)
        with pytest.raises(EngineError, match="likelihoods"):
            remote.score([Asked((7, 8), (9,))])
        remote.close()


def test_what_may_pass_is_tried_again(local: TorchEngine, prompt: Prompt) -> None:
    answer = completions(local)
    left = [Fault(503), Fault(429, headers={"retry-after": "0"})]
    requests = drafted(prompt, SOURCES[:1], 8)
    with serving(completions=lambda body: left.pop() if left else answer(body)) as server:
        remote = engine(local, server, retries=2)
        found = remote.generate(requests)
        remote.close()
        assert len(server.asked) == 3
    assert found == local.generate(requests)


def test_what_will_not_pass_is_not(local: TorchEngine, prompt: Prompt) -> None:
    with serving(completions=lambda body: Fault(401)) as server:
        remote = engine(local, server, retries=2)
        with pytest.raises(EngineError, match="status 401") as caught:
            remote.generate(drafted(prompt, SOURCES[:1], 8))
        remote.close()
        assert len(server.asked) == 1
    assert not caught.value.retryable


def test_it_waits_no_longer_than_it_should(local: TorchEngine, prompt: Prompt) -> None:
    with serving(completions=lambda body: Fault(seconds=5)) as server:
        remote = engine(local, server, timeout_s=0.2)
        with pytest.raises(EngineError, match="ReadTimeout"):
            remote.generate(drafted(prompt, SOURCES[:1], 8))
        remote.close()


def test_nobody_there_is_an_error(local: TorchEngine, prompt: Prompt) -> None:
    with serving() as server:
        pass
    remote = engine(local, server)
    with pytest.raises(EngineError, match="ConnectError"):
        remote.generate(drafted(prompt, SOURCES[:1], 8))
    remote.close()


def test_the_key_is_sent_and_never_shown(
    local: TorchEngine, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRLLM_GUARD_API_KEY", "from-outside")
    with serving(completions=completions(local)) as server:
        for key, sent in ((None, "from-outside"), ("given", "given")):
            remote = RemoteEngine(local, Completions(server.url, "m", api_key=key))
            remote.generate(drafted(prompt, SOURCES[:1], 2))
            assert server.headers[-1]["authorization"] == f"Bearer {sent}"
            assert sent not in json.dumps(remote.info())
            remote.close()


@pytest.mark.parametrize(
    "options",
    [
        {"url": "gpu-1:8000"},
        {"url": "http://user:secret@host/v1"},
        {"url": "ftp://host"},
        {"timeout_s": 0},
        {"retries": -1},
        {"connections": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Completions(**{"url": "http://host/v1", "model": "m", **options})
    assert "secret" not in str(caught.value)


def test_a_guard_runs_on_it() -> None:
    local = ByteEngine()
    text = "We met on Monday at noon. You are an idiot and I said so. It was fine all day."
    with serving(completions=completions(local)) as server:
        remote = engine(local, server)
        guard = Guard(replace(runtime(), engine=remote))
        found = guard.moderate(text)
        remote.close()
    assert found.text == Guard(runtime()).rewrite(text)
    assert found.provenance.engine == "remote"


def test_a_server_that_is_gone_withholds_what_is_unsafe() -> None:
    with serving() as server:
        pass
    remote = engine(ByteEngine(), server)
    guard = Guard(replace(runtime(), engine=remote))
    found = guard.moderate("You are an idiot and I said so.")
    remote.close()
    assert "idiot" not in found.text
    assert found.errors
    assert guard.rewrite("It was fine all day.") == "It was fine all day."


def forked(work: Callable[[], object]) -> int:
    """A child that does this and exits with 0, or else with 1; what hangs is killed."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_lives_on_in_a_forked_child() -> None:
    texts = [f"You are an idiot number {n}." for n in range(20)]
    expected = [Guard(runtime()).rewrite(text) for text in texts]
    local = ByteEngine()
    with serving(completions=completions(local)) as server:
        remote = RemoteEngine(local, Completions(server.url, "m", connections=1, retries=0))
        guard = Guard(replace(runtime(), engine=remote))

        def work() -> None:
            assert [guard.rewrite(text) for text in texts] == expected

        work()  # its thread and its connection are there
        child = forked(work)
        work()  # of a connection that both use at once neither gets its own answers
        assert status(child) == 0
        work()
        remote.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_closed_stays_closed_in_a_forked_child(server: Server) -> None:
    client = Completions(server.url, "m")
    remote = RemoteEngine(ByteEngine(), client)
    remote.close()

    def work() -> None:
        with pytest.raises(RuntimeError, match="shutdown"):
            remote.generate([Request((7, 8), frozenset(), 2)])
        with pytest.raises(RuntimeError, match="closed"):
            client.ask({})

    assert status(forked(work)) == 0


def test_what_cannot_be_loaded_leaves_no_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(httpx.Client, "close", lambda self: closed.append(self))
    with pytest.raises(ModelError):
        load("http://host/v1", served="m", model=tmp_path)
    assert closed
