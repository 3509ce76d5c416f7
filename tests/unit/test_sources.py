from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from srllm_guard.errors import MissingExtra
from train.example import labelled, occurrences
from train.schema import SchemaError
from train.sources import SOURCES, Example, Options, held_out, load, load_csv, load_hub, without

UNSAFE: dict[str, Any] = {
    "id": "r-1",
    "text": "The old fools upstairs lost 3 keys.",
    "safe": "The neighbours upstairs lost 3 keys.",
    "bias": "yes",
    "toxicity": "mild",
    "sentiment": "negative",
    "harm": "low",
    "targets": ["age"],
    "kind": "derogation",
    "biased_words": ["old fools"],
    "genre": "forum",
    "split": "train",
}
SAFE: dict[str, Any] = UNSAFE | {
    "id": "r-2",
    "text": "The neighbours lost 3 keys.",
    "safe": "The neighbours lost 3 keys.",
    "bias": "no",
    "toxicity": "none",
    "kind": "none",
    "biased_words": [],
}

ALL = Options(dev_share=0.0)
"""Nothing is held out, so every row of a training file is there to look at."""


def put(folder: Path, name: str, rows: list[dict[str, Any]], part: str = "train") -> Path:
    path = folder / part / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def read(folder: Path, name: str, *rows: dict[str, Any], options: Options = ALL) -> list[Example]:
    return load(put(folder, name, list(rows)), name, "train", options)


def shown(example: Example) -> list[tuple[str, str]] | None:
    if example.spans is None:
        return None
    return [(example.text[start:end], category) for start, end, category in example.spans]


# cmd ------------------------------------------------------------------------------------------


def cmd(folder: Path, *rows: dict[str, Any]) -> list[Example]:
    put(folder, "cmd", list(rows), part="authored")
    return load(folder, "cmd", "train")


def test_cmd_labels_are_exact(tmp_path: Path) -> None:
    unsafe, safe = cmd(tmp_path, UNSAFE, SAFE)
    assert unsafe.labels == labelled(
        unsafe="yes", bias="yes", toxicity="mild", sentiment="negative", harm="low"
    )
    assert unsafe.safe == (UNSAFE["safe"],)
    assert shown(unsafe) == [("old fools", "bias")]
    assert (unsafe.id, unsafe.source, unsafe.split) == ("r-1", "cmd", "train")
    assert safe.labels == labelled(
        unsafe="no", bias="no", toxicity="none", sentiment="negative", harm="low"
    )
    assert safe.safe == (safe.text,)
    assert safe.spans == ()


@pytest.mark.parametrize(
    ("kind", "category"),
    [
        ("threat", "harm"),
        ("insult", "toxicity"),
        ("none", "toxicity"),
        ("dehumanisation", "bias"),
        ("stereotype", "bias"),
    ],
)
def test_cmd_category_follows_the_kind(tmp_path: Path, kind: str, category: str) -> None:
    (example,) = cmd(tmp_path, UNSAFE | {"kind": kind})
    assert shown(example) == [("old fools", category)]


def test_cmd_without_biased_words_or_safe_variation(tmp_path: Path) -> None:
    (example,) = cmd(tmp_path, UNSAFE | {"biased_words": [], "safe": None})
    assert example.spans is None
    assert example.safe == ()


def test_cmd_splits_come_from_the_records(tmp_path: Path) -> None:
    rows = [UNSAFE | {"id": split, "split": split} for split in ("train", "dev", "test")]
    path = put(tmp_path, "a", rows) / "train"
    for split in ("train", "dev", "test"):
        assert [example.id for example in load(path, "cmd", split)] == [split]
        assert [example.id for example in load(path / "a.jsonl", "cmd", split)] == [split]


def test_cmd_errors_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r'cmd\.jsonl line 2: .*field "harm"'):
        cmd(tmp_path, UNSAFE, UNSAFE | {"harm": "huge"})


def test_cmd_without_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.jsonl file"):
        load(tmp_path, "cmd", "train")


# files of a data folder -----------------------------------------------------------------------


def test_paradetox(tmp_path: Path) -> None:
    row = {"text": "what a damn clown he is", "safe": ["what is he", "What is he like?"]}
    first, *rest = read(tmp_path, "paradetox", row)
    assert first.labels == labelled(unsafe="yes", toxicity="mild high")
    assert first.safe == ("what is he", "What is he like?")
    assert shown(first) == [("a damn clown", "toxicity")]
    assert [example.text for example in rest] == list(first.safe)
    assert all(example.labels == labelled(unsafe="no", toxicity="none") for example in rest)
    assert all(example.spans == () and example.safe == () for example in rest)
    assert len({example.id for example in (first, *rest)}) == 3


def test_paradetox_rewrites_can_be_left_out(tmp_path: Path) -> None:
    row = {"text": "what a clown", "safe": ["what a person"]}
    options = Options(dev_share=0, rewrites_as_safe=False)
    assert len(read(tmp_path, "paradetox", row, options=options)) == 1


def test_paradetox_rewrites_that_change_nothing_are_no_rewrites(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "paradetox", {"text": "you clown .", "safe": ["You clown!"]})
    assert example.safe == ()
    assert example.spans is None
    assert example.labels["unsafe"] == {"yes"}


def test_paradetox_not_toxic(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "paradetox_not_toxic", {"text": "fine", "toxic": 0})
    assert example.labels == labelled(unsafe="no", toxicity="none")
    assert example.spans is None


def test_toxic_spans(tmp_path: Path) -> None:
    text = "you silly clown go home"
    examples = read(
        tmp_path,
        "toxic_spans",
        {"text": text, "toxic": 1, "spans": [[10, 16], [4, 9]]},
        {"text": "unclear", "toxic": None, "spans": []},
    )
    assert [shown(example) for example in examples] == [
        [("silly", "toxicity"), ("clown", "toxicity")]
    ]
    assert examples[0].labels == labelled(unsafe="yes", toxicity="mild high")


@pytest.mark.parametrize("span", [[-1, 2], [2, 2], [0, 99], ["0", 2], [1], 3])
def test_toxic_spans_outside_of_the_text_are_refused(tmp_path: Path, span: object) -> None:
    with pytest.raises(SchemaError, match=r'toxic_spans\.jsonl line 1: field "spans"'):
        read(tmp_path, "toxic_spans", {"text": "you clown", "toxic": 1, "spans": [span]})


def test_edos(tmp_path: Path) -> None:
    rows = [{"text": "a", "sexist": 1}, {"text": "b", "sexist": 0}]
    (example,) = read(tmp_path, "edos", *rows)
    assert (example.text, example.labels) == ("a", labelled(unsafe="yes", bias="yes"))
    both = read(tmp_path, "edos", *rows, options=Options(dev_share=0, edos_negatives=True))
    assert [one.labels["unsafe"] for one in both] == [{"yes"}, {"no"}]


def test_implicit_hate(tmp_path: Path) -> None:
    kinds = ("not_hate", "implicit_hate", "explicit_hate")
    rows = [{"text": kind, "hate": kind, "target": None, "implied": None} for kind in kinds]
    assert [example.labels for example in read(tmp_path, "implicit_hate", *rows)] == [
        labelled(unsafe="no", bias="no"),
        labelled(unsafe="yes", bias="yes"),
        labelled(unsafe="yes", bias="yes", toxicity="mild high"),
    ]


def test_anno_lexical(tmp_path: Path) -> None:
    rows = [{"text": "plain", "loaded": 0}, {"text": "loaded", "loaded": 1}]
    (example,) = read(tmp_path, "anno_lexical", *rows)
    assert example.text == "plain"
    assert example.labels == labelled(unsafe="no", bias="no", toxicity="none", harm="low")
    assert example.spans == ()


def test_diasafety(tmp_path: Path) -> None:
    rows = [
        {"text": str(number), "context": f"c{number}", "category": category, "unsafe": unsafe}
        for number, (category, unsafe) in enumerate(
            [
                ("Biased Opinion", 1),
                ("Offending User", 1),
                ("Risk Ignorance", 1),
                ("Toxicity Agreement", 1),
                ("Unauthorized Expertise", 1),
                ("Risk Ignorance", 0),
                ("Offending User", 0),
            ]
        )
    ]
    found = {(one.text, one.context): one.labels for one in read(tmp_path, "diasafety", *rows)}
    assert found == {
        ("0", "c0"): labelled(unsafe="yes", bias="yes"),
        ("1", "c1"): labelled(unsafe="yes", toxicity="mild high"),
        ("5", "c5"): labelled(unsafe="no", toxicity="none"),
        ("6", "c6"): labelled(unsafe="no", toxicity="none"),
    }


def test_hatemoji_build(tmp_path: Path) -> None:
    rows = [{"text": "a", "hate": 1}, {"text": "b", "hate": 0}]
    labels = [example.labels for example in read(tmp_path, "hatemoji_build", *rows)]
    assert labels == [labelled(unsafe="yes"), labelled(unsafe="no")]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("paradetox", {"text": "a"}),
        ("paradetox", {"text": "a", "safe": [1]}),
        ("paradetox_not_toxic", {"text": "a", "toxic": 1}),
        ("toxic_spans", {"text": "a", "toxic": 0, "spans": []}),
        ("edos", {"text": "a", "sexist": 2}),
        ("edos", {"sexist": 1}),
        ("implicit_hate", {"text": "a", "hate": "hate"}),
        ("anno_lexical", {"text": "a", "loaded": None}),
        ("diasafety", {"text": "a", "category": "Biased Opinion", "unsafe": 1}),
        ("hatemoji_build", {"text": 3, "hate": 1}),
    ],
)
def test_wrong_rows_are_refused_with_their_place(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    with pytest.raises(SchemaError, match=rf"{name}\.jsonl line 1: field "):
        read(tmp_path, name, row)


# the paper's CSV and Hub set, and generic pairs -----------------------------------------------

CSV = """\
Original Sentence,BIAS,Debiased ,Note
"Old folk, as ever, cannot learn.",Yes,"Anyone can learn.",x
The vote is on Monday.,No,The vote is on Monday.,x
The damn vote is late.,no,The vote is late.,x
"""


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV, encoding="utf-8-sig")
    biased, fine, other = load_csv(path, "train", ALL)
    assert load(path, "csv", "train", ALL) == [biased, fine, other]
    assert biased.text == "Old folk, as ever, cannot learn."
    assert biased.safe == ("Anyone can learn.",)
    assert biased.labels == labelled(unsafe="yes", bias="yes")
    assert biased.spans is None
    assert fine.labels == labelled(unsafe="no", bias="no")
    assert other.labels == labelled(bias="no")


@pytest.mark.parametrize("rows", ["", "a,Yes\n"])
def test_csv_without_a_column_names_those_there_are(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("original sentence ,bias,Notes\n" + rows, encoding="utf-8")
    with pytest.raises(SchemaError) as error:
        load_csv(path)
    assert 'a.csv: no column "Debiased"' in str(error.value)
    assert '"original sentence ", "bias", "Notes"' in str(error.value)


def test_csv_with_another_verdict(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Original Sentence,BIAS,Debiased\na,Perhaps,b\n", encoding="utf-8")
    with pytest.raises(SchemaError, match=r'a\.csv row 1: column "BIAS": expected Yes or No'):
        load_csv(path)


# `datasets` leaves a file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_hub(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="reads a folder with the real `datasets`")
    (tmp_path / "test.csv").write_text(CSV, encoding="utf-8")
    examples = load_hub(str(tmp_path), "train", ALL)
    assert [example.labels.get("unsafe") for example in examples] == [{"yes"}, {"no"}, None]
    assert {example.source for example in examples} == {"hub"}
    assert load(str(tmp_path), "hub", "train", ALL) == examples


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"srllm-guard\[train\]"):
        load_hub()


def test_pairs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "you clown", "safe": "you", "id": "x", "split": "dev"},
        {"text": "fine", "safe": ["fine"], "context": "c"},
        {"text": "so what", "safe": [], "harm": "high", "spans": [[3, 7, "harm"]]},
        {"text": "he said clown", "safe": "he said it", "unsafe": "no", "bias": "no"},
    ]
    path = put(tmp_path, "p", rows) / "train" / "p.jsonl"
    (dev,) = load(path, "pairs", "dev", ALL)
    assert (dev.id, dev.safe, dev.labels) == ("x", ("you",), labelled(unsafe="yes"))
    fine, threat, quoted = load(path, "pairs", "train", ALL)
    assert (fine.labels, fine.context) == (labelled(unsafe="no"), "c")
    assert (threat.labels, threat.safe) == (labelled(harm="high"), ())
    assert shown(threat) == [("what", "harm")]
    assert quoted.labels == labelled(unsafe="no", bias="no")


@pytest.mark.parametrize("change", [{"harm": "huge"}, {"split": "valid"}, {"spans": [[0, 1]]}])
def test_pairs_with_wrong_values(tmp_path: Path, change: dict[str, Any]) -> None:
    path = put(tmp_path, "p", [{"text": "a b", "safe": "c"} | change]) / "train" / "p.jsonl"
    with pytest.raises(SchemaError, match=rf'p\.jsonl line 1: field "{next(iter(change))}"'):
        load(path, "pairs", "train")


# splits ---------------------------------------------------------------------------------------

ROWS = [{"text": f"text number {number}", "hate": number % 2} for number in range(400)]


@pytest.mark.parametrize("empty_dev_file", [True, False])
def test_without_a_dev_file_a_share_is_held_out(tmp_path: Path, empty_dev_file: bool) -> None:
    put(tmp_path, "hatemoji_build", ROWS)
    if empty_dev_file:
        put(tmp_path, "hatemoji_build", [], part="dev")
    train, dev = (load(tmp_path, "hatemoji_build", split) for split in ("train", "dev"))
    assert {one.text for one in (*train, *dev)} == {row["text"] for row in ROWS}
    assert not {one.text for one in train} & {one.text for one in dev}
    assert len({one.id for one in (*train, *dev)}) == len(ROWS)
    assert 0.02 < len(dev) / len(ROWS) < 0.09
    assert {one.split for one in train} == {"train"}
    assert {one.split for one in dev} == {"dev"}
    half = load(tmp_path, "hatemoji_build", "dev", Options(dev_share=0.5))
    assert {one.text for one in dev} < {one.text for one in half}
    assert 0.4 < len(half) / len(ROWS) < 0.6


def test_with_a_dev_file_nothing_is_held_out(tmp_path: Path) -> None:
    put(tmp_path, "hatemoji_build", ROWS)
    put(tmp_path, "hatemoji_build", [{"text": "other", "hate": 1}], part="dev")
    assert len(load(tmp_path, "hatemoji_build", "train")) == len(ROWS)
    (dev,) = load(tmp_path, "hatemoji_build", "dev")
    assert (dev.text, dev.split) == ("other", "dev")


def test_rewrites_go_where_their_source_goes(tmp_path: Path) -> None:
    rows = [{"text": f"clown {n}", "safe": [f"person {n}", f"man {n}"]} for n in range(60)]
    put(tmp_path, "paradetox", rows)
    dev = load(tmp_path, "paradetox", "dev", Options(dev_share=0.3))
    numbers = [example.text.split()[1] for example in dev]
    assert len(dev) > 9
    assert all(numbers.count(number) == 3 for number in numbers)


def test_the_held_out_part_depends_on_the_letters_alone() -> None:
    texts = [f"Some text {number}" for number in range(200)]
    assert [held_out(text, 0.3) for text in texts] == [
        held_out(f" {text.upper()}\n", 0.3) for text in texts
    ]
    assert not any(held_out(text, 0.0) for text in texts)
    assert all(held_out(text, 1.0) for text in texts)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown source 'other'; the sources are cmd, paradetox"):
        load(tmp_path, "other", "train")
    with pytest.raises(ValueError, match="unknown split 'valid'; the splits are train, dev, test"):
        load(tmp_path, "edos", "valid")
    with pytest.raises(ValueError, match="'edos' has no test split"):
        load(tmp_path, "edos", "test")
    with pytest.raises(FileNotFoundError, match=r"edos\.jsonl"):
        load(tmp_path, "edos", "train")


# examples -------------------------------------------------------------------------------------


def test_texts_of_evaluation_sets_are_dropped() -> None:
    examples = [
        Example("One two"),
        Example("three", ("Four",)),
        Example("five"),
    ]
    assert without(examples, ["one  TWO", "four"]) == examples[2:]
    assert without(examples, ["fiv"]) == examples


def test_occurrences() -> None:
    def found(text: str, *phrases: str) -> list[str]:
        return [text[start:end] for start, end, _ in occurrences(text, phrases, "bias")]

    assert found("old folk told old tales", "old") == ["old", "old"]
    assert found("they told us", "old") == ["old"]
    assert found("lazy old folk", "old folk", "lazy old") == ["lazy old folk"]
    assert found("(a+b) a+b", "a+b") == ["a+b", "a+b"]
    assert found("text", "", "absent") == []


@pytest.mark.parametrize(
    "spans",
    [((0, 0, "bias"),), ((0, 9, "bias"),), ((0, 1, "other"),), ((2, 3, "bias"), (0, 1, "bias"))],
)
def test_wrong_spans_are_refused(spans: tuple[tuple[int, int, str], ...]) -> None:
    with pytest.raises(ValueError, match="span"):
        Example("text", spans=spans)


@pytest.mark.parametrize("labels", [{"bias": ""}, {"bias": "high"}, {"other": "yes"}])
def test_wrong_labels_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f'label "{next(iter(labels))}"'):
        Example("text", labels=labelled(**labels))


def test_examples_travel_between_processes_and_into_sets() -> None:
    example = Example("text", ("safe",), labelled(bias="yes"), ((0, 4, "bias"),))
    assert pickle.loads(pickle.dumps(example)) == example
    assert len({example, example}) == 1


def test_every_source_says_what_it_maps() -> None:
    assert set(SOURCES) == {
        *("cmd", "paradetox", "paradetox_not_toxic", "toxic_spans", "edos", "implicit_hate"),
        *("anno_lexical", "diasafety", "hatemoji_build", "hub", "csv", "pairs"),
    }
    assert all((loader.__doc__ or "").strip() for loader in SOURCES.values())


def test_a_csv_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("Original Sentence,BIAS,Debiased\nCaf\u00e9,Not Biased,\n".encode("cp1252"))
    with pytest.raises(SchemaError, match=r"rows\.csv: not UTF-8"):
        load_csv(path)
