"""Random Llama models of a few thousand weights, with byte-level tokenizers, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = {
    "chatml-1": (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<issue_start>",
        "<issue_closed>",
        "<issue_comment>",
    ),
    "llama2-1": ("<unk>", "<s>", "</s>"),
}
"""Special tokens that each prompt format needs."""

BYTES = {"chatml-1": (), "llama2-1": ("<0x02>", "<0x03>", "<0x1D>")}
"""Vocabulary entries that are ordinary tokens, as Llama's byte tokens are."""


def vocabulary(template: str) -> list[str]:
    """Tokens in the order of their ids: control tokens, byte tokens, the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*CONTROL[template], *BYTES[template], *alphabet]


def tokenizer(template: str) -> Tokenizer:
    """A tokenizer with one token a byte and the control tokens of a prompt format."""
    tokens = {token: index for index, token in enumerate(vocabulary(template))}
    made = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL[template]]
    )
    return made


def write(
    folder: Path, template: str = "chatml-1", *, layers: int = 3, seed: int = 0, **settings: Any
) -> Path:
    """Write a random Llama into `folder` as transformers does, and return the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": len(vocabulary(template)),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        # Larger than usual: such a shallow model must be able to tell its tokens apart.
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**options | settings))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer(template).save(str(folder / "tokenizer.json"))
    control = CONTROL[template]
    names = {"bos_token": control[1], "eos_token": control[2], "pad_token": control[0]}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(described) + "\n")
    return folder
