from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sets
from srllm_guard.errors import ConfigError
from train import corpus, sources
from train.config import Config
from train.example import Example, labelled, occurrences


def put(folder: Path, part: str, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / part / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def marked(text: str, *phrases: str) -> Example:
    spans = occurrences(text, phrases, "toxicity")
    return Example(text, labels=labelled(unsafe="yes"), spans=spans)


def safe(text: str) -> Example:
    return Example(text, labels=labelled(unsafe="no"), spans=())


# coarse words ---------------------------------------------------------------------------------


def test_words_are_coarse_when_they_are_mostly_marked() -> None:
    examples = [marked("what Crap this is", "Crap"), marked("crap, all of it", "crap")] * 3
    examples += [marked("the damn boat", "damn")] * 4  # too rare
    examples += [marked("a bloody day", "bloody"), safe("a bloody nose")] * 5  # half of the time
    examples += [marked("so lousy a day", "so lousy"), safe("so it is")] * 6
    assert corpus.coarse_words(examples) == {"crap", "lousy"}


@pytest.mark.parametrize(("least", "found"), [(4, {"crap"}), (5, set())])
def test_a_word_is_marked_at_least_so_often(least: int, found: set[str]) -> None:
    assert corpus.coarse_words([marked("such crap", "crap")] * 4, least) == found


def test_texts_without_marks_make_nothing_coarse() -> None:
    unknown = Example("crap", labels=labelled(unsafe="yes"))
    assert unknown.spans is None
    assert corpus.coarse_words([unknown] * 9) == frozenset()
    assert corpus.coarse_words([]) == frozenset()
    # Every text without a mark in it counts against the word.
    assert corpus.coarse_words([unknown] * 5 + [marked("crap", "crap")] * 5) == frozenset()
    assert corpus.coarse_words([unknown] * 5 + [marked("crap", "crap")] * 6) == {"crap"}


def test_only_safe_examples_are_dropped_for_a_coarse_word() -> None:
    kept = [
        marked("such crap", "crap"),
        safe("scrap metal and crappie fish"),  # other words with the same letters
        safe("fine weather"),
    ]
    gone = [safe("Such CRAP!"), Example("crap, I think"), safe("it's crap.")]
    found = corpus.without_coarse(
        [kept[0], gone[0], kept[1], *gone[1:], kept[2]], frozenset({"crap"})
    )
    assert found == kept
    assert corpus.without_coarse(gone, frozenset()) == gone


def test_sexism_that_is_none_may_not_be_coarse(
    tmp_path: Path, config: Config, authored: Path
) -> None:
    """What the words of paradetox say of edos: from the files to the training examples."""
    rude = [{"text": f"what crap is number {n}", "safe": [f"what is number {n}"]} for n in range(9)]
    put(tmp_path, "train", "paradetox", rude)
    rows = [("women are crap", 1), ("this crap again", 0), ("a fine day", 0), ("women are dull", 1)]
    put(tmp_path, "train", "edos", [{"text": text, "sexist": sexist} for text, sexist in rows])
    put(tmp_path, "dev", "paradetox", [{"text": "such a crap day", "safe": ["such a day"]}])
    put(tmp_path, "dev", "edos", [{"text": "that crap", "sexist": 0}])

    def texts(part: str, *names: str, negatives: bool = True) -> set[str]:
        wanted = replace(config.data, detection=dict.fromkeys(names, 0), edos_negatives=negatives)
        found = corpus.corpus(replace(config, data=wanted), tmp_path, authored)
        return {example.text for example in getattr(found, part)["edos"]}

    assert texts("train", "edos", "paradetox") == {text for text, _ in rows} - {"this crap again"}
    assert texts("train", "edos") == {text for text, _ in rows}  # nothing says what is coarse
    assert texts("train", "edos", "paradetox", negatives=False) == {
        text for text, sexist in rows if sexist
    }
    assert texts("dev", "edos", "paradetox") == {"that crap"}  # nothing is measured selectively


# safe texts -----------------------------------------------------------------------------------


@pytest.fixture
def prose(tmp_path: Path) -> dict[str, list[str]]:
    """Safe sets with 400 texts each, in `tmp_path`."""
    found = {name: [f"{name} says {n}" for n in range(400)] for name in sets.ORDINARY}
    for name, texts in found.items():
        put(tmp_path, "safe", name, [{"text": text} for text in texts])
    return found


def test_thresholds_see_a_quarter_and_benchmarks_the_rest(
    tmp_path: Path, prose: dict[str, list[str]], authored: Path
) -> None:
    chosen = corpus.ordinary(tmp_path)
    measured = {
        one.name: [case.text for case in one.cases]
        for one in sets.ordinary(tmp_path, authored, "dev")
    }
    for name, texts in prose.items():
        mine = [text for text in chosen if text in texts]
        assert 0.2 < len(mine) / len(texts) < 0.3, name
        assert sorted(mine + measured[name]) == sorted(texts), name
    assert len(chosen) == len(set(chosen))


def test_the_quarter_does_not_depend_on_what_else_is_there(
    tmp_path: Path, prose: dict[str, list[str]]
) -> None:
    before = set(corpus.ordinary(tmp_path))
    name, texts = next(iter(prose.items()))
    put(tmp_path, "safe", name, [{"text": text} for text in reversed(texts[::2])])
    assert set(corpus.ordinary(tmp_path)) == before - set(texts[1::2])


def test_rows_without_text_say_nothing_about_thresholds(
    tmp_path: Path, prose: dict[str, list[str]]
) -> None:
    before = corpus.ordinary(tmp_path)
    put(tmp_path, "safe", "zz_other", [{"id": 1}, {"text": None}, {"text": 3}])
    assert corpus.ordinary(tmp_path) == before


def test_a_copy_with_other_blanks_is_on_the_same_side(
    tmp_path: Path, prose: dict[str, list[str]]
) -> None:
    chosen = corpus.ordinary(tmp_path)
    for name, texts in prose.items():
        put(tmp_path, "safe", name, [{"text": f" {text.upper()}\n"} for text in texts])
    assert [" ".join(text.split()).lower() for text in corpus.ordinary(tmp_path)] == chosen


def test_a_run_reads_the_quarter_and_nothing_without_data(
    tmp_path: Path, prose: dict[str, list[str]], config: Config, authored: Path
) -> None:
    found = corpus.corpus(config, tmp_path, authored)
    assert found.ordinary == corpus.ordinary(tmp_path)
    assert 200 < len(found.ordinary) < 400
    assert corpus.corpus(config, None, authored).ordinary == []
    assert corpus.ordinary(tmp_path / "nowhere") == []


# where sources are ----------------------------------------------------------------------------


def test_where_the_sources_are(config: Config, tmp_path: Path, authored: Path) -> None:
    def where(name: str) -> Path | str:
        return corpus.place(config, name, tmp_path, authored)

    assert where("cmd") == authored
    assert where("hub") == sources.HUB_DATASET
    assert where("csv") == tmp_path / "train" / "csv.csv"
    assert where("pairs") == tmp_path / "train" / "pairs.jsonl"
    assert where("edos") == tmp_path
    assert corpus.place(config, "cmd", None, authored) == authored
    with pytest.raises(ConfigError, match=r"'edos'.*not in this repository.*--data"):
        corpus.place(config, "edos", None, authored)


def test_evaluation_texts_are_all_that_four_folders_say(tmp_path: Path) -> None:
    for part in (*corpus.EVALUATION, "train"):
        rows: list[dict[str, Any]] = [{"text": f"The {part}.", "label": "hate"}, {"id": 7}]
        put(tmp_path, part, "some", [*rows, {"text": None}])
    put(tmp_path, "dev", "pairs", [{"text": "The one.", "safe": ["The other."]}])
    items = {"data": [{"sentences": [{"sentence": "The third."}]}]}
    (tmp_path / "bench" / "items.json").write_text(json.dumps(items))
    assert corpus.evaluation_texts(tmp_path) == [
        *("The one.", "The other.", "The dev."),
        *("The bench.", "The third.", "The judge.", "The safe."),
    ]


def test_rewrites_of_dev_and_test_records_are_not_trained_on(
    config: Config, tmp_path: Path, authored: Path
) -> None:
    before = corpus.corpus(config, None, authored).train["cmd"]
    barred = next(example for example in before if example.unsafe is False)
    [path] = sources.files(authored)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    row = next(row for row in rows if row["split"] != "train" and row.get("safe"))
    rows[rows.index(row)] = {**row, "safe": f" {barred.text.upper()}"}
    put(tmp_path, "own", "some", rows)
    after = corpus.corpus(config, None, tmp_path / "own").train["cmd"]
    assert [each.text for each in after] == [e.text for e in before if e.text != barred.text]


# variations -----------------------------------------------------------------------------------


def test_changed_sentences_are_safe_as_they_became() -> None:
    text = "Lunch is at noon. Women can't drive. See you."
    labels = labelled(unsafe="yes", bias="yes", toxicity="mild", harm="medium", sentiment="neutral")
    unsafe = Example(
        text,
        ("Lunch is at noon. Anyone can drive. See you.",),
        labels,
        occurrences(text, ["Women can't drive."], "bias"),
        source="cmd",
        split="train",
        id="a-1",
    )
    [found] = corpus.variations([unsafe, safe("Women drive.")])
    assert found.text == "Anyone can drive."
    assert found.context == "Lunch is at noon."
    assert found.unsafe is False
    assert found.spans == ()
    assert found.labels["harm"] == {"low"}
    assert "sentiment" not in found.labels  # it may be as negative as it was
    assert (found.source, found.split) == ("cmd", "train")


def test_a_run_learns_variations_where_it_is_told_to(
    config: Config, tmp_path: Path, authored: Path
) -> None:
    data = replace(config.data, variations=True)
    plain = corpus.corpus(config, None, authored).train["cmd"]
    more = corpus.corpus(replace(config, data=data), None, authored)
    added = more.train["cmd"][len(plain) :]
    assert added
    assert all(example.unsafe is False for example in added)
    assert len(more.dev["cmd"]) == len(corpus.corpus(config, None, authored).dev["cmd"])
