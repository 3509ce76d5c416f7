"""What every engine has to do, whatever it runs on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from srllm_guard.engines.base import Asked, Engine, Request, Window
from srllm_guard.labels import CATEGORIES, N_LOGITS
from srllm_guard.prompt import Prompt

TEXTS = [
    "You are an idiot.",
    "Hi!",
    "The train leaves at 9:40 from platform 2, and it is usually on time.",
    "Müller 😀 is so stupid",
    "Nice day.",
]
LIMIT = 60


@pytest.fixture
def windows(prompt: Prompt) -> list[Window]:
    single = [prompt.window(text, [(0, len(text))])[0] for text in TEXTS]
    two = "Go away. You are trash."
    return [*single, prompt.window(two, [(0, 8), (9, len(two))])[0]]


@pytest.fixture
def requests(prompt: Prompt) -> list[Request]:
    return [
        Request(prompt.rewrite(text, [(0, 3)]), frozenset({prompt.end}), LIMIT) for text in TEXTS
    ]


def test_it_is_an_engine(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    assert engine.name
    assert engine.device == "cpu"
    assert engine.max_tokens > 100
    assert json.loads(json.dumps(engine.info())) == engine.info()


def test_nothing_asked_nothing_given(engine: Engine) -> None:
    assert engine.detect([]) == []
    assert engine.generate([]) == []
    assert engine.score([]) == []


def test_scores_have_their_shapes(engine: Engine, windows: list[Window]) -> None:
    for window, scores in zip(windows, engine.detect(windows), strict=True):
        assert scores.labels.shape == (window.segments, N_LOGITS)
        assert scores.spans.shape == (len(window.ids), len(CATEGORIES))
        assert scores.labels.dtype == scores.spans.dtype == np.float32
        assert np.isfinite(scores.labels).all()
        assert np.isfinite(scores.spans).all()


def test_judged_together_is_judged_alone_in_any_order(
    engine: Engine, windows: list[Window]
) -> None:
    together = engine.detect(windows)
    backwards = engine.detect(windows[::-1])[::-1]
    alone = [engine.detect([window])[0] for window in windows]
    for one, two, three in zip(together, backwards, alone, strict=True):
        for other in (two, three):
            np.testing.assert_allclose(one.labels, other.labels, atol=1e-4)
            np.testing.assert_allclose(one.spans, other.spans, atol=1e-4)


def test_what_follows_a_segment_has_no_say_in_its_scores(engine: Engine, prompt: Prompt) -> None:
    text = 'Go away, said the man. You are trash!" Nice day. The train leaves at 9:40.'
    segments = [(0, 22), (23, 37), (39, 48), (49, len(text))]
    whole, _ = prompt.window(text, segments)
    parts = [prompt.window(text[:end], segments[: n + 1])[0] for n, (_, end) in enumerate(segments)]
    for n, part in enumerate(parts):
        assert part.ids == whole.ids[: len(part.ids)]
        alone, along = engine.detect([part, whole])
        owned = [at for at, owner in enumerate(part.owner) if owner == n]
        np.testing.assert_allclose(alone.labels[n], along.labels[n], atol=1e-4)
        np.testing.assert_allclose(alone.spans[owned], along.spans[owned], atol=1e-4)


def test_a_window_of_few_tokens(engine: Engine) -> None:
    for owner in ((0,), (0, 0), (-1, 0), (0, 1)):
        [scores] = engine.detect([Window((40, 41)[: len(owner)], owner, max(owner) + 1)])
        assert scores.spans.shape == (len(owner), len(CATEGORIES))
        assert np.isfinite(scores.labels).all()


def test_different_texts_get_different_scores(engine: Engine, windows: list[Window]) -> None:
    unsafe, safe = engine.detect([windows[0], windows[2]])
    assert not np.allclose(unsafe.labels, safe.labels)


def test_more_windows_than_a_batch(engine: Engine, windows: list[Window]) -> None:
    many = engine.detect(windows * 7)
    for n, scores in enumerate(many):
        np.testing.assert_allclose(scores.labels, many[n % len(windows)].labels, atol=1e-4)


def test_a_window_as_long_as_allowed(engine: Engine, prompt: Prompt) -> None:
    prefix = prompt.window("", [])[0].ids
    text = "a b " * engine.max_tokens
    ids = (*prefix, *prompt.encode(text))[: engine.max_tokens]
    owner = tuple(-1 if n < len(prefix) else 0 for n in range(len(ids)))
    [scores] = engine.detect([Window(ids, owner, 1)])
    assert scores.spans.shape == (engine.max_tokens, len(CATEGORIES))
    assert np.isfinite(scores.labels).all()


def test_decoded_together_is_decoded_alone_in_any_order(
    engine: Engine, requests: list[Request]
) -> None:
    together = engine.generate(requests)
    assert together == engine.generate(requests)
    assert together == engine.generate(requests[::-1])[::-1]
    assert together == [engine.generate([request])[0] for request in requests]
    assert len({continuation.ids for continuation in together}) > 1


def test_the_same_seed_draws_the_same_whoever_is_beside(
    engine: Engine, requests: list[Request]
) -> None:
    drawn = [replace(requests[0], temperature=1.0, seed=seed) for seed in range(8)]
    found = engine.generate(drawn)
    assert found == engine.generate(drawn)
    assert found == [engine.generate([request])[0] for request in drawn]
    assert len({continuation.ids for continuation in found}) > 1
    greedy = engine.generate(requests[1:2])
    assert engine.generate([*drawn, requests[1]]) == [*found, *greedy]


def test_a_greedy_request_ignores_its_seed(engine: Engine, requests: list[Request]) -> None:
    [one] = engine.generate([replace(requests[0], seed=1)])
    [two] = engine.generate([replace(requests[0], seed=2)])
    assert one == two


def test_the_stop_id_ends_and_is_left_out(engine: Engine, requests: list[Request]) -> None:
    # Any id that is decoded can be made the stop id, so that random weights meet one too.
    [free] = engine.generate(requests[:1])
    assert len(free.ids) > 3
    stop = free.ids[3]
    [found] = engine.generate([replace(requests[0], stop=frozenset({stop}))])
    assert found.finished
    assert found.ids == free.ids[: free.ids.index(stop)]


def test_several_stop_ids_in_one_batch(engine: Engine, requests: list[Request]) -> None:
    free = engine.generate(requests[:2])
    stops = [requests[0].stop | {free[0].ids[2]}, frozenset({free[1].ids[1]})]
    asked = [replace(r, stop=s) for r, s in zip(requests[:2], stops, strict=True)]
    for found, stop in zip(engine.generate(asked), stops, strict=True):
        assert found.finished
        assert not stop & set(found.ids)


def test_no_stop_id_at_all(engine: Engine, requests: list[Request]) -> None:
    [found] = engine.generate([replace(requests[0], stop=frozenset(), limit=5)])
    assert not found.finished
    assert len(found.ids) == 5


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_cuts(engine: Engine, requests: list[Request], limit: int) -> None:
    whole = engine.generate(requests[:1])[0]
    asked = [replace(requests[0], limit=limit), requests[2]]
    found = engine.generate(asked)[0]
    assert found.ids == whole.ids[:limit]
    assert not found.finished


def test_barred_sequences_do_not_occur(engine: Engine, requests: list[Request]) -> None:
    [free] = engine.generate(requests[:1])
    barred = (free.ids[:1], free.ids[1:3], free.ids[2:5])
    [found] = engine.generate([replace(requests[0], barred=barred)])
    runs = {found.ids[n : n + width] for width in (1, 2, 3) for n in range(len(found.ids))}
    assert not runs & set(barred)
    assert found.ids != free.ids


def test_a_barred_sequence_bars_no_part_of_it(engine: Engine, requests: list[Request]) -> None:
    [free] = engine.generate(requests[:1])
    [found] = engine.generate([replace(requests[0], barred=(free.ids[:3],))])
    assert found.ids[:2] == free.ids[:2]
    assert found.ids[2] != free.ids[2]


def test_what_is_barred_holds_for_drawn_ids_and_one_request_only(
    engine: Engine, requests: list[Request]
) -> None:
    [free] = engine.generate(requests[:1])
    barred = (free.ids[:1],)
    drawn = [replace(requests[0], temperature=1.0, seed=n, barred=barred) for n in range(4)]
    *found, other = engine.generate([*drawn, requests[0]])
    assert all(free.ids[0] not in continuation.ids for continuation in found)
    assert other == free


def test_a_continuation_is_scored_token_by_token_alone_or_together(
    engine: Engine, prompt: Prompt
) -> None:
    asked = [
        Asked(prompt.rewrite(text, [(0, 3)]), prompt.target(other))
        for text, other in zip(TEXTS, TEXTS[::-1], strict=True)
    ]
    together = engine.score(asked)
    alone = [engine.score([each])[0] for each in asked]
    for each, one, two in zip(asked, together, alone, strict=True):
        assert one.shape == (len(each.ids),)
        assert one.dtype == np.float32
        assert (one <= 0).all()
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_what_is_less_likely_than_asked_for_stays_below(
    engine: Engine, requests: list[Request]
) -> None:
    asked = [Asked(r.prompt, ids) for r in requests for ids in ((5, 6, 7, 8), (5, 6, 9), (40, 41))]
    sums = [float(found.sum()) for found in engine.score(asked)]
    for least in (min(sums) - 1, sorted(sums)[len(sums) // 2], max(sums) + 1):
        bounded = engine.score([replace(each, least=least) for each in asked])
        for each, found, exact in zip(asked, bounded, sums, strict=True):
            assert found.shape == (len(each.ids),)
            if exact > least + 1e-3:
                assert found.sum() == pytest.approx(exact, abs=1e-3)
            elif exact < least - 1e-3:
                assert found.sum() < least
