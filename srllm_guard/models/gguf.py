"""Turn a Llama-family GGUF file into a model folder.

The folder holds config.json, model.safetensors and tokenizer.json, which `transformers`, PEFT and
every engine here read. Weights are stored as float16:
the file is 4-bit quantised, so nothing is lost that was there. Formats: GGUF specification
(ggml-org/ggml, docs/gguf.md); the query/key permutation is undone as in llama.cpp's
`convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srllm_guard.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""transformers' names of the parts of a layer."""

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL = 3  # token type "control" in tokenizer.ggml.token_type


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` into `folder`.

    Raises:
        MissingExtra: the `gguf` package is not installed.
        ModelError: the file is not of the Llama family or its tokenizer is not byte-level BPE.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtra(extra="torch", needed_for="reading GGUF weights") from error
    reader = GGUFReader(source)
    if (kind := _field(reader, "general.architecture")) != "llama":
        raise ModelError(f"{source.name} holds a {kind!r} model.", hint="Use a Llama-family GGUF.")
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(reader)
    _write_weights(reader, config, folder / "model.safetensors")
    _write_tokenizer(reader, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _field(reader: GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    def value(key: str, default: Any = None) -> Any:
        return _field(reader, f"llama.{key}", default)

    heads = value("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": float(f"{value('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "vocab_size": value("vocab_size") or len(_field(reader, "tokenizer.ggml.tokens")),
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": all(t.name != "output.weight" for t in reader.tensors),
        "torch_dtype": "float16",
    }


def _write_weights(reader: GGUFReader, config: dict[str, Any], path: Path) -> None:
    from gguf import dequantize
    from safetensors.numpy import save_file

    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    weights = {}
    for tensor in reader.tensors:
        *_, part, ending = tensor.name.split(".")
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        if part in heads:
            values = _unpermute(values, heads[part])
        if tensor.name.startswith("blk."):
            name = f"model.layers.{tensor.name.split('.')[1]}.{NAMES[part]}.{ending}"
        elif part in _TOP:
            name = f"{_TOP[part]}.{ending}"
        else:  # rope frequencies are computed, not stored
            continue
        weights[name] = np.ascontiguousarray(values)
    save_file(weights, path, metadata={"format": "pt"})


def _unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo GGUF's interleaving of rotary halves; `weight` is `[heads * head_dim, hidden]`."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _write_tokenizer(reader: GGUFReader, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (kind := _field(reader, "tokenizer.ggml.model")) != "gpt2":
        raise ModelError(
            f"The GGUF file holds a {kind!r} tokenizer.",
            hint="Only byte-level BPE tokenizers are converted; use the Hub's safetensors folder.",
        )
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    pairs: list[str] = _field(reader, "tokenizer.ggml.merges") or []  # None for an empty list
    merges = [tuple(pair.split(" ", 1)) for pair in pairs]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    splitters: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if _field(reader, "tokenizer.ggml.pre") == "smollm":
        splitters.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        name: tokens[index]
        for name in ("bos", "eos")
        if (index := _field(reader, f"tokenizer.ggml.{name}_token_id")) is not None
    }
    pad = tokens[_field(reader, "tokenizer.ggml.padding_token_id", 0)]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special.get("bos"),
        "eos_token": special.get("eos"),
        "pad_token": pad,
        "chat_template": _field(reader, "tokenizer.chat_template"),
        "model_max_length": _field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
