from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from srllm_guard import errors
from srllm_guard.errors import (
    Blocked,
    BundleError,
    ConfigError,
    DeadlineExceeded,
    EngineError,
    FormatError,
    GuardError,
    MissingExtra,
    ModelError,
    ModelNotFound,
    PolicyError,
    ShapeError,
)
from srllm_guard.results import Detection, LabelScore, Moderation, Provenance

SECRET = "the text under moderation"


def moderation() -> Moderation:
    label = LabelScore("no", {"no": 0.9, "yes": 0.1})
    found = Detection(0.9, True, label, label, label, label, (), True, "en")
    provenance = Provenance("b", "1", "2", "3", "mock", "cpu", "0.1.0")
    return Moderation("block", "[withheld]", SECRET, found, None, (), provenance, {})


ALL = [
    ConfigError("bad", hint="do this"),
    PolicyError("bad", hint="do this"),
    FormatError("bad"),
    ShapeError("bad"),
    MissingExtra(extra="torch", needed_for="the reference engine"),
    ModelError("bad", hint="do this"),
    ModelNotFound("bad", hint="do this"),
    BundleError("bad", hint="do this"),
    EngineError("bad", hint="do this"),
    DeadlineExceeded("bad"),
    Blocked(moderation()),
]


def test_the_list_above_is_the_whole_tree() -> None:
    classes = {
        c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
    }
    assert classes == {type(error) for error in ALL} | {GuardError}
    assert {c.__name__ for c in classes} == set(errors.__all__)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_every_error_says_what_and_what_to_do(error: GuardError) -> None:
    assert isinstance(error, GuardError)
    assert str(error) == f"{error.message} {error.hint}"
    assert error.message
    assert error.hint
    assert error.retryable is isinstance(error, EngineError)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("twin", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy])
def test_errors_cross_process_boundaries(error: GuardError, twin: object) -> None:
    assert callable(twin)
    again = twin(error)
    assert type(again) is type(error)
    assert (str(again), again.retryable) == (str(error), error.retryable)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (PolicyError("bad"), ValueError),
        (MissingExtra(extra="onnx", needed_for="the ONNX engine"), ImportError),
        (DeadlineExceeded("bad"), RuntimeError),
        (ShapeError("bad"), TypeError),
    ],
)
def test_callers_may_catch_the_builtin(error: GuardError, builtin: type[Exception]) -> None:
    assert isinstance(error, builtin)


def test_a_missing_extra_gives_the_command() -> None:
    error = MissingExtra(extra="onnx-gpu", needed_for="the ONNX engine on CUDA")
    assert 'pip install "srllm-guard[onnx-gpu]"' in error.hint
    assert "the ONNX engine on CUDA" in error.message


def test_a_hint_may_be_empty() -> None:
    assert str(ModelError("It is broken.")) == "It is broken."


def test_retryable_can_be_overridden() -> None:
    error = pickle.loads(pickle.dumps(EngineError("Out of memory.", retryable=False)))
    assert error.retryable is False
    assert EngineError.retryable is True


def test_blocked_carries_the_result_and_not_the_text() -> None:
    error = Blocked(moderation())
    assert error.moderation.original == SECRET
    assert SECRET not in str(error)
    assert SECRET not in repr(error)
    assert pickle.loads(pickle.dumps(error)).moderation == error.moderation
