"""Options of loading that are refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from srllm_guard import Guard
from srllm_guard.errors import ConfigError
from srllm_guard.runtime import ENGINES, load
from tests.byte_engine import runtime


def test_the_engines_by_name() -> None:
    assert ENGINES == ("torch", "reference", "onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "Unknown engine 'tensorrt'"),
        ({"engine": "torch", "four_bit": True}, "four_bit was asked for"),
        ({"precision": "fp16", "four_bit": True}, "four_bit was asked for"),
        ({"engine": "reference", "precision": "fp32"}, "takes neither"),
        ({"engine": "reference", "threads": 2}, "takes neither"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "srllm_guard.runtime.find_bundle", lambda _: pytest.fail("it was looked for")
    )
    with pytest.raises(ConfigError, match=message) as caught:
        load(**options)
    assert caught.value.hint


@pytest.mark.parametrize("option", [{"precision": "fp32"}, {"threads": 1}, {"engine": "torch"}])
def test_a_runtime_is_loaded_already(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="A Runtime was given together with"):
        Guard(runtime(), **option)
