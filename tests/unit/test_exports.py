from __future__ import annotations

import re
import subprocess
import sys

import pytest

import srllm_guard

NAMES = [
    "Blocked",
    "Detection",
    "Edit",
    "Guard",
    "GuardError",
    "Moderation",
    "Policy",
    "Span",
    "__version__",
]
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "peft", "onnxruntime", "rich")


def run(code: str) -> str:
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return seen.stdout


def test_the_exported_names() -> None:
    assert srllm_guard.__all__ == NAMES
    assert set(NAMES) <= set(dir(srllm_guard))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name: str) -> None:
    value = getattr(srllm_guard, name)
    assert value is getattr(srllm_guard, name)
    assert name == "__version__" or value.__name__ == name


def test_the_version_is_a_semantic_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", srllm_guard.__version__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gaurd'"):
        _ = srllm_guard.Gaurd


def test_import_loads_no_library() -> None:
    code = f"import sys, srllm_guard; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_policies_results_and_errors_load_no_library() -> None:
    code = (
        "import sys; from srllm_guard import Blocked, Detection, Moderation, Policy; "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_import_is_fast() -> None:
    code = (
        "import time; start = time.perf_counter(); import srllm_guard; "
        "print(time.perf_counter() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) < 0.2
