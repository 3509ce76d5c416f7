from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import groups, identity, report
from benchmarks.detection import Judge
from srllm_guard import Policy
from tests.byte_engine import ByteEngine, runtime
from train.schema import SchemaError


def judge(*words: str) -> Judge:
    """The guard's own path, on an engine to which these words are unsafe."""
    return Judge(runtime(ByteEngine(words=dict.fromkeys(words, "bias"))), Policy(), batch=32)


def write(path: Path, *rows: Mapping[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_terms_are_many_and_of_every_kind() -> None:
    known = groups.terms()
    assert len(known) >= 60
    assert len({term.plural for term in known}) == len(known)
    assert len({term.singular for term in known}) == len(known)
    kinds = {term.kind for term in known} - {groups.REFERENCE}
    assert len(kinds) == 13
    assert all(sum(term.kind == kind for term in known) >= 4 for kind in kinds)


@pytest.mark.parametrize("term", groups.terms(), ids=lambda term: term.plural)
def test_terms_have_the_right_article_and_a_plural(term: groups.Term) -> None:
    article, _, name = term.singular.partition(" ")
    sounds = re.match(r"[aeio]|un(?!i)", name, re.IGNORECASE)
    assert article == ("an" if sounds else "a")
    assert term.plural != name
    assert re.search(r"(?:s|men|people)$|^people of", term.plural)
    assert term.plural[0] == name[0]


@pytest.mark.parametrize("template", groups.TEMPLATES)
def test_templates_take_one_term_and_keep_their_case(template: str) -> None:
    assert len(re.findall(r"\{[aAsS]\}", template)) == template.count("{") == 1
    made = groups.filled(template, groups.Term("an Asian woman", "Asian women", "race"))
    assert re.search(r"\b[Aa]n Asian woman\b|\bAsian women\b", made)
    capital = re.search(r"\{[AS]\}", template)
    assert (
        capital is None
        or template[: capital.start()] == ""
        or template[capital.start() - 2] in "!."
    )


def test_gap_names_all_at_its_ends() -> None:
    found = identity.gap({"a": 0.5, "b": 0.125, "c": 0.5, "d": 0.25})
    assert found == {
        "points": 37.5,
        "minimum": {"value": 0.125, "names": ["b"]},
        "maximum": {"value": 0.5, "names": ["a", "c"]},
    }
    assert identity.gap({}) is None


def test_a_detector_that_flags_one_group_is_found_out() -> None:
    found = identity.templates(judge("sikh", "lisbon"))
    count = len(groups.TEMPLATES)
    assert found["sentences"] == count * found["terms"]
    assert found["by_term"]["Sikhs"] == {"kind": "religion", "flagged": 1.0}
    assert found["by_term"]["Muslims"]["flagged"] == pytest.approx(1 / count, abs=1e-4)
    terms = found["gap_between_terms"]
    assert terms["maximum"] == {"value": 1.0, "names": ["Sikhs"]}
    assert terms["points"] == pytest.approx(100 * (1 - 1 / count), abs=0.01)
    assert "people" not in terms["minimum"]["names"]  # the reference is no group
    kinds = found["gap_between_kinds"]
    assert kinds["maximum"]["names"] == ["religion"]
    assert found["by_kind"]["religion"]["value"] == kinds["maximum"]["value"]
    assert found["by_kind"][groups.REFERENCE]["value"] == pytest.approx(1 / count, abs=1e-4)
    assert sum(share == 1.0 for share in found["by_template"].values()) == 1


ROWS = (
    {"Original": "They sang.", "gender_a_man": "A man sang.", "race_x": "A lazy singer sang."},
    {"Original": "Dinner was good.", "gender_a_man": "He ate.", "race_x": "A guest ate."},
    {"Original": "A lazy cat.", "gender_a_man": "His lazy cat.", "race_x": "That lazy cat."},
    {"Original": "A stupid rule.", "gender_a_man": "His rule.", "race_x": "Their rule."},
)


def test_counterfactual_variants_are_compared_with_the_original(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", *ROWS)
    found = identity.counterfactual(judge("lazy", "stupid"), path)
    assert found["rows"] == 4
    assert {n: share["value"] for n, share in found["flagged"].items()} == {
        "Original": 0.5,
        "gender_a_man": 0.25,
        "race_x": 0.5,
    }
    assert found["consistency"]["value"] == 0.5
    assert found["gap"]["points"] == 25.0
    assert found["gap"]["maximum"]["names"] == ["Original", "race_x"]
    assert identity.counterfactual(judge("lazy"), path, limit=1)["rows"] == 1


def test_counterfactual_rows_must_be_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", ROWS[0], {"Original": "They sang.", "race_x": "He sang."})
    with pytest.raises(SchemaError, match="line 2"):
        identity.counterfactual(judge(), path)
    with pytest.raises(SchemaError, match="line 1"):
        identity.counterfactual(judge(), write(tmp_path / "d.jsonl", {"text": "They sang."}))


def test_winogender_by_pronoun(tmp_path: Path) -> None:
    rows = [
        {"id": f"nurse.patient.{n}.{gender}.txt", "text": f"{verb} {pronoun} chart."}
        for n, verb in enumerate(("The nurse read", "The patient saw"))
        for gender, pronoun in (("male", "his"), ("female", "her"), ("neutral", "their"))
    ]
    path = write(tmp_path / "w.jsonl", *rows)
    found = identity.winogender(judge("read her"), path)
    assert found["rows"] == 2
    assert found["flagged"]["female"]["value"] == 0.5
    assert found["flagged"]["male"]["value"] == 0.0
    assert found["consistency"]["value"] == 0.5
    assert found["gap"]["points"] == 50.0
    write(path, *rows[1:])
    with pytest.raises(SchemaError, match=r"nurse\.patient\.0"):
        identity.winogender(judge(), path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("My Mexican-American cousin cooks", {"Mexican"}),
        ("Muslims came here from the middle east", {"Muslim", "Middle Eastern"}),
        ("people with mental disabilities", {"mental disability"}),
        ("disabled people, and blind ones", {"physical disability"}),
        ("trans people are not mentally ill", {"LGBTQ", "LGBTQ: transgender"}),
        ("she is bi, not gay", {"LGBTQ", "LGBTQ: bisexual", "LGBTQ: gay, lesbian"}),
        ("a native speaker of English", set()),
        ("Natives and native americans", {"Native American"}),
        ("the big transport company of Asiana", set()),
    ],
)
def test_target_groups_are_known_by_their_words(text: str, names: set[str]) -> None:
    assert groups.targets(text) == names


def test_toxigen_by_group(tmp_path: Path) -> None:
    rows = [{"text": f"jews are lazy, part {n}", "label": "hate"} for n in range(10)]
    rows += [{"text": f"jewish songs, part {n}", "label": "neutral"} for n in range(10)]
    rows += [{"text": f"muslims are late, part {n}", "label": "hate"} for n in range(10)]
    rows += [{"text": f"lazy muslims rest, part {n}", "label": "neutral"} for n in range(10)]
    rows += [{"text": "a lazy asian", "label": "hate"}, {"text": "no group", "label": "neutral"}]
    found = identity.toxigen_groups(judge("lazy"), write(tmp_path / "t.jsonl", *rows, rows[0]))
    assert (found["texts"], found["repeated"], found["without_group"]) == (42, 1, 1)
    shares = {
        name: (row["recall"]["value"], row["false_positive_rate"]["value"])
        for name, row in found["groups"].items()
        if row["hate"] and row["neutral"]
    }
    assert shares == {"Jewish": (1.0, 0.0), "Muslim": (0.0, 1.0)}
    assert found["groups"]["Asian"]["hate"] == 1
    assert found["groups"]["Asian"]["false_positive_rate"] is None
    assert found["gap_of_recall"]["minimum"]["names"] == ["Muslim"]
    assert found["gap_of_false_positive_rate"]["points"] == 100.0
    assert found["all"]["hate"] == 21


def test_from_data_to_tables(byte_engine: ByteEngine, tmp_path: Path) -> None:
    write(tmp_path / "bench" / "counterfactual.jsonl", *ROWS)
    hate = {"text": "mexicans are lazy gherkins", "label": "hate"}
    write(tmp_path / "bench" / "toxigen_demonstrations.jsonl", hate)
    out = tmp_path / "out" / "identity.json"
    options = ["--data", str(tmp_path), "--limit", "4", "--out", str(out)]
    args = report.arguments("What.", "identity").parse_args(options)
    content = identity.run(args, runtime(byte_engine))
    assert "winogender" not in content  # not in the folder
    assert content["templates"]["templates"] == 4
    assert content["toxigen_groups"]["gap_of_recall"] is None
    markdown = report.write(out, content, identity.tables(content))
    assert json.loads(out.read_text()) == content
    assert "| Mexican | 1 | 1.000 [0.206, 1.000] | 0 | - |" in markdown
    assert "| same decision for all, of 4 rows |" in markdown
    assert "bench/counterfactual.jsonl" in content["header"]["data"]
    assert "gherkins" not in out.read_text() + markdown
    assert str(tmp_path) not in out.read_text() + markdown


def test_a_missing_bundle_ends_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert identity.main(["--data", str(tmp_path), "--model", "./no/such/bundle"]) == 1
    assert "no/such/bundle" in capsys.readouterr().err
