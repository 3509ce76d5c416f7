"""An export of the shipped weights: decisions of the torch engine, and no torch needed for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from srllm_guard import Guard
from srllm_guard.cli import main
from srllm_guard.models.exported import Exported

ROOT = Path(__file__).parents[2]

TEXTS = [
    "The meeting moved to 14:30; the agenda is at https://example.org/agenda.",
    "You are a worthless idiot and everybody here hates you.",
    "Hi all,\n\nOnly a complete idiot would have forgotten the keys again. Lunch is at 12:30.\n",
    "Girls just aren't built for maths, so let the boys do the experiment.",
    "what a bunch of fucking morons run this site",
]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shipped bundle in fp32, by the command line."""
    pytest.importorskip("optimum.exporters.onnx")
    folder = tmp_path_factory.mktemp("exports") / "fp32"
    assert main(["export", str(folder)]) == 0
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_it_is_near_its_bundle(exported: Path) -> None:
    made = Exported.load(exported)
    assert made.precision == "fp32"
    assert made.parity["score"] <= 0.001
    assert made.parity["flips"] == 0
    assert made.parity["tokens"] > 50
    # Embedding and output head are one table, stored once.
    assert (exported / "weights.bin").stat().st_size < 570e6


@pytest.mark.slow
def test_a_guard_on_it_decides_as_on_torch(exported: Path, guard: Guard) -> None:
    other = Guard(model=exported, device="cpu")
    assert other.info()["engine"] == "onnx"
    assert other.info()["bundle_hash"] == guard.info()["bundle_hash"]
    assert other.info()["base_hash"] == guard.info()["base_hash"]
    for one, two in zip(guard.moderate_many(TEXTS), other.moderate_many(TEXTS), strict=True):
        assert (one.action, one.text) == (two.action, two.text)
        assert one.before.score == pytest.approx(two.before.score, abs=2e-4)
        assert len(one.edits) == len(two.edits)


SCRIPT = """
import importlib.util, json, sys
for name in ("torch", "transformers", "peft", "onnx", "optimum"):
    assert importlib.util.find_spec(name) is None, name
from srllm_guard import Guard
guard = Guard(model=sys.argv[1])
results = guard.moderate_many(json.loads(sys.argv[2]))
print(json.dumps([guard.info()["engine"], [[r.action, r.text] for r in results]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_environment_with_the_onnx_extra_only(
    exported: Path, guard: Guard, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "-q", f"{ROOT}[onnx]"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # Not the checkout, nor what this environment has installed.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-I", "-c", SCRIPT, str(exported), json.dumps(TEXTS)],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, results = json.loads(done.stdout.splitlines()[-1])
    assert name == "onnx"
    assert results == [[r.action, r.text] for r in guard.moderate_many(TEXTS)]
    assert any(action == "rewrite" for action, _ in results)
    assert sys.prefix not in str(python)
