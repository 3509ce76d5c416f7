"""Continuations of one prompt are scored as if each were alone; what they share is run once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srllm_guard.engines.base import Asked, Floats, Ids
from srllm_guard.engines.kin import AT_ONCE, Begun, scored

WORDS = 5


def row(ids: Ids) -> Floats:
    """What follows some ids: made of all of them, so that a wrong place would show."""
    return np.random.default_rng([len(ids), *ids]).normal(size=(1, WORDS)).astype(np.float32) * 4


class Made:
    """A model that knows what was written to its places, as one with a cache does."""

    def __init__(self) -> None:
        self.fed = 0

    def begin(self, prompt: Ids, more: int) -> Begun:
        written: list[int] = []

        def run(ids: Ids, at: int) -> Floats:
            assert at <= len(written)
            assert at + len(ids) < more
            written[at:] = ids
            self.fed += len(ids)
            return np.concatenate([row((*prompt, *written[: at + n + 1])) for n in range(len(ids))])

        return Begun(row(prompt), run, chances)


def chances(logits: Floats, ids: Ids) -> Floats:
    all_ = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found: Floats = all_[np.arange(len(ids)), list(ids)]
    return found


def exact(asked: Asked) -> Floats:
    before = [(*asked.prompt, *asked.ids[:n]) for n in range(len(asked.ids))]
    return np.concatenate([chances(row(b), (i,)) for b, i in zip(before, asked.ids, strict=True)])


some = st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=6).map(tuple)
bounds = st.sampled_from([-np.inf, -20.0, -6.0, -1.0])


@given(st.lists(st.builds(Asked, st.sampled_from([(1,), (2, 3)]), some, bounds), max_size=12))
def test_each_is_scored_as_if_it_were_alone(asked: list[Asked]) -> None:
    for each, found in zip(asked, scored(asked, Made().begin), strict=True):
        right = exact(each)
        assert found.shape == right.shape
        if right.sum() >= each.least:
            np.testing.assert_allclose(found, right, atol=1e-5)
        else:
            assert found.sum() < each.least


def test_what_several_begin_with_is_run_once() -> None:
    made = Made()
    same = tuple(range(5)) * 3
    scored([Asked((1,), (*same, n)) for n in range(5)] + [Asked((1,), same)], made.begin)
    assert made.fed == len(same)


def test_nothing_is_run_of_what_is_unlikely_from_the_first_id() -> None:
    made = Made()
    worst = int(row((1,)).argmin())
    [found] = scored([Asked((1,), (worst, 2, 3, 4), -0.5)], made.begin)
    assert made.fed == 0
    assert found.tolist() == [pytest.approx(exact(Asked((1,), (worst,)))[0]), 0.0, 0.0, 0.0]


def test_a_long_one_is_run_in_parts_that_fit() -> None:
    ids = tuple(n * n % WORDS for n in range(2 * AT_ONCE + 9))
    asked = [Asked((1,), (*ids, 1)), Asked((1,), (*ids, 2)), Asked((1,), (*ids[:AT_ONCE], 4, 4))]
    for each, found in zip(asked, scored(asked, Made().begin), strict=True):
        np.testing.assert_allclose(found, exact(each), atol=1e-5)
