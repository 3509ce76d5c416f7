"""Which layer should detection read? Fit the heads on frozen features of several, and time them.

    python -m train.layers BASE --data DATA --authored train/data --out docs/layers.json

The features are those of the untuned base model, so the table compares layers, not products.
Milliseconds are medians over 30 rounds, the layers interleaved, for one window of 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from srllm_guard.engines.heads import DetectionHeads, HeadsConfig
from srllm_guard.engines.trunk import Trunk
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer
from train import detection, evaluation, refit, sources
from train.config import Refit

LAYERS = (4, 8, 12, 16, 30)


def timings(model: Any, tokens: int = 64, rounds: int = 30) -> dict[int, float]:
    """Median milliseconds of the first k layers over one window, fp32."""
    ids = torch.randint(20, model.config.vocab_size, (1, tokens))
    spent: dict[int, list[float]] = {layer: [] for layer in LAYERS}
    whole, depth = model.layers, model.config.num_hidden_layers
    for _ in range(rounds):
        for layer in LAYERS:
            model.layers, model.config.num_hidden_layers = whole[:layer], layer
            start = time.perf_counter()
            with torch.no_grad():
                model(ids, use_cache=False)
            spent[layer].append((time.perf_counter() - start) * 1e3)
    model.layers, model.config.num_hidden_layers = whole, depth
    return {layer: round(statistics.median(times), 2) for layer, times in spent.items()}


def figures(
    trunk: Trunk, heads: Mapping[int, DetectionHeads], groups: Sequence[list[detection.Item]]
) -> dict[int, dict[str, Any]]:
    """Figures of one dev set by layer."""
    seen = [refit.see(trunk, group, list(heads)) for group in groups]
    return {
        layer: evaluation.judged(groups, refit.judge(each, layer, seen)).figures()
        for layer, each in heads.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Parse arguments, fit, measure, and write the table as JSON."""
    from transformers import AutoModel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--authored", type=Path, default=Path("train/data"))
    parser.add_argument("--out", type=Path, default=Path("docs/layers.json"))
    parser.add_argument("--each", type=int, default=700, help="training texts of each public set")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(args.base, dtype=torch.float32).eval()
    prompt = Prompt(tokenizer(args.base), "chatml-1")
    examples = sources.load(args.authored, "cmd", "train")
    for source in evaluation.PUBLIC:
        if (args.data / "train" / f"{source}.jsonl").is_file():
            found = sources.load(args.data, source, "train")
            examples += found[:: max(1, 9000 // args.each)][: args.each]
    heads = {layer: DetectionHeads(HeadsConfig(model.config.hidden_size)) for layer in LAYERS}
    trunk = Trunk(model, max(LAYERS))
    settings = Refit(layer=max(LAYERS), epochs=args.epochs)
    refit.fitted(trunk, heads, detection.items(examples, prompt, seed=0), [], settings, seed=0)
    rows: dict[str, Any] = {"milliseconds_64_tokens": timings(model)}
    for name, groups in evaluation.dev_sets(args.data, args.authored, prompt, most=300):
        rows[name] = figures(trunk, heads, groups)
        print(name, {k: (v["average_precision"], v["auroc"]) for k, v in rows[name].items()})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
