"""The rewriter is tuned by what readers said of its rewrites, and detection is left alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import ADAPTER, HEADS, Bundle
from srllm_guard.prompt import Prompt
from tests.train.conftest import CONFIG, DATA, ROW
from train import preference
from train.config import Config, Preference
from train.corpus import READINGS, corpus
from train.model import Model, build
from train.readings import VERDICTS, Reading, read
from train.rewriting import Item
from train.run import main
from train.schema import SchemaError, read_records
from train.sources import held_out

TUNED = CONFIG.replace("[data.rewriting]\ncmd = 0\n", "").replace("[data.detection]\ncmd = 0\n", "")
"""A run without joint training."""


def test_readings_are_of_training_records() -> None:
    records = {r.id: r for path in sorted(DATA.glob("*.jsonl")) for r in read_records(path)}
    found = read(DATA / READINGS)
    assert len(found) > 1000
    for reading in found:
        record = records[reading.record]
        assert record.split == "train"
        assert record.unsafe
        assert reading.source in record.text
        assert reading.context in record.text
        assert reading.source not in reading.rewrites
    assert {verdict for each in found for verdict in each.rewrites.values()} == set(VERDICTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"marks": []}, "not in order"),
        ({"marks": [[4, 99]]}, "not in order"),
        ({"marks": [[8, 12], [4, 6]]}, "not in order"),
        ({"marks": [["call", "me"]]}, "not in order"),
        ({"marks": [4, 12]}, "no reading"),
        ({"rewrites": [{"text": "Ed.", "verdict": "fine"}]}, "a verdict of good, left"),
        ({"rewrites": []}, "a verdict of good, left"),
        ({"rewrites": [{"text": "Ed."}]}, "no reading"),
        ({"source": None}, "no reading"),
        ({"context": None}, "no string"),
        ({"rewrites": [{"text": None, "verdict": "good"}]}, "no string"),
    ],
)
def test_a_line_that_is_no_reading_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(SchemaError, match=message) as caught:
        read(tmp_path)
    assert "one.jsonl line 2" in str(caught.value)
    assert "call me" not in str(caught.value)


def test_each_bad_rewrite_is_set_against_a_good_one_in_turn(prompt: Prompt) -> None:
    verdicts = {"A.": "good", "B.": "good", "c": "lost", "d": "left", "e": "clumsy"}
    reading = Reading("a-1", "You fool.", "Hi.", ((0, 8),), verdicts)
    found = list(preference.pairs(reading, prompt, most=9))
    texts = [[prompt.decode(i.target[:-1]) for i in (p.better, p.worse)] for p in found]
    assert [better for better, _ in texts] == ["A.", "B.", "A."]
    assert sorted(worse for _, worse in texts) == ["c", "d", "e"]
    assert {item.prompt for p in found for item in (p.better, p.worse)} == {
        prompt.rewrite("You fool.", ((0, 8),), "Hi.")
    }
    assert len(list(preference.pairs(reading, prompt, most=2))) == 2
    only_bad = Reading("a-1", "You fool.", "", ((0, 8),), {"c": "lost"})
    assert list(preference.pairs(only_bad, prompt, most=9)) == []


def test_the_likelihood_of_an_answer_is_that_of_its_tokens(
    config: Config, base: Path, prompt: Prompt
) -> None:
    model = build(config, base).eval()
    items = [
        Item(prompt.rewrite("You fool.", ((0, 8),)), prompt.target(text))
        for text in ("You.", "You are here.")
    ]
    with torch.no_grad():
        chances, lengths = preference.log_probabilities(model, items)
    assert lengths.tolist() == [len(item.target) for item in items]
    for item, chance in zip(items, chances.tolist(), strict=True):
        ids = torch.tensor([[*item.prompt, *item.target]])
        with torch.no_grad():
            logits = model.language(input_ids=ids).logits[0, len(item.prompt) - 1 : -1]
        each = logits.log_softmax(-1).gather(-1, torch.tensor(item.target)[:, None])
        assert chance == pytest.approx(float(each.sum()), rel=0.02)  # bf16, where there is such


def test_good_rewrites_gain_on_bad_ones_and_detection_stands_still(
    config: Config, base: Path, prompt: Prompt
) -> None:
    torch.manual_seed(0)
    model = build(config, base)
    readings = [_reading(name) for name in ("Ed", "Ann", "Lou", "Kim", "Max", "Joe")]
    learned = [each for each in readings if not held_out(each.source, preference.HELD_OUT)]
    before, weights = _margin(model, learned, prompt), _weights(model)
    settings = Preference(epochs=12, lr=1e-2, tokens=512)
    preference.prefer(model, readings, prompt, config, settings)
    assert _margin(model.eval(), learned, prompt) > before + 1
    for name, value in model.named_parameters():
        same = torch.equal(value, weights[name])
        behind = "lora_" in name and not any(f"layers.{n}." in name for n in range(model.layer))
        assert same != behind or (same and "lora_A" in name), name


def test_the_cost_is_that_of_the_margin_and_an_anchor(
    config: Config, base: Path, prompt: Prompt
) -> None:
    model = build(config, base).eval()
    found = list(preference.pairs(_reading("Ed"), prompt, 1)) * 2
    with torch.no_grad():
        chances, lengths = preference.log_probabilities(model, [found[0].better, found[0].worse])
        better, worse = chances.tolist()
        settings = Preference(beta=0.5, anchor=0.25)
        got = preference.loss(model, found, [(better - 2, worse), (0.0, 0.0)], settings)
    margins = torch.tensor([0.5 * 2, 0.5 * (better - worse)])
    wanted = torch.log1p(torch.exp(-margins)).mean() - 0.25 * better / int(lengths[0])
    assert float(got) == pytest.approx(float(wanted), rel=1e-3)


def test_what_cannot_be_tuned_is_refused(config: Config, base: Path, prompt: Prompt) -> None:
    only = [Reading("a-1", "You fool.", "", ((0, 8),), {"You.": "lost"})]
    with pytest.raises(ConfigError, match="no pair of a good and a bad"):
        preference.prefer(build(config, base), only, prompt, config, Preference())
    frozen = replace(config, training=replace(config.training, frozen_layers=9))
    readings = [_reading(name) for name in ("Ed", "Ann", "Lou")]
    with pytest.raises(ConfigError, match="No layer behind 2"):
        preference.prefer(build(config, base), readings, prompt, frozen, Preference())


def test_a_bundle_is_tuned_alone_and_says_what_it_read(
    base: Path, authored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = tmp_path / "authored"
    shutil.copytree(authored, records)
    (records / READINGS).mkdir()
    rows = "\n".join(json.dumps(ROW | {"record": f"a-{n}"}) for n in range(6))
    (records / READINGS / "some.jsonl").write_text(rows)
    (tmp_path / "first.toml").write_text(CONFIG.replace("s = 4", "s = 1"))
    tuned = f"{TUNED}\n[preference]\nepochs = 1\nlr = 1e-2\n"
    (tmp_path / "tuned.toml").write_text(tuned)
    common = ["--base", str(base), "--authored", str(records), "--threads", "1"]
    start: list[str] = []
    for name in ("first", "tuned"):
        arguments = [str(tmp_path / f"{name}.toml"), *common, *start]
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
        start = ["--from-bundle", str(tmp_path / "first" / "bundle")]
    first, after = (Bundle.load(tmp_path / name / "bundle") for name in ("first", "tuned"))
    left, right = (load_file(bundle.folder / HEADS) for bundle in (first, after))
    assert all(torch.equal(left[name], right[name]) for name in left)
    left, right = (load_file(bundle.folder / ADAPTER) for bundle in (first, after))
    changed = {name for name in left if not torch.equal(left[name], right[name])}
    assert changed
    assert not any(f".layers.{n}." in name for n in range(2) for name in changed)
    assert after.manifest.calibration == first.manifest.calibration
    assert after.manifest.metrics == first.manifest.metrics
    assert set(after.manifest.training["data"]) == {READINGS}
    assert after.manifest.training["epochs"] == 0
    (tmp_path / "bad.toml").write_text(tuned.replace("layer = 2", "layer = 1"))
    for path, more, said in (
        ("bad.toml", start, "bundle read layer 2"),
        ("tuned.toml", [], "tunes a bundle, and trains none"),
    ):
        arguments = [str(tmp_path / path), *common, *more, "--out", str(tmp_path / "bad")]
        assert main(arguments) == 1
        assert said in caplog.text
    (records / READINGS / "some.jsonl").unlink()
    arguments = [str(tmp_path / "tuned.toml"), *common, *start, "--out", str(tmp_path / "bad")]
    assert main(arguments) == 1
    assert "there are none in" in caplog.text


def test_texts_of_dev_and_test_are_not_learned_from(
    config_file: Path, authored: Path, tmp_path: Path
) -> None:
    records = tmp_path / "authored"
    shutil.copytree(authored, records)
    held = [r for r in read_records(records / "records.jsonl") if r.split != "train"]
    rows = [ROW, *(ROW | {"source": f" {r.text.upper()} "} for r in held)]
    (records / READINGS).mkdir()
    (records / READINGS / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config_file.write_text(f"{TUNED}\n[preference]\n")
    found = corpus(Config.from_toml(config_file), None, records)
    assert [each.source for each in found.readings] == [ROW["source"]]


def _reading(name: str) -> Reading:
    good, bad = f"{name}, call me.", f"{name}, you clown."
    return Reading(
        "a-1",
        f"{name}, you fool.",
        "",
        ((len(name) + 2, len(name) + 10),),
        {
            good: "good",
            bad: "left",
        },
    )


def _margin(model: Model, readings: list[Reading], prompt: Prompt) -> float:
    """How much likelier a good rewrite is than a bad one, in the mean."""
    found = [pair for each in readings for pair in preference.pairs(each, prompt, 4)]
    with torch.no_grad():
        better, _ = preference.log_probabilities(model, [pair.better for pair in found])
        worse, _ = preference.log_probabilities(model, [pair.worse for pair in found])
    return float((better - worse).mean())


def _weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}
