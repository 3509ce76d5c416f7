"""The decode loop over a model that is a function of the ids it has been fed, by place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from srllm_guard.engines.base import Continuation, Ids, Request
from srllm_guard.engines.loop import Feed, decode
from srllm_guard.engines.pick import Picker
from srllm_guard.errors import EngineError

WORDS = 12
STOP = 0


class Memory:
    """A model with a cache by place: what follows a token hangs on all ids up to it.

    It copies its prompt with some changes, so that guesses are right and wrong.
    """

    def __init__(self, places: int = 64) -> None:
        self.cache: dict[int, list[int]] = {}
        self.feeds: list[Feed] = []
        self.places = places

    def __call__(self, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
        found = []
        for feed in feeds:
            self.feeds.append(feed)
            known = self.cache.setdefault(feed.row, [-1] * self.places)
            known[feed.at : feed.at + len(feed.ids)] = feed.ids
            end = feed.at + len(feed.ids)
            rows = [logits(known[: n + 1]) for n in range(end - feed.want, end)]
            found.append(np.array([row.argmax() for row in rows] if feed.greedy else rows))
        return found


def logits(seen: Sequence[int]) -> NDArray[np.float32]:
    """`[WORDS]`, a function of all ids so far."""
    assert -1 not in seen
    noise = random.Random(repr(list(seen)))
    row = np.array([noise.random() for _ in range(WORDS)], np.float32)
    if noise.random() < 0.7:  # most likely what followed the same id before
        before = [n for n, index in enumerate(seen[:-1]) if index == seen[-1]]
        row[seen[before[0] + 1] if before else STOP] += 1
    return row


def plain(request: Request) -> tuple[Ids, bool]:
    """The same, token by token and without any cache."""
    picker, said = Picker(request), list[int]()
    while len(said) < request.limit:
        row = logits([*request.prompt, *said])
        index = int(row.argmax()) if picker.greedy else picker(row, said)
        if index in request.stop:
            return tuple(said), True
        said.append(index)
    return tuple(said), False


def run(
    requests: Sequence[Request], width: int = 8, longest: int = 64, *, careful: bool = False
) -> tuple[list[Continuation], Memory]:
    model = Memory(longest + width)
    found = decode(requests, model, width=width, max_tokens=longest, careful=careful)
    return found, model


ids = st.lists(st.integers(1, WORDS - 1), min_size=1, max_size=10).map(tuple)
asked = st.builds(
    Request,
    prompt=ids,
    stop=st.sampled_from([frozenset({STOP}), frozenset[int](), frozenset({STOP, 3})]),
    limit=st.integers(1, 20),
    barred=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), max_size=2).map(
        tuple
    ),
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    seed=st.integers(0, 9),
    draft=st.one_of(st.just(()), ids),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(asked, min_size=1, max_size=4), st.integers(1, 9), st.booleans())
def test_it_finds_what_decoding_token_by_token_finds(
    requests: list[Request], width: int, careful: bool
) -> None:
    found, _ = run(requests, width, careful=careful)
    assert [(each.ids, each.finished) for each in found] == [plain(each) for each in requests]


@settings(max_examples=50, deadline=None)
@given(asked, st.integers(1, 9), st.booleans())
def test_its_counts_are_those_of_its_passes(request_: Request, width: int, careful: bool) -> None:
    [found], model = run([request_], width, careful=careful)
    assert found.steps == len(model.feeds)
    assert found.guessed == sum(feed.want - 1 for feed in model.feeds)
    assert found.accepted <= found.guessed
    # Each pass gives what was right and one id more; the last may end before that.
    assert 0 <= found.accepted + found.steps - len(found.ids) <= 1
    assert all(len(feed.ids) <= width for feed in model.feeds[1:])


def test_a_copy_takes_few_passes() -> None:
    source = tuple(range(1, 11))

    def copy(feeds: Sequence[Feed]) -> list[NDArray[Any]]:
        return [np.array([n % 11 + 1 if n < 10 else STOP for n in f.ids[-f.want :]]) for f in feeds]

    request = Request((11, 12, *source, 0), frozenset({STOP}), 40, draft=source)
    # The prompt ends with 0, which is followed by 1.
    [found] = decode([request], copy, width=8, max_tokens=99)
    assert (found.ids, found.finished) == (source, True)
    assert (found.steps, found.guessed, found.accepted) == (2, 9, 9)


def test_a_careful_row_guesses_less_after_a_miss_and_more_after_hits() -> None:
    source = tuple(range(1, 60))
    fed = []

    def model(feeds: Sequence[Feed]) -> list[NDArray[Any]]:
        """Says 99 in place of 20; all else is a copy."""
        [feed] = feeds
        fed.append(len(feed.ids) - (len(request.prompt) if feed.at == 0 else 0))
        ids = [20 if index == 99 else index for index in feed.ids[-feed.want :]]
        return [np.array([99 if n == 19 else n + 1 for n in ids])]

    request = Request((0,), frozenset(), 58, draft=source)
    decode([request], model, width=16, max_tokens=99, careful=True)
    assert fed[0] == 15
    assert fed[2] == 3 + 4  # of what was fed 17, 18 and 19 were right
    assert fed[3] == 2 * fed[2]
    assert fed[4] == 16


def test_rows_end_at_different_passes() -> None:
    requests = [Request((4, 5), frozenset(), limit) for limit in (1, 9, 3)]
    found, model = run(requests, width=1)
    assert [len(each.ids) for each in found] == [1, 9, 3]
    assert [each.steps for each in found] == [1, 9, 3]
    assert [feed.row for feed in model.feeds[:5]] == [0, 1, 2, 1, 2]


def test_the_end_of_the_model_is_not_passed() -> None:
    request = Request((4, 5, 6, 7), frozenset(), 20)
    [found], model = run([request], longest=10)
    assert len(found.ids) == 6
    assert not found.finished
    assert max(feed.at + len(feed.ids) for feed in model.feeds) <= 10


def test_only_rows_that_need_logits_ask_for_them() -> None:
    plain_one = Request((4, 5), frozenset(), 3)
    others = [
        Request((4, 5), frozenset(), 3, barred=((6,),)),
        Request((4, 5), frozenset(), 3, temperature=1.0),
    ]
    _, model = run([plain_one, *others])
    assert {(feed.row, feed.greedy) for feed in model.feeds} == {(0, True), (1, False), (2, False)}


@pytest.mark.parametrize(
    "request_",
    [
        Request((), frozenset(), 5),
        Request((1,), frozenset(), 0),
        Request((1,) * 64, frozenset(), 5),
    ],
)
def test_a_prompt_without_room_is_an_error(request_: Request) -> None:
    with pytest.raises(EngineError, match=r"prompt has (0|1|64) tokens; the model takes 64") as one:
        run([request_])
    assert not one.value.retryable
