"""Deletions are taught where the rewriter finds them likely, and detection is left alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import ADAPTER, HEADS, Bundle
from srllm_guard.prompt import Prompt
from tests.byte_engine import ByteEngine
from tests.train.conftest import CONFIG
from train.config import Config
from train.deletions import likely
from train.rewriting import Pair
from train.run import main, run

EDITS = (
    CONFIG.replace("copies = 0.5", "copies = 0.5\nmost_new = 1\ndeletions = -1e9")
    .replace("[data.detection]\ncmd = 0\n", "")
    .replace("seed = 3", "seed = 3\nrewriting_only = true")
    .replace('name = "tiny"', 'name = "tiny"\nlikelihood = -2.5')
)


def test_the_likeliest_deletion_is_taught_if_it_is_likely_at_all(prompt: Prompt) -> None:
    text = "Ed, you awful fool, call me today."
    pair = Pair(text, ((4, 18),), "Ed, I would like a call.", "Hi.")
    [found] = likely(ByteEngine(unlikely=("Ed call",)), prompt, [pair], -1.0)
    assert (found.text, found.marks, found.context) == (text, pair.marks, "Hi.")
    assert found.safe == "Ed, call me today."
    assert list(likely(ByteEngine(unlikely=("call",)), prompt, [pair], -1.0)) == []
    kept = Pair("Ed is 5 fools.", ((6, 13),), "Ed is late.")  # a number would be lost
    assert list(likely(ByteEngine(), prompt, [kept], -9.0)) == []


def test_only_what_detection_does_not_read_is_trained(
    base: Path, authored: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    common = ["--base", str(base), "--authored", str(authored), "--threads", "1"]
    first = tmp_path / "first"
    assert main([str(tmp_path / "tiny.toml"), *common, "--out", str(first)]) == 0
    (tmp_path / "edits.toml").write_text(EDITS)
    then = [str(tmp_path / "edits.toml"), *common, "--from-bundle", str(first / "bundle")]
    assert main([*then, "--out", str(tmp_path / "second")]) == 0
    before, after = Bundle.load(first / "bundle"), Bundle.load(tmp_path / "second" / "bundle")
    assert digest(before, HEADS) == digest(after, HEADS)
    assert digest(before, ADAPTER) != digest(after, ADAPTER)
    old, new = tensors(before), tensors(after)
    changed = {name for name in old if not (old[name] == new[name]).all()}
    assert changed
    assert not any(f".layers.{n}." in name for n in range(2) for name in changed)
    assert after.manifest.calibration.likelihood == -2.5
    assert after.manifest.calibration.threshold == before.manifest.calibration.threshold
    [kept] = (tmp_path / "second").glob("deletions-*.jsonl")
    rows = kept.read_text("utf-8").splitlines()
    assert rows
    assert all(json.loads(row)["safe"] for row in rows)


def test_deletions_need_a_bundle_that_says_what_is_likely(
    base: Path, authored: Path, tmp_path: Path
) -> None:
    path = tmp_path / "edits.toml"
    path.write_text(EDITS)
    with pytest.raises(ConfigError, match="finds likely"):
        run(path, None, authored, base, tmp_path / "out")


def test_a_likelihood_is_a_logarithm(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(EDITS.replace("likelihood = -2.5", "likelihood = 0.5"))
    with pytest.raises(ConfigError, match="likelihood"):
        Config.from_toml(path)


def digest(bundle: Bundle, name: str) -> str:
    return hashlib.sha256((bundle.folder / name).read_bytes()).hexdigest()


def tensors(bundle: Bundle) -> dict[str, Tensor]:
    return dict(load_file(bundle.folder / ADAPTER))
