from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from srllm_guard.detector import WINDOW
from srllm_guard.errors import ConfigError
from srllm_guard.labels import CATEGORIES, LABELS, N_LOGITS, SLICES, UNSAFE
from srllm_guard.prompt import Prompt
from train import calibrate, detection, epochs, evaluation
from train.batching import by_length
from train.config import Config
from train.model import build
from train.sources import load


def judged(
    logits: np.ndarray, unsafe: np.ndarray, spans: tuple[np.ndarray, np.ndarray] | None = None
) -> evaluation.Judged:
    empty = np.zeros(0), np.zeros(0, bool)
    return evaluation.Judged(logits, unsafe.astype(int), *(spans or empty))


def sigmoid(x: np.ndarray) -> np.ndarray:
    chances: np.ndarray = 1 / (1 + np.exp(-x))
    return chances


def test_platt_recovers_how_the_truth_was_drawn() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0.5, 3, 20_000)
    truth = draw.random(20_000) < sigmoid(0.7 * logits - 1.3)
    half = 8_000
    scale, shift = calibrate._platt(
        {"a": judged(logits[:half], truth[:half]), "b": judged(logits[half:], truth[half:])}
    )
    assert scale == pytest.approx(0.7, abs=0.04)
    assert shift == pytest.approx(-1.3, abs=0.06)
    # Of what is given a probability of about 0.8, about 0.8 is unsafe.
    chances = sigmoid(scale * logits + shift)
    near = np.abs(chances - 0.8) < 0.05
    assert truth[near].mean() == pytest.approx(0.8, abs=0.04)


def test_platt_leaves_alone_what_it_cannot_fit() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 1, 200)
    assert calibrate._platt({"a": judged(logits, np.ones(200))}) == (1.0, 0.0)
    assert calibrate._platt({"a": judged(logits, logits < 0)}) == (1.0, 0.0)


def logit(chances: list[float]) -> np.ndarray:
    values = np.array(chances)
    logits: np.ndarray = np.log(values / (1 - values))
    return logits


def test_the_threshold_has_the_best_f1() -> None:
    own = judged(logit([0.2, 0.305, 0.6, 0.405, 0.7, 0.9]), np.array([0, 0, 0, 1, 1, 1]))
    none = np.zeros(0)
    # 0.31 to 0.40 finds all three with one false alarm (F1 6/7); the first of them is taken.
    assert calibrate._threshold(own, none, 1.0, 0.0) == 0.31
    # Scaled and shifted, the same decisions lie elsewhere.
    assert calibrate._threshold(own, none, 2.0, 0.5) == pytest.approx(
        float(sigmoid(2 * logit([0.305])[0] + 0.5)), abs=0.011
    )


def test_the_threshold_is_the_lowest_that_spares_ordinary_texts() -> None:
    own = judged(logit([0.205, 0.405, 0.7, 0.9]), np.array([0, 1, 1, 1]))
    # Four of 200 ordinary texts score 0.505: more than fifteen in a thousand.
    ordinary = logit([0.02] * 196 + [0.505] * 4)
    assert calibrate._threshold(own, ordinary, 1.0, 0.0) == 0.51
    # Three of 200 are just that.
    assert calibrate._threshold(own, logit([0.02] * 197 + [0.505] * 3), 1.0, 0.0) == 0.05


def test_where_every_threshold_flags_too_much_the_highest_is_taken() -> None:
    own = judged(logit([0.2, 0.9]), np.array([0, 1]))
    assert calibrate._threshold(own, logit([0.99] * 10), 1.0, 0.0) == 0.95


def test_a_text_counts_by_its_worst_segment_wherever_it_stands(prompt: Prompt) -> None:
    """Texts longer than a window are read to their end."""
    alarm = 7

    def judge(batch: detection.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A segment's logit is how many tokens it has; what is longest counts."""
        rows = batch.unsafe.shape[1]
        sizes = torch.stack([(batch.owner == n).sum(1) for n in range(rows)], 1).float()
        logits = torch.zeros(*batch.unsafe.shape, N_LOGITS)
        logits[..., UNSAFE] = sizes
        return logits, torch.zeros(*batch.owner.shape, len(CATEGORIES))

    short = "It is fine. " * alarm
    long = short * 20 + "This one sentence here is by far the longest of all of them, I say."
    assert len(long) > WINDOW
    found = calibrate._highest([short, long, ""], prompt, judge)
    assert len(found) == 2  # nothing to say of an empty text
    assert found[1] > 3 * found[0] > 0


def test_without_an_unsafe_text_the_threshold_is_one_half() -> None:
    own = judged(logit([0.2, 0.9]), np.zeros(2))
    assert calibrate._threshold(own, np.zeros(0), 1.0, 0.0) == 0.5
    assert calibrate._span_threshold(own) == 0.5


def test_the_span_threshold_has_the_best_f1_of_tokens() -> None:
    spans = logit([0.1, 0.455, 0.555, 0.6, 0.95]), np.array([False, False, True, True, True])
    assert calibrate._span_threshold(judged(np.zeros(1), np.zeros(1), spans)) == 0.46


def test_huge_logits_are_no_error() -> None:
    own = judged(np.array([-1e5, 1e5]), np.array([0, 1]))
    assert calibrate._threshold(own, np.full(9, -1e5), 1.0, 0.0) == 0.05


def test_temperatures_undo_overconfidence(prompt: Prompt, authored: Path) -> None:
    examples = load(authored, "cmd", "train")
    batches = by_length(detection.items(examples, prompt, 0, most=1), len, 2000, 0)
    generator = torch.Generator().manual_seed(0)

    def judge(batch: detection.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Right about three in four, and always sure: logits of 8."""
        labels = torch.zeros(*batch.unsafe.shape, N_LOGITS)
        for name, values in LABELS.items():
            truth = batch.allowed[..., SLICES[name]].float().argmax(-1)
            wrong = torch.rand(truth.shape, generator=generator) < 0.25
            said = torch.where(wrong, (truth + 1) % len(values), truth)
            labels[..., SLICES[name]] = torch.nn.functional.one_hot(said, len(values)) * 8.0
        return labels, torch.zeros(*batch.spans.shape)

    found = calibrate._temperatures(batches, judge)
    assert set(found) == set(LABELS)
    assert all(temperature > 2 for temperature in found.values())
    assert calibrate._temperatures([], judge) == {}


def test_figures_of_a_set(prompt: Prompt) -> None:
    both = judged(np.array([-1.0, 0.0, 2.0, 1.0]), np.array([0, 0, 1, 1]))
    assert both.figures() == {
        "segments": 4,
        "unsafe": 2,
        "average_precision": 1.0,
        "auroc": 1.0,
        "span_f1": None,
    }
    one_class = judged(np.array([1.0, 2.0]), np.array([1, 1])).figures()
    assert one_class["average_precision"] is None
    assert one_class["auroc"] is None
    assert evaluation.span_f1(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])) == 0.8


def test_nothing_judged_gives_empty_figures() -> None:
    figures = evaluation.judged([], lambda batch: pytest.fail("nothing to judge")).figures()
    assert (figures["segments"], figures["auroc"], figures["span_f1"]) == (0, None, None)


def test_calibrate_needs_dev_examples(config: Config, base: Path, prompt: Prompt) -> None:
    with pytest.raises(ConfigError, match="no dev examples"):
        calibrate.calibrate(build(config, base), prompt, epochs.Corpus({}, {"cmd": []}))


def test_dev_sets_name_the_public_sets_that_are_there(
    tmp_path: Path, prompt: Prompt, authored: Path
) -> None:
    (tmp_path / "train").mkdir()
    lines = [f'{{"text": "text number {n}", "sexist": {n % 2}}}\n' for n in range(300)]
    (tmp_path / "train" / "edos.jsonl").write_text("".join(lines))
    sets = dict(evaluation.dev_sets(tmp_path, authored, prompt))
    assert list(sets) == ["authored", "edos"]
    truth = {int(value) for batch in sets["edos"] for item in batch for value in item.unsafe}
    assert truth == {0, 1}
