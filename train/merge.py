"""Merge a bundle's adapter into its base: one plain transformers folder.

    python -m train.merge BUNDLE OUT [--base FOLDER]

The adapter is merged in float32 by PEFT. Before anything is written, the logits of the merged model
are compared with those of the adapter beside its base, and with those of the merge that the
reference engine does by itself. The heads are not part of the result: they stay in the bundle.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srllm_guard.engines.loading import merge_adapter
from srllm_guard.errors import GuardError, ModelError
from srllm_guard.models.bundle import Bundle
from srllm_guard.models.store import find_base, find_bundle
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer

log = logging.getLogger("train")

TOLERANCE = 1e-3
"""Largest difference of two logits that float32 arithmetic in another order explains."""

SAMPLES = (
    ("The meeting was moved to Tuesday at 10:30, please tell Ana and the others.", ()),
    ("Old people can't learn new software, so put Ed on the phones.", ((0, 22),)),
    ("I waited 40 minutes and the idiot at the desk did not even look up.", ((28, 33),)),
    ("Ünïcode, emoji 🙂 and <|im_end|> are text like any other.", ()),
)
"""Texts and the unsafe ranges that are marked in them."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Differences:
    """Largest absolute differences of logits."""

    adapter: float
    """Merged against the adapter beside its base."""
    engine: float
    """Merged against the reference engine's own merge."""


def merge(bundle: Bundle, base: Path, out: Path, dtype: torch.dtype = torch.float32) -> Differences:
    """Write the merged model into `out`; the weights are stored as `dtype`.

    Raises:
        ModelError: the merged model does not give the logits of the adapter; nothing is written.
        BundleError: adapter and base do not fit.
    """
    from peft import PeftModel

    prompts = _prompts(Prompt(tokenizer(base), bundle.manifest.prompt))
    model = _base(base)
    merge_adapter(model, bundle.folder)
    engine = _logits(model, prompts)
    model = PeftModel.from_pretrained(_base(base), str(bundle.folder)).eval()
    adapter = _logits(model, prompts)
    model = model.merge_and_unload()
    merged = _logits(model, prompts)
    found = Differences(_largest(merged, adapter), _largest(merged, engine))
    # Written so that NaN fails too.
    if not (found.adapter <= TOLERANCE and found.engine <= TOLERANCE):
        raise ModelError(
            f"The merged logits differ by {found.adapter:.2g} from the adapter's and by "
            f"{found.engine:.2g} from the engine's; {TOLERANCE} is allowed.",
            hint="Check that the bundle was trained on this base.",
        )
    model.to(dtype).save_pretrained(out, safe_serialization=True)
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    return found


def _base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return loaded.eval()


def _prompts(prompt: Prompt) -> list[Tensor]:
    return [
        torch.tensor([(*prompt.rewrite(text, marks), *prompt.target(text))])
        for text, marks in SAMPLES
    ]


def _logits(model: Any, prompts: Sequence[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(ids).logits.float() for ids in prompts]


def _largest(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Command line of the merge; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", help="folder or Hub id of a bundle")
    parser.add_argument("out", type=Path, help="folder to write the merged model into")
    parser.add_argument("--base", type=Path, help="folder of the base weights")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        bundle = find_bundle(args.bundle)
        base = find_base(bundle.manifest.base, args.base)
        found = merge(bundle, base, args.out, getattr(torch, args.dtype))
    except GuardError as error:
        log.error("%s", error)
        return 1
    log.info("merged against adapter: %.2g", found.adapter)
    log.info("merged against engine:  %.2g", found.engine)
    log.info("model: %s", args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
