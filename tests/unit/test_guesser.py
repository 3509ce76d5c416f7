from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from srllm_guard.engines.guesser import Guesser

SOURCE = (10, 11, 12, 13, 10, 20, 21, 22, 30)


def after(*ids: int, source: tuple[int, ...] = SOURCE, count: int = 3) -> tuple[int, ...]:
    """What is guessed after a continuation."""
    guesser = Guesser(source)
    for index in ids:
        guesser.take(index)
    return guesser.guess(count)


def test_it_begins_with_the_source() -> None:
    assert after() == SOURCE[:3]


def test_a_copy_goes_on() -> None:
    assert after(10, 11) == (12, 13, 10)


def test_what_is_left_out_is_stepped_over() -> None:
    assert after(10, 11, 20) == (21, 22, 30)


def test_an_unknown_id_takes_the_place_of_one() -> None:
    assert after(10, 99) == (12, 13, 10)


def test_a_known_id_is_looked_up_nearby() -> None:
    assert after(99, 99, 99, 10) == (20, 21, 22)  # the second 10, right behind the pointer
    assert after(99, 10) == (11, 12, 13)  # the first is nearer


def test_more_context_beats_what_is_near() -> None:
    source = (1, 2, 3, 50, 51, 52, 53, 9, 3, 60)
    assert after(1, 2, 51, 9, 3, source=source, count=1) == (60,)
    assert after(99, 99, 99, 99, 99, 99, 99, 1, 2, 3, source=source, count=1) == (50,)


def test_nothing_is_guessed_behind_the_end() -> None:
    assert after(22, 30) == ()
    assert after(*SOURCE, 99, 98) == ()
    assert after(source=()) == ()


def test_it_comes_back_from_the_end() -> None:
    assert after(*SOURCE, 99, 12) == (13, 10, 20)


def test_no_guess_where_none_is_asked_for() -> None:
    assert after(count=0) == ()
    assert after(count=-1) == ()


ids = st.lists(st.integers(0, 5), max_size=12)


@given(ids, ids)
def test_guesses_are_runs_of_the_source(source: list[int], said: list[int]) -> None:
    guesser = Guesser(source)
    runs = {tuple(source[n : n + 4]) for n in range(len(source) + 1)}
    for index in said:
        assert guesser.guess(4) in runs
        guesser.take(index)
    assert guesser.guess(4) in runs | {()}
