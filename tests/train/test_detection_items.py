from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from srllm_guard.detector import WINDOW
from srllm_guard.labels import CATEGORIES, LABELS, N_LOGITS, SLICES, UNSAFE
from srllm_guard.prompt import Prompt
from train import detection, evaluation
from train.example import Example, labelled, occurrences
from train.sources import load

KNOWN_SAFE = {"bias": "no", "toxicity": "none", "harm": "low"}

UNSAFE_CMD = Example(
    "The bus was late. Old people are useless with phones. Bring 3 keys.",
    ("The bus was late. Some people need help with phones. Bring 3 keys.",),
    labelled(unsafe="yes", bias="yes", toxicity="mild", sentiment="negative", harm="medium"),
    occurrences(
        "The bus was late. Old people are useless with phones. Bring 3 keys.",
        ["Old people are useless"],
        "bias",
    ),
    source="cmd",
)


def one(example: Example, prompt: Prompt) -> detection.Item:
    return detection.item([example], prompt, random.Random(0))


def covered(item: detection.Item, prompt: Prompt, category: str) -> str:
    """The text of the tokens that a category is said to hold for."""
    hit = item.spans[:, CATEGORIES.index(category)] == 1
    return prompt.decode([i for i, yes in zip(item.window.ids, hit, strict=True) if yes])


def values(item: detection.Item, row: int, label: str) -> set[str]:
    allowed = item.allowed[row, SLICES[label]]
    return {value for value, yes in zip(LABELS[label], allowed, strict=True) if yes}


def test_spans_lie_on_the_tokens_of_the_phrase_and_nowhere_else(prompt: Prompt) -> None:
    item = one(UNSAFE_CMD, prompt)
    # White space belongs to no phrase but may hang on a token; a byte tokenizer shows it apart.
    assert covered(item, prompt, "bias") == "Oldpeopleareuseless"
    assert covered(item, prompt, "toxicity") == ""
    owned = np.array(item.window.owner) >= 0
    assert (item.spans[owned] != detection.UNKNOWN).all()
    assert (item.spans[~owned] == detection.UNKNOWN).all()


def test_the_other_sentences_of_an_authored_record_are_known_to_be_safe(prompt: Prompt) -> None:
    item = one(UNSAFE_CMD, prompt)
    assert item.window.segments == 3
    assert item.unsafe.tolist() == [0, 1, 0]
    for row in (0, 2):
        assert {name: values(item, row, name) for name in KNOWN_SAFE} == {
            name: {value} for name, value in KNOWN_SAFE.items()
        }
        assert values(item, row, "sentiment") == set(LABELS["sentiment"])
    assert values(item, 1, "harm") == {"medium"}


def test_other_sets_say_nothing_of_sentences_without_a_span(prompt: Prompt) -> None:
    text = "I read the news. You are an idiot."
    example = Example(
        text,
        labels=labelled(unsafe="yes", toxicity="mild high"),
        spans=occurrences(text, ["idiot"], "toxicity"),
        source="toxic_spans",
    )
    item = one(example, prompt)
    assert item.unsafe.tolist() == [detection.UNKNOWN, 1]
    assert item.allowed[0].all()
    assert values(item, 1, "toxicity") == {"mild", "high"}
    assert values(item, 1, "bias") == {"no", "yes"}
    first = np.array(item.window.owner) == 0
    second = np.array(item.window.owner) == 1
    assert (item.spans[first] == detection.UNKNOWN).all()
    column = CATEGORIES.index("toxicity")
    assert (item.spans[second][:, column] != detection.UNKNOWN).all()
    # The set marks toxicity; whether the words are biased too it does not say.
    others = [n for n in range(len(CATEGORIES)) if n != column]
    assert (item.spans[second][:, others] == detection.UNKNOWN).all()


def test_sentences_of_unsafe_text_without_spans_are_a_bag(prompt: Prompt) -> None:
    unsafe = Example("They cheat. All of them.", labels=labelled(unsafe="yes", bias="yes"))
    item = one(unsafe, prompt)
    assert item.unsafe.tolist() == [1, 1]
    assert item.bag.tolist() == [0, 0]
    assert item.allowed.all()  # which sentence is biased nobody says
    assert (item.spans == detection.UNKNOWN).all()
    single = one(replace(unsafe, text="They cheat."), prompt)
    assert (single.unsafe.tolist(), single.bag.tolist()) == ([1], [detection.ALONE])
    assert not single.allowed.all()


def test_each_text_of_a_window_has_a_bag_of_its_own(prompt: Prompt) -> None:
    unsafe = Example("They cheat. All of them.", labels=labelled(unsafe="yes"))
    safe = Example("It rained. We stayed in.", labels=labelled(unsafe="no", bias="no"))
    item = detection.item([unsafe, UNSAFE_CMD, safe], prompt, random.Random(0))
    assert item.bag.tolist() == [0, 0, *[detection.ALONE] * 3, 1, 1]
    assert item.unsafe.tolist() == [1, 1, 0, 1, 0, 0, 0]
    # Its labels hold for each sentence of a safe text.
    assert not item.allowed[5:, SLICES["bias"]].all(1).any()


def test_a_bag_is_safe_if_all_of_it_is(prompt: Prompt) -> None:
    examples = [
        Example("They cheat. All of them.", labels=labelled(unsafe="yes")),
        Example("It rained.", (), labelled(unsafe="no"), ()),
        Example("It rained. We stayed in.", labels=labelled(unsafe="no")),
    ]
    batch = detection.collate(
        [detection.item(examples[:2], prompt, random.Random(0)), one(examples[2], prompt)]
    )
    labels = torch.zeros(2, 3, N_LOGITS)
    labels[..., UNSAFE] = torch.tensor([[1.0, -2.0, -3.0], [-1.0, 0.5, 9.0]])
    tokens = torch.zeros(*batch.ids.shape, len(CATEGORIES))
    safe = [float(torch.sigmoid(-torch.tensor(x))) for x in (1.0, -2.0, -3.0, -1.0, 0.5)]
    wanted = [1 - safe[0] * safe[1], *safe[2:]]
    found = detection.loss(labels, tokens, batch).unsafe.item()
    assert found == pytest.approx(-np.log(wanted).mean(), rel=1e-4)


def test_a_text_judged_as_a_whole_counts_once_by_its_worst_sentence(prompt: Prompt) -> None:
    unsafe = Example("They cheat. All of them.", labels=labelled(unsafe="yes"))
    safe = Example("It rained. We stayed in.", labels=labelled(unsafe="no"))
    alone = Example("We left.", (), labelled(unsafe="no"), ())
    batches = [[detection.item([unsafe, alone, safe], prompt, random.Random(0)), one(safe, prompt)]]

    def judge(batch: detection.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(*batch.unsafe.shape, N_LOGITS)
        labels[..., UNSAFE] = torch.tensor(
            [[1.0, 5.0, -1.0, 2.0, 0.5], [-3.0, -2.0, 9.0, 9.0, 9.0]]
        )
        return labels, torch.zeros(*batch.ids.shape, len(CATEGORIES))

    found = evaluation.judged(batches, judge)
    rows = sorted(zip(found.logits.tolist(), found.unsafe.tolist(), strict=True))
    assert rows == [(-2.0, 0), (-1.0, 0), (2.0, 0), (5.0, 1)]
    assert found.figures()["segments"] == 4


def test_a_bag_without_doubt_has_finite_gradients(prompt: Prompt) -> None:
    example = Example("They cheat. All of them.", labels=labelled(unsafe="yes"))
    batch = detection.collate([one(example, prompt)])
    labels = torch.full((1, 2, N_LOGITS), -60.0, requires_grad=True)
    detection.loss(labels, torch.zeros(*batch.ids.shape, len(CATEGORIES)), batch).total.backward()
    assert labels.grad is not None
    assert labels.grad.isfinite().all()
    assert (labels.grad[..., UNSAFE] < -0.1).all()  # and it goes on learning


def test_every_sentence_of_safe_text_is_safe(prompt: Prompt) -> None:
    labels = labelled(unsafe="no", bias="no", toxicity="none", harm="low")
    item = one(Example("It rained. We stayed in.", (), labels, (), source="cmd"), prompt)
    assert item.unsafe.tolist() == [0, 0]
    owned = np.array(item.window.owner) >= 0
    assert (item.spans[owned] == 0).all()


def test_what_is_unknown_stays_unknown(prompt: Prompt) -> None:
    item = one(Example("Who can say.", source="pairs"), prompt)
    assert item.unsafe.tolist() == [detection.UNKNOWN]
    assert item.allowed.all()
    assert (item.spans == detection.UNKNOWN).all()


def test_context_is_read_and_not_judged(prompt: Prompt) -> None:
    example = Example(
        "Yes they are.",
        labels=labelled(unsafe="yes", bias="yes"),
        spans=((0, 3, "bias"),),
        context="x" * 500 + " Are they lazy?",
        source="diasafety",
    )
    item = one(example, prompt)
    assert item.unsafe.tolist() == [detection.UNKNOWN, 1]
    text = prompt.decode(item.window.ids)
    assert text.count("x") == 300 - len(" Are they lazy?")
    assert covered(item, prompt, "bias") == "Yes"


def test_strangers_share_a_window_and_keep_their_own_labels(prompt: Prompt) -> None:
    safe = Example("It rained.", (), labelled(unsafe="no"), (), source="cmd")
    item = detection.item([safe, UNSAFE_CMD, safe], prompt, random.Random(1))
    assert item.unsafe.tolist() == [0, 0, 1, 0, 0]
    assert covered(item, prompt, "bias") == "Oldpeopleareuseless"


def test_windows_hold_every_example_once_and_are_not_too_long(
    prompt: Prompt, authored: Path
) -> None:
    examples = load(authored, "cmd", "train")
    items = detection.items(examples, prompt, seed=5)
    assert 0 < len(items) < len(examples)
    texts = [prompt.decode(item.window.ids) for item in items]
    assert all(len(text) <= WINDOW + 200 for text in texts)
    for example in examples:
        assert sum(example.text in text for text in texts) == 1
    again = detection.items(examples, prompt, seed=5)
    assert [item.window for item in items] == [item.window for item in again]
    other = detection.items(examples, prompt, seed=6)
    assert [item.window for item in items] != [item.window for item in other]


def test_every_authored_record_has_its_biased_words_marked(prompt: Prompt, authored: Path) -> None:
    records = [
        json.loads(line)
        for line in (authored / "records.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    examples = {
        example.id: example
        for split in ("train", "dev", "test")
        for example in load(authored, "cmd", split)
    }
    for record in records:
        item = one(examples[record["id"]], prompt)
        unsafe = record["kind"] != "none"
        assert (1 in item.unsafe) == unsafe
        marked = "".join(covered(item, prompt, category) for category in CATEGORIES)
        assert bool(marked) == unsafe
        for phrase in record["biased_words"]:
            assert "".join(phrase.split()) in marked


def test_collate_pads_with_what_costs_nothing(prompt: Prompt) -> None:
    items = [one(UNSAFE_CMD, prompt), one(Example("Hm.", source="pairs"), prompt)]
    batch = detection.collate(items)
    tokens, short = len(items[0]), len(items[1])
    assert batch.ids.shape == batch.owner.shape == (2, tokens)
    assert (batch.owner[1, short:] == -2).all()
    assert batch.unsafe.tolist() == [[0, 1, 0], [detection.UNKNOWN] * 3]
    assert batch.allowed[1].all()
    assert (batch.spans[1] == detection.UNKNOWN).all()
    logits = torch.randn(2, 3, N_LOGITS), torch.randn(2, tokens, len(CATEGORIES))
    both = detection.loss(*logits, batch)
    alone = detection.loss(logits[0][:1], logits[1][:1], detection.collate(items[:1]))
    assert both.to_dict() == pytest.approx(alone.to_dict())


def test_the_loss_asks_for_the_probability_of_the_possible_values() -> None:
    allowed = torch.ones(1, 1, N_LOGITS, dtype=torch.bool)
    allowed[0, 0, SLICES["toxicity"]] = torch.tensor([False, True, True])
    batch = detection.Batch(
        torch.zeros(1, 2, dtype=torch.long),
        torch.zeros(1, 2, dtype=torch.long),
        torch.tensor([[1]]),
        torch.tensor([[detection.ALONE]]),
        allowed,
        torch.full((1, 2, len(CATEGORIES)), detection.UNKNOWN),
    )
    labels = torch.zeros(1, 1, N_LOGITS)
    labels[0, 0, UNSAFE] = 2.0
    found = detection.loss(labels, torch.zeros(1, 2, len(CATEGORIES)), batch)
    assert found.unsafe.item() == pytest.approx(np.log(1 + np.exp(-2)))
    # One known label among four: -log(2/3) for it, nothing for the others.
    assert found.labels.item() == pytest.approx(-np.log(2 / 3) / len(LABELS))
    assert found.spans.item() == 0
    assert found.total.item() == pytest.approx(
        found.unsafe.item() + 0.5 * found.labels.item() + found.spans.item()
    )


def test_an_unknown_label_gets_no_gradient() -> None:
    allowed = torch.ones(1, 1, N_LOGITS, dtype=torch.bool)
    allowed[0, 0, SLICES["bias"]] = torch.tensor([False, True])
    batch = detection.Batch(
        torch.zeros(1, 1, dtype=torch.long),
        torch.zeros(1, 1, dtype=torch.long),
        torch.tensor([[detection.UNKNOWN]]),
        torch.tensor([[detection.ALONE]]),
        allowed,
        torch.full((1, 1, len(CATEGORIES)), detection.UNKNOWN),
    )
    labels = torch.randn(1, 1, N_LOGITS, requires_grad=True)
    spans = torch.randn(1, 1, len(CATEGORIES), requires_grad=True)
    detection.loss(labels, spans, batch).total.backward()
    assert labels.grad is not None
    assert spans.grad is not None
    touched = labels.grad[0, 0].ne(0)
    assert touched[SLICES["bias"]].all()
    assert touched.sum() == len(LABELS["bias"])
    assert not spans.grad.any()
