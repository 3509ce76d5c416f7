"""Load a bundle into torch: the device, a base in transformers, the adapter and the heads."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from srllm_guard.engines.heads import DetectionHeads, HeadsConfig
from srllm_guard.errors import BundleError, ConfigError, MissingExtra
from srllm_guard.models.bundle import ADAPTER, ADAPTER_CONFIG, HEADS, Bundle

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
"""Ends of the names of an adapter's weights."""

OTHER_BASE = "Use the base model that the bundle was trained on."


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if it is there.

    Raises:
        ConfigError: it is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Unknown device {name!r}.", hint="Use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"Device {name!r} was asked for, but torch {torch.__version__} sees no CUDA GPU.",
            hint='Install a CUDA build of torch, or use device="cpu".',
        )
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"Device {name!r} was asked for, and there are {count} CUDA devices.",
            hint=f"Use cuda:0 to cuda:{count - 1}.",
        )
    return device


def load_model(bundle: Bundle | None, base: Path, device: torch.device, four_bit: bool) -> Any:
    """The base with the bundle's adapter: merged, or beside it where the base has 4 bits.

    Without a bundle it is the base alone.

    Raises:
        BundleError: adapter and base do not fit.
        MissingExtra: PEFT or bitsandbytes is needed and not installed.
    """
    # transformers warns about generation flags that belong to other modes; nothing of it is ours.
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "dtype": torch.float32 if device.type == "cpu" else torch.bfloat16,
    }
    if four_bit:
        import transformers

        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtra(extra="quant", needed_for="loading the base in 4 bits")
        config: Any = transformers.BitsAndBytesConfig
        options["quantization_config"] = config(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options["device_map"] = {"": device.type if device.index is None else device.index}
    model: Any = _model_class(base).from_pretrained(base, local_files_only=True, **options)
    model.generation_config.eos_token_id = None
    if bundle is None:
        return (model if four_bit else model.to(device)).eval()
    if four_bit:
        try:
            from peft import PeftModel
        except ImportError as error:
            raise MissingExtra(extra="torch", needed_for="an adapter on a 4-bit base") from error
        try:
            return PeftModel.from_pretrained(model, str(bundle.folder)).get_base_model().eval()
        except (RuntimeError, ValueError) as error:
            raise BundleError("The adapter does not fit this base.", hint=OTHER_BASE) from error
    merge_adapter(model, bundle.folder)
    return model.to(device).eval()


def _model_class(base: Path) -> Any:
    """The class that config.json names: importing it alone is quicker than the auto classes."""
    import transformers

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    name = next(iter(config.get("architectures") or ()), "")
    return getattr(transformers, name, None) or transformers.AutoModelForCausalLM


class Adapter:
    """A LoRA adapter in PEFT's format, to be added to weights in float32.

    Covers plain LoRA (with or without rank-stabilised scaling) on linear layers, which is what
    bundles hold.

    Raises:
        BundleError: the adapter is of another kind.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / ADAPTER)
        odd = ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern")
        if (
            config.get("peft_type") != "LORA"
            or config.get("bias", "none") != "none"
            or any(config.get(key) for key in odd)
            or any(not name.endswith((DOWN, UP)) for name in weights)
        ):
            raise BundleError(
                f"The adapter in {folder} is not plain LoRA.",
                hint="Merge it with PEFT and make a bundle of the result.",
            )
        root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
        self._scale = config["lora_alpha"] / root
        self._parts = {
            name.removeprefix("base_model.model.").removesuffix(DOWN): (
                weights[name.removesuffix(DOWN) + UP],
                a,
            )
            for name, a in weights.items()
            if name.endswith(DOWN)
        }

    @property
    def modules(self) -> frozenset[str]:
        """Names of the linear layers that it changes."""
        return frozenset(self._parts)

    def add(self, module: str, weight: Tensor | None) -> Tensor:
        """The float32 weight `[out, in]` of a layer with what the adapter adds; in place.

        Raises:
            BundleError: the adapter does not fit this base.
        """
        up, down = self._parts[module]
        shape = None if weight is None else tuple(weight.shape)
        if weight is None or shape != (up.shape[0], down.shape[1]):
            raise BundleError(
                f"The adapter does not fit this base: {module} is {shape}, "
                f"the adapter changes {(up.shape[0], down.shape[1])}.",
                hint=OTHER_BASE,
            )
        up, down = (each.to(weight.device, torch.float32) for each in (up, down))
        return weight.addmm_(up, down, alpha=self._scale)


def merge_adapter(model: Any, folder: Path) -> None:
    """Add an adapter to the weights of `model`, computed in float32.

    Raises:
        BundleError: the adapter is of another kind, or does not fit this base.
    """
    adapter = Adapter(folder)
    layers = dict(model.named_modules())
    with torch.no_grad():
        for path in adapter.modules:
            weight = getattr(layers.get(path), "weight", None)
            # In place where the weights are float32 already: each is touched once.
            merged = adapter.add(path, None if weight is None else weight.float())
            if weight is not None and merged.data_ptr() != weight.data_ptr():
                weight.copy_(merged)


def load_heads(bundle: Bundle, hidden: int) -> DetectionHeads:
    """The bundle's detection heads for states of width `hidden`, in float32.

    Raises:
        BundleError: they are for another width, or not what the manifest says.
    """
    config = HeadsConfig(**bundle.manifest.heads)  # type: ignore[arg-type]
    if config.hidden != hidden:
        raise BundleError(
            f"The heads read states of width {config.hidden}; this base has {hidden}.",
            hint=OTHER_BASE,
        )
    heads = DetectionHeads(config)
    try:
        heads.load_state_dict({k: v.float() for k, v in load_file(bundle.folder / HEADS).items()})
    except RuntimeError as error:
        raise BundleError(
            f"{HEADS} does not fit its manifest.", hint="Get the bundle again."
        ) from error
    return heads.eval()
