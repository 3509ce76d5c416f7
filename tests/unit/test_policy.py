from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srllm_guard.errors import ConfigError, PolicyError
from srllm_guard.policy import RUNGS, Policy

FULL: dict[str, Any] = {
    "threshold": 0.5,
    "release_threshold": 0.4,
    "min_likelihood": -3.5,
    "label_thresholds": {"toxicity": 0.8, "bias": 0.25},
    "ladder": ["rewrite", "mask"],
    "on_fail": "mask",
    "fail_open": True,
    "candidates": 2,
    "temperature": 0.9,
    "seed": 7,
    "deadline_ms": 1500.0,
    "unverified": "block",
    "mask_text": "[…]",
    "block_message": "Withheld.",
    "on_block": "raise",
    "max_holdback_chars": 500,
    "max_holdback_ms": 250.0,
    "protect_quotations": True,
    "max_length_ratio": 1.5,
    "min_length_ratio": 0.5,
    "mode": "observe",
}
TOML = """
threshold = 0.5
release_threshold = 0.4
min_likelihood = -3.5
ladder = ["rewrite", "mask"]
on_fail = "mask"
fail_open = true
candidates = 2
temperature = 0.9
seed = 7
deadline_ms = 1500
unverified = "block"
mask_text = "[…]"
block_message = "Withheld."
on_block = "raise"
max_holdback_chars = 500
max_holdback_ms = 250
protect_quotations = true
max_length_ratio = 1.5
min_length_ratio = 0.5
mode = "observe"

[label_thresholds]
toxicity = 0.8
bias = 0.25
"""


def test_the_example_covers_every_field_with_another_value_than_the_default() -> None:
    policy = Policy.from_dict(FULL)
    for each in fields(Policy):
        assert getattr(policy, each.name) != getattr(Policy(), each.name), each.name


def test_dict_round_trip() -> None:
    policy = Policy.from_dict(FULL)
    assert policy.to_dict() == FULL
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_toml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TOML, encoding="utf-8")
    assert Policy.from_toml(path) == Policy.from_dict(FULL)
    assert Policy.from_toml(str(path)).hash == Policy.from_dict(FULL).hash


def test_an_empty_toml_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(b"\xef\xbb\xbf")  # a byte order mark, as Windows editors write it
    assert Policy.from_toml(path) == Policy()


def test_frozen_hashable_copyable() -> None:
    policy = Policy.from_dict(FULL)
    with pytest.raises(FrozenInstanceError):
        policy.threshold = 0.1  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.label_thresholds["bias"] = 1.0  # type: ignore[index]
    for again in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        assert again == policy
        assert hash(again) == hash(policy)


def test_the_caller_cannot_change_a_policy_through_what_it_passed() -> None:
    thresholds = {"bias": 0.5}
    policy = Policy(label_thresholds=thresholds)
    before = policy.hash
    thresholds["bias"] = 0.1
    assert policy.hash == before


def test_hash_is_the_same_in_other_processes() -> None:
    code = (
        "import json, sys; from srllm_guard.policy import Policy; "
        "print(Policy.from_dict(json.loads(sys.argv[1])).hash)"
    )
    backwards = json.dumps(dict(reversed(FULL.items())))
    for seed in ("1", "2"):
        seen = subprocess.run(
            [sys.executable, "-c", code, backwards],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert seen.stdout.strip() == Policy.from_dict(FULL).hash


def test_hash_does_not_depend_on_the_order_or_the_kind_of_numbers() -> None:
    one = Policy(label_thresholds={"bias": 1, "harm": 0.5}, threshold=0, temperature=1)
    other = Policy(
        temperature=np.float64(1.0),
        threshold=-0.0,
        label_thresholds={"harm": np.float32(0.5), "bias": 1.0},  # type: ignore[dict-item]
    )
    assert one == other
    assert one.hash == other.hash
    assert len(one.hash) == 16
    assert int(one.hash, 16) >= 0


@pytest.mark.parametrize("name", [each.name for each in fields(Policy)])
def test_hash_depends_on_every_field(name: str) -> None:
    other = replace(Policy(fail_open=name != "fail_open"), **{name: FULL[name]})
    assert other.hash != Policy(fail_open=name != "fail_open").hash


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("threshold", [-0.01, 1.01, math.nan, math.inf, "0.5", True, [0.5]], "0 to 1"),
        (
            "label_thresholds",
            [{"sentiment": 0.5}, {"bias": 2}, {"bias": "high"}, 0.5, [("bias", 0.5)], {1: 0.5}],
            '"bias", "toxicity" or "harm"',
        ),
        (
            "ladder",
            ["rewrite", ["mask", "rewrite"], ["mask", "mask"], ["retry"], 3, None, [["mask"]]],
            '"rewrite", "candidates", "omit", "mask" or "block"',
        ),
        ("on_fail", ["ignore", None, ["block"]], '"block", "mask" or "pass"'),
        ("fail_open", [1, "yes", None], "True or False"),
        ("candidates", [-1, 33, 1.5, True, "4"], "0 to 32"),
        ("temperature", [0, -1, 2.1, math.nan, "hot"], "above 0, at most 2"),
        ("seed", [-1, 2**32, 0.5, True], "0 to 4294967295"),
        ("deadline_ms", [0, -5, math.inf, math.nan, "1s", 10**400], "milliseconds above 0"),
        ("unverified", ["mask", True], '"pass" or "block"'),
        ("mask_text", [None, 3, "x" * 2001, "\ud800"], "at most 2000 characters"),
        ("block_message", [None, 3, "x" * 2001, "\ud800"], "at most 2000 characters"),
        ("on_block", ["stop", None, True], '"message" or "raise"'),
        ("max_holdback_chars", [0, 100_001, 1.5, True, None], "1 to 100000"),
        ("max_holdback_ms", [0, -1, math.inf, "1s"], "milliseconds above 0"),
        ("protect_quotations", [0, "no"], "True or False"),
        ("max_length_ratio", [0.9, 101, math.nan], "1 to 100"),
        ("min_length_ratio", [-0.1, 1.1, None], "0 to 1"),
        ("mode", ["audit", None], '"enforce" or "observe"'),
    ],
)
def test_refusals_name_the_field_and_the_allowed_values(
    name: str, values: list[Any], allowed: str
) -> None:
    for value in values:
        with pytest.raises(PolicyError) as refused:
            Policy.from_dict({name: value})
        assert f"Policy.{name} is " in refused.value.message, value
        assert allowed in refused.value.message, value
        assert len(refused.value.message) < 300, value
        assert isinstance(refused.value, ConfigError)


def test_every_field_is_checked() -> None:
    for each in fields(Policy):
        with pytest.raises(PolicyError):
            Policy.from_dict({each.name: object()})


def test_releasing_the_original_on_failure_needs_fail_open() -> None:
    with pytest.raises(PolicyError) as refused:
        Policy(on_fail="pass")
    assert "Policy.on_fail" in refused.value.message
    assert "fail_open=True" in refused.value.hint
    assert Policy(on_fail="pass", fail_open=True).rungs == ("rewrite", "omit", "mask")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("treshold", "threshold"), ("onfail", "on_fail"), ("label_threshold", "label_thresholds")],
)
def test_unknown_fields_are_refused_with_a_guess(typo: str, meant: str) -> None:
    with pytest.raises(PolicyError) as refused:
        Policy.from_dict({typo: 0.5})
    assert f'"{typo}"' in refused.value.message
    assert "block_message" in refused.value.message
    assert refused.value.hint == f'Did you mean "{meant}"?'


def test_an_unknown_field_like_no_other_gets_no_guess() -> None:
    with pytest.raises(PolicyError) as refused:
        Policy.from_dict({"zzz": 1})
    assert refused.value.hint == ""


@pytest.mark.parametrize("values", [[], "threshold", None, 3])
def test_a_policy_is_a_mapping(values: Any) -> None:
    with pytest.raises(PolicyError, match="mapping"):
        Policy.from_dict(values)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"threshold = ", "no valid TOML"),
        (b"\xff\xfe", "no valid TOML"),
        (b"threshold = 7", "Policy.threshold is 7"),
        (b"[policy]\nthreshold = 0.5", 'no field "policy"'),
    ],
)
def test_toml_refusals_name_the_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "strict.toml"
    path.write_bytes(content)
    with pytest.raises(PolicyError) as refused:
        Policy.from_toml(path)
    assert "strict.toml" in refused.value.message
    assert says in refused.value.message


def test_a_policy_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(PolicyError, match="cannot be read"):
            Policy.from_toml(path)


@pytest.mark.parametrize(
    ("options", "rungs"),
    [
        ({"candidates": 4}, RUNGS),
        ({"on_fail": "mask"}, ("rewrite", "omit", "mask")),
        ({}, ("rewrite", "omit", "mask", "block")),
        ({"ladder": ()}, ("block",)),
        ({"ladder": (), "on_fail": "mask"}, ("mask",)),
        ({"ladder": ("rewrite",)}, ("rewrite", "block")),
        ({"ladder": ("mask", "block"), "on_fail": "mask"}, ("mask",)),
        ({"ladder": ("block",), "on_fail": "pass", "fail_open": True}, ()),
    ],
)
def test_rungs_end_as_on_fail_says(options: dict[str, Any], rungs: tuple[str, ...]) -> None:
    assert Policy(**options).rungs == rungs


POLICIES = st.builds(
    lambda on_fail, fail_open, **rest: Policy(
        on_fail=on_fail, fail_open=fail_open or on_fail == "pass", **rest
    ),
    on_fail=st.sampled_from(["block", "mask", "pass"]),
    fail_open=st.booleans(),
    threshold=st.none() | st.floats(0, 1),
    label_thresholds=st.dictionaries(
        st.sampled_from(["bias", "toxicity", "harm"]), st.floats(0, 1)
    ),
    ladder=st.sets(st.sampled_from(RUNGS)).map(lambda chosen: sorted(chosen, key=RUNGS.index)),
    candidates=st.integers(0, 32),
    deadline_ms=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    mask_text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


@given(POLICIES)
def test_any_policy_survives_json_and_keeps_its_hash(policy: Policy) -> None:
    again = Policy.from_dict(json.loads(json.dumps(policy.to_dict())))
    assert again == policy
    assert again.hash == policy.hash


@given(POLICIES)
def test_any_ladder_ends_in_what_was_asked_for(policy: Policy) -> None:
    rungs = policy.rungs
    assert list(rungs) == sorted(set(rungs), key=RUNGS.index)
    assert ("block" in rungs) == (policy.on_fail == "block")
    if policy.on_fail != "pass":
        assert rungs[-1] == policy.on_fail
