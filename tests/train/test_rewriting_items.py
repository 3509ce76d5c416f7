from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srllm_guard.prompt import Prompt
from train import rewriting
from train.example import Example, labelled, occurrences
from train.sources import load

TEXT = "The bus was late. Old people are useless with phones. Bring 3 keys."
SAFE = "The bus was late. Some people need help with phones. Bring 3 keys."


def unsafe(text: str, safe: str, *words: str, source: str = "cmd") -> Example:
    spans = occurrences(text, words, "bias") or None
    return Example(text, (safe,), labelled(unsafe="yes"), spans, source=source)


def pairs(example: Example) -> list[rewriting.Pair]:
    return list(rewriting.pairs(example, random.Random(0)))


def marked(pair: rewriting.Pair) -> list[str]:
    return [pair.text[start:end] for start, end in pair.marks]


def test_only_the_changed_sentence_of_a_text_gives_a_pair() -> None:
    (pair,) = pairs(unsafe(TEXT, SAFE, "Old people are useless"))
    assert pair.text == "Old people are useless with phones."
    assert pair.safe == "Some people need help with phones."
    assert marked(pair) == ["Old people are useless"]
    assert pair.context == "The bus was late."


def test_marks_come_from_the_word_diff_where_no_span_is_known() -> None:
    example = unsafe("you are a damn fool", "you are mistaken", source="paradetox")
    (pair,) = pairs(example)
    assert (pair.text, pair.safe, pair.context) == ("you are a damn fool", "you are mistaken", "")
    assert marked(pair) == ["a damn fool"]


def test_one_sentence_may_become_two() -> None:
    example = unsafe(
        "It rained. Women cannot drive so Bo drives. We left.",
        "It rained. Not everyone likes to drive. Bo drives. We left.",
        "Women cannot drive",
    )
    (pair,) = pairs(example)
    assert pair.safe == "Not everyone likes to drive. Bo drives."


def test_dropped_and_merged_sentences_give_no_pair() -> None:
    dropped = unsafe("It rained. They smell. We left.", "It rained. We left.", "They smell")
    assert pairs(dropped) == []
    merged = unsafe("They smell. They steal. We left.", "It was loud. We left.", "smell", "steal")
    assert pairs(merged) == []


@pytest.mark.parametrize(
    "example",
    [
        Example("Fine.", ("Fine.",), labelled(unsafe="no"), (), source="cmd"),
        Example("Bad.", (), labelled(unsafe="yes"), source="edos"),
        Example("Unknown.", ("Known.",), source="hub"),
        Example("Bad.", ("  ",), labelled(unsafe="yes"), ((0, 3, "bias"),), source="pairs"),
    ],
)
def test_what_has_no_rewrite_gives_no_pair(example: Example) -> None:
    assert pairs(example) == []


def test_an_item_is_the_prompt_with_its_marks_and_the_answer_with_its_end(prompt: Prompt) -> None:
    example = unsafe(TEXT, SAFE, "Old people are useless")
    (item,) = rewriting.items([example], prompt, seed=0, noisy=0.0)
    expected = prompt.rewrite("Old people are useless with phones.", [(0, 22)], "The bus was late.")
    assert item.prompt == expected
    assert item.target == (*prompt.encode("Some people need help with phones."), prompt.end)
    assert len(item) == len(item.prompt) + len(item.target)


def test_labels_are_the_answer_and_nothing_else(prompt: Prompt) -> None:
    items = rewriting.items(
        [
            unsafe(TEXT, SAFE, "Old people are useless"),
            unsafe("you fool", "you are wrong", "fool", source="pairs"),
        ],
        prompt,
        seed=0,
        noisy=0.0,
    )
    batch = rewriting.collate(items)
    assert batch.ids.shape == batch.mask.shape == batch.labels.shape
    for row, item in enumerate(items):
        asked = len(item.prompt)
        assert tuple(batch.ids[row, : len(item)].tolist()) == item.prompt + item.target
        assert (batch.labels[row, :asked] == rewriting.IGNORED).all()
        assert tuple(batch.labels[row, asked : len(item)].tolist()) == item.target
        assert (batch.labels[row, len(item) :] == rewriting.IGNORED).all()
        assert batch.mask[row].sum() == len(item)
        assert batch.labels[row, len(item) - 1] == prompt.end


def test_where_a_variation_leaves_its_source(prompt: Prompt) -> None:
    source, target = prompt.target("you fool, wait for Ed"), prompt.target("you, wait for Ed now")
    copied = rewriting.left_source(source, target)
    assert len(copied) == len(target)
    places = [n for n, token in enumerate(copied) if token != rewriting.IGNORED]
    first = next(n for n, token in enumerate(target) if token != source[n])
    assert places == [first]  # what is put in, "now", takes the place of nothing
    assert copied[first] == source[first]
    assert set(rewriting.left_source(source, source)) == {rewriting.IGNORED}
    # A word that stands again behind the gap is no copy of the first one.
    assert rewriting.left_source((1, 2, 3, 1, 4), (1, 4)) == (rewriting.IGNORED, 2)


def test_a_batch_tells_what_copying_would_say(prompt: Prompt) -> None:
    fool = unsafe("you fool", "you are wrong", "fool", source="pairs")
    items = rewriting.items([fool], prompt, 0, noisy=0.0)
    items += rewriting.copies([Example("Fine.", labels=labelled(unsafe="no"))], prompt, 0, 1.0)
    batch = rewriting.collate(items)
    row = batch.copied[0, len(items[0].prompt) : len(items[0])]
    assert tuple(row.tolist()) == items[0].copied
    assert (row != rewriting.IGNORED).any()
    assert (batch.copied[1] == rewriting.IGNORED).all()


def test_copies_are_safe_texts_without_marks(prompt: Prompt, authored: Path) -> None:
    examples = load(authored, "cmd", "train")
    safe = [e for e in examples if e.labels["unsafe"] == {"no"}]
    items = rewriting.copies(examples, prompt, seed=0, share=1.0)
    assert [item.target for item in items] == [prompt.target(e.text) for e in safe]
    assert [item.prompt for item in items] == [prompt.rewrite(e.text, ()) for e in safe]
    some = rewriting.copies(examples, prompt, seed=0, share=0.5)
    assert 0 < len(some) < len(safe)
    assert rewriting.copies(examples, prompt, seed=0, share=0.0) == []


def test_authored_pairs_carry_their_marks(prompt: Prompt, authored: Path) -> None:
    examples = [e for e in load(authored, "cmd", "train") if e.labels["unsafe"] == {"yes"}]
    found = [(e, pair) for e in examples for pair in pairs(e)]
    assert len(found) >= len(examples) // 2
    for example, pair in found:
        assert pair.text in example.text
        assert pair.safe in example.safe[0]
        assert pair.text != pair.safe
        assert pair.marks


def test_noise_is_drawn_from_the_seed(prompt: Prompt, authored: Path) -> None:
    examples = load(authored, "cmd", "train")
    clean = rewriting.items(examples, prompt, seed=1, noisy=0.0)
    noisy = rewriting.items(examples, prompt, seed=1, noisy=1.0)
    assert noisy == rewriting.items(examples, prompt, seed=1, noisy=1.0)
    assert noisy != rewriting.items(examples, prompt, seed=2, noisy=1.0)
    assert [item.target for item in noisy] == [item.target for item in clean]
    assert noisy != clean


WORDS = st.lists(st.text("abc.,é🙂", min_size=1, max_size=6), min_size=1, max_size=12)


@given(WORDS, st.data(), st.integers(0, 10_000))
def test_imperfect_marks_stay_on_word_borders(
    words: list[str], data: st.DataObject, seed: int
) -> None:
    text = " ".join(words)
    borders = [0]
    for word in words:
        borders.append(borders[-1] + len(word) + 1)
    count = data.draw(st.integers(1, min(3, len(words))))
    hit = sorted(data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1, max_size=count)))
    marks = [(borders[n], borders[n] + len(words[n])) for n in hit]
    found = rewriting.imperfect(marks, text, random.Random(seed))
    assert found
    starts = {borders[n] for n in range(len(words))}
    ends = {borders[n] + len(words[n]) for n in range(len(words))}
    last = -1
    for start, end in found:
        assert start in starts
        assert end in ends
        assert last < start < end <= len(text)
        last = end


def test_imperfect_marks_err_in_every_way_and_often_do_not() -> None:
    text = "one two three four five six seven eight"
    mark = (text.index("four"), text.index("six") - 1)
    draws = [rewriting.imperfect([mark], text, random.Random(n)) for n in range(300)]
    seen = {text[start:end] for ((start, end), *_) in draws}
    assert {"four five", "three four five", "five", "four", "four five six", text} <= seen
    assert sum(found == (mark,) for found in draws) > 60


def test_pairs_that_bring_many_new_words_can_be_left_out(prompt: Prompt) -> None:
    edit = unsafe("They drive badly, the fools.", "They drive badly.", "the fools")
    invention = unsafe("They smell.", "We met friendly neighbours with beautiful gardens.", "smell")
    public = unsafe("you damn fool", "you made quite some strange mistake", source="paradetox")
    examples = [edit, invention, public]
    assert len(rewriting.items(examples, prompt, 0)) == 3
    few = rewriting.items(examples, prompt, 0, noisy=0, most_new=1)
    targets = [prompt.decode(item.target[:-1]) for item in few]
    assert targets == [edit.safe[0], public.safe[0]]
    more = rewriting.Pair("They smell.", ((5, 10),), "They.")
    added = rewriting.items([], prompt, 0, noisy=0, more=[more])
    assert [prompt.decode(item.target[:-1]) for item in added] == ["They."]


def test_the_nearest_variation_is_taught_and_a_far_one_is_not(prompt: Prompt) -> None:
    text = "you damn fool, come here"
    far, near = "you made some strange mistake, walk over", "you, come here"
    labels = labelled(unsafe="yes")
    both = Example(text, (far, near), labels, None, source="paradetox")
    alone = Example(text, (far,), labels, None, source="paradetox")
    for seed in range(5):
        items = rewriting.items([both, alone], prompt, seed, most_new=1, nearest=True)
        assert [prompt.decode(item.target[:-1]) for item in items] == [near]


def test_context_is_cut_at_a_word() -> None:
    text = "word " * 100 + "Here."
    context = rewriting.left_context(text, len(text) - 5)
    assert rewriting.MAX_CONTEXT - 10 < len(context) <= rewriting.MAX_CONTEXT
    assert set(context.split()) == {"word"}
    assert rewriting.left_context("Hi. You.", 4) == "Hi."
    assert rewriting.left_context("You.", 0) == ""
