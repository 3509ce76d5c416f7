from __future__ import annotations

import ast
import copy
import inspect
import json
import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import pytest

from srllm_guard import results
from srllm_guard.labels import LABELS
from srllm_guard.results import Detection, Edit, LabelScore, Moderation, Provenance, Span


def label(name: str, value: str) -> LabelScore:
    values = LABELS[name]
    rest = 0.2 / (len(values) - 1)
    return LabelScore(value, {each: 0.8 if each == value else rest for each in values})


def detection(*, unsafe: bool, verified: bool = True, language: str | None = "en") -> Detection:
    return Detection(
        score=0.9 if unsafe else 0.1,
        unsafe=unsafe,
        bias=label("bias", "yes" if unsafe else "no"),
        toxicity=label("toxicity", "none"),
        sentiment=label("sentiment", "negative"),
        harm=label("harm", "medium" if unsafe else "low"),
        spans=(Span(0, 10, "bias", 0.9),) if unsafe else (),
        verified=verified,
        language=language,
    )


PROVENANCE = Provenance("smollm2_135m", "ab", "cd", "ef", "mock", "cpu", "0.1.0")
REWRITTEN = Moderation(
    action="rewrite",
    text="Some people are late.",
    original="Old people are late.",
    before=detection(unsafe=True),
    after=detection(unsafe=False),
    edits=(
        Edit(
            start=0,
            end=20,
            new_start=0,
            new_end=21,
            original="Old people are late.",
            replacement="Some people are late.",
            action="rewrite",
            spans=(Span(0, 10, "bias", 0.9),),
            reasons=("bias",),
        ),
    ),
    provenance=PROVENANCE,
    timings={"detect": 4.0, "rewrite": 20.5},
)
PASSED = Moderation(
    "pass", "Hello.", "Hello.", detection(unsafe=False), None, (), PROVENANCE, {"detect": 3.0}
)
EVERY = [
    Span(0, 1, "harm", 0.5),
    label("toxicity", "mild"),
    detection(unsafe=True),
    REWRITTEN.edits[0],
    PROVENANCE,
    REWRITTEN,
    PASSED,
]


@pytest.mark.parametrize("result", EVERY, ids=lambda result: type(result).__name__)
def test_results_are_frozen_and_have_no_dict(result: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(result, fields(result)[0].name, None)
    assert not hasattr(result, "__dict__")


@pytest.mark.parametrize("result", EVERY, ids=lambda result: type(result).__name__)
def test_to_dict_is_json_and_holds_every_field_in_order(result: Any) -> None:
    as_dict = result.to_dict()
    assert list(as_dict) == [each.name for each in fields(result)]
    assert json.loads(json.dumps(as_dict)) == as_dict


@pytest.mark.parametrize("result", EVERY, ids=lambda result: type(result).__name__)
@pytest.mark.parametrize("twin", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy])
def test_results_can_be_copied_and_hashed(result: Any, twin: Any) -> None:
    again = twin(result)
    assert again == result
    assert hash(again) == hash(result)
    assert again.to_dict() == result.to_dict()


def test_every_field_is_documented() -> None:
    classes = [
        node
        for node in ast.parse(inspect.getsource(results)).body
        if isinstance(node, ast.ClassDef) and is_dataclass(getattr(results, node.name))
    ]
    assert len(classes) == 6
    for node in classes:
        assert ast.get_docstring(node)
        for line, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign):
                assert isinstance(following, ast.Expr), f"{node.name}: {ast.unparse(line)}"
                assert isinstance(following.value, ast.Constant)


def test_mappings_are_immutable_copies() -> None:
    source = {"no": 0.75, "yes": 0.25}
    score = LabelScore("no", source)
    source["no"] = 0.0
    assert dict(score.probabilities) == {"no": 0.75, "yes": 0.25}
    assert list(score.probabilities) == ["no", "yes"]
    with pytest.raises(TypeError):
        score.probabilities["no"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        REWRITTEN.timings["detect"] = 1.0  # type: ignore[index]


def test_equality_is_about_what_is_said_not_how_long_it_took() -> None:
    assert replace(REWRITTEN, timings={"detect": 99.0}) == REWRITTEN
    assert replace(REWRITTEN, text="Other.") != REWRITTEN
    assert label("bias", "yes") != label("bias", "no")


def test_changed_compares_the_texts() -> None:
    assert REWRITTEN.changed
    assert not PASSED.changed


@pytest.mark.parametrize(
    ("moderation", "safe"),
    [
        (PASSED, True),
        (REWRITTEN, True),
        (replace(REWRITTEN, action="mask"), True),
        (replace(REWRITTEN, action="block", text="[withheld]", after=None), True),
        (replace(PASSED, action="unverified"), False),
        (replace(PASSED, before=detection(unsafe=False, verified=False)), False),
        # An unsafe original that was released: the policy observes or fails open.
        (replace(PASSED, before=detection(unsafe=True)), False),
        (replace(REWRITTEN, after=detection(unsafe=True)), False),
        (replace(REWRITTEN, after=detection(unsafe=False, verified=False)), False),
    ],
)
def test_safe_means_withheld_or_judged_and_found_safe(moderation: Moderation, safe: bool) -> None:
    assert moderation.safe is safe
