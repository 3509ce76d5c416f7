"""What numpy chooses is what the reference engine chooses with torch."""

from __future__ import annotations

import numpy as np
import pytest

from srllm_guard.engines.base import Ids, Request
from srllm_guard.engines.pick import Picker, nucleus

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from srllm_guard.engines.choice import Choice  # noqa: E402

VOCABULARY = 3000
STEPS = 25


def request(**settings: object) -> Request:
    return Request((5, 6), frozenset({2}), STEPS, **settings)  # type: ignore[arg-type]


def rows(spread: float) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    made = np.random.default_rng(int(spread * 10))
    return [(made.standard_normal(VOCABULARY) * spread).astype(np.float32) for _ in range(STEPS)]


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_it_draws_as_the_reference_does(spread: float, temperature: float, seed: int) -> None:
    asked = request(temperature=temperature, seed=seed, barred=((3,), (4, 5)))
    ours, theirs = Picker(asked), Choice([asked], 2)
    said: list[int] = []
    for row in rows(spread):
        scores = theirs(torch.tensor([[5, 6, *said]]), torch.from_numpy(row)[None])
        assert ours(row, said) == int(scores.argmax())
        said.append(int(scores.argmax()))


def test_what_is_barred_is_the_next_best() -> None:
    row = np.array([0, 1, 5, 4, 3], np.float32)

    def chosen(barred: tuple[Ids, ...], said: list[int]) -> int:
        return Picker(request(barred=barred))(row, said)

    assert chosen(((2,),), []) == 3
    assert chosen(((2,), (3,)), []) == 4
    assert chosen(((1, 2),), []) == 2
    assert chosen(((1, 2),), [0, 1]) == 3
    assert row[2] == 5  # the caller's row is left as it was


def test_a_seed_is_one_text_and_another_another() -> None:
    def drawn(seed: int) -> list[int]:
        picker = Picker(request(temperature=1.0, seed=seed))
        return [picker(row, []) for row in rows(2.0)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_the_nucleus_has_its_share() -> None:
    for spread in (0.01, 1.0, 5.0):
        logits = rows(spread)[0]
        kept = nucleus(logits)
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        assert chances[kept].sum() >= 0.95 - 1e-5
        assert chances[kept[:-1]].sum() <= 0.95 + 1e-5
        assert logits[kept].min() >= np.delete(logits, kept).max()


def test_only_a_plain_request_is_greedy() -> None:
    assert Picker(request()).greedy
    assert not Picker(request(barred=((3,),))).greedy
    assert not Picker(request(temperature=0.1)).greedy
