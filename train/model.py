"""The model under training: base with a LoRA adapter, and the detection heads on an early layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from srllm_guard.engines.heads import DetectionHeads, HeadsConfig
from srllm_guard.engines.loading import load_heads
from srllm_guard.engines.trunk import Trunk
from srllm_guard.errors import ConfigError, MissingExtra
from srllm_guard.models.bundle import ADAPTER, ADAPTER_CONFIG, Bundle
from train import detection, rewriting
from train.config import Config


class Model(nn.Module):
    """SR-LLM in training: one adapter, learned by rewriting and by detection together."""

    def __init__(self, language: Any, heads: HeadsConfig, layer: int) -> None:
        super().__init__()
        self.language = language
        """The PEFT model."""
        self.heads = DetectionHeads(heads)
        self.layer = layer
        decoder = language.get_base_model().model
        # Kept out of the module tree: its weights are the language model's own.
        self._trunk = (Trunk(decoder, layer),)

    def with_heads(self, heads: DetectionHeads, layer: int) -> Model:
        """The same language model with other heads, on another layer."""
        model = Model(self.language, heads.config, layer)
        model.heads = heads.to(next(self.heads.parameters()).device)
        return model

    def freeze_detection(self) -> None:
        """Train all of the adapter, and nothing else, that detection does not read."""
        self.requires_grad_(False)
        for layer in self.language.get_base_model().model.layers[self.layer :]:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def freeze_layers(self, count: int) -> None:
        """Do not train the adapter of the first `count` layers; no gradient goes through them."""
        for layer in self.language.get_base_model().model.layers[:count]:
            layer.requires_grad_(False)

    def rewriting_loss(self, batch: rewriting.Batch, unlikelihood: float = 0.0) -> Tensor:
        """Mean cross-entropy of the answers' tokens; logits are computed for those alone.

        `unlikelihood` weighs that of copying on where the answer leaves its source (Welleck et al.,
        2020): a mean over those places.
        """
        logits, wanted = self._answer_logits(batch.ids, batch.labels)
        loss = F.cross_entropy(logits, batch.labels[:, 1:][wanted])
        copied = batch.copied[:, 1:][wanted]
        left = copied != rewriting.IGNORED
        if unlikelihood and left.any():
            chances = logits[left].log_softmax(-1)
            copying = chances.gather(-1, copied[left][:, None]).exp()
            loss = loss - unlikelihood * torch.log1p(-copying.clamp(max=1 - 1e-6)).mean()
        return loss

    def answers(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each token of the answers, row by row, and where in `[B, T - 1]`."""
        logits, wanted = self._answer_logits(ids, labels)
        return -F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none"), wanted

    def _answer_logits(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        base = self.language.get_base_model()
        # Padding is at the right, so a causal model needs no mask for it.
        hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != rewriting.IGNORED
        return base.lm_head(hidden[:, :-1][wanted]).float(), wanted

    def judge(self, batch: detection.Batch) -> tuple[Tensor, Tensor]:
        """Label logits `[B, S, N_LOGITS]` and span logits `[B, T, categories]`."""
        hidden = self._trunk[0](batch.ids)
        rows = batch.unsafe.shape[1]
        found: tuple[Tensor, Tensor] = self.heads(hidden.float(), batch.owner, rows)
        return found


def has_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are faster than those of float32."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001


def build(config: Config, base: Path) -> Model:
    """Load the base from a folder and put a fresh adapter and fresh heads on it.

    Raises:
        MissingExtra: 4-bit loading was asked for and bitsandbytes is not installed.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if config.quantization.load_in_4bit:
        options = {"quantization_config": _four_bit(config), "dtype": torch.float32}
        if torch.cuda.is_available():
            options["device_map"] = {"": 0}
    language: Any = AutoModelForCausalLM.from_pretrained(base, **options)
    if config.quantization.load_in_4bit:
        language = prepare_model_for_kbit_training(
            language, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    targets = config.lora.targets
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    heads = HeadsConfig(
        hidden=language.config.hidden_size, dim=config.heads.dim, blocks=config.heads.blocks
    )
    return Model(get_peft_model(language, lora), heads, config.heads.layer)


def load(config: Config, bundle: Bundle, base: Path, *, grow: bool = False) -> Model:
    """The model of a bundle, to train further or to calibrate anew.

    Where it may `grow`, an adapter of a smaller rank gets that of `config`, and says the same.

    Raises:
        ConfigError: the bundle has another base or prompt, or an adapter of another shape.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    manifest = bundle.manifest
    if (manifest.base.id, manifest.prompt) != (config.base.id, config.prompt):
        raise ConfigError(
            f"The bundle {bundle.folder.name} is for {manifest.base.id} and {manifest.prompt}, "
            f"{config.name} for {config.base.id} and {config.prompt}.",
            hint="Start from a bundle of the same base and prompt.",
        )
    shape = json.loads((bundle.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    rank, alpha = shape["r"], shape["lora_alpha"]
    fits = rank == config.lora.r or (grow and rank < config.lora.r)
    if not fits or alpha * config.lora.r != config.lora.alpha * rank:
        raise ConfigError(
            f"The adapter of {bundle.folder.name} has rank {rank} and alpha {alpha}, [lora] of "
            f"{config.name} {config.lora.r} and {config.lora.alpha}.",
            hint="Use its rank (to train further, or a larger one), and its ratio of alpha to it.",
        )
    model = build(config, base)
    # PEFT starts `B` at zero, so the columns that an adapter of smaller rank lacks change nothing.
    fresh = get_peft_model_state_dict(model.language)
    trained = load_file(bundle.folder / ADAPTER)
    shapes, wanted = ({k: v.shape for k, v in part.items()} for part in (trained, fresh))
    inside = shapes.keys() <= wanted.keys() and all(
        have <= most
        for name, shape in shapes.items()
        for have, most in zip(shape, wanted[name], strict=True)
    )
    if not (inside if grow else shapes == wanted):
        raise ConfigError(
            f"The adapter of {bundle.folder.name} has other parts than [lora] of {config.name}.",
            hint="Use the settings that the bundle was trained with.",
        )
    for name, weight in trained.items():
        rows, columns = weight.shape
        fresh[name][:rows, :columns] = weight
    set_peft_model_state_dict(model.language, fresh)
    heads = load_heads(bundle, model.heads.config.hidden)
    return model.with_heads(heads, manifest.layer)


def _four_bit(config: Config) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise MissingExtra(extra="quant", needed_for="loading the base in 4 bits")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization.quant_type,
        bnb_4bit_use_double_quant=config.quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, config.quantization.compute_dtype),
    )


def optimizer(model: Model, config: Config) -> torch.optim.Optimizer:
    """The optimiser of the run; the heads have a learning rate of their own.

    A paged optimiser pages to a GPU; on a CPU bitsandbytes warns and runs it without pages.

    Raises:
        MissingExtra: a paged optimiser was asked for and bitsandbytes is not installed.
    """
    groups = [
        {
            "params": [p for p in model.language.parameters() if p.requires_grad],
            "lr": config.training.lr,
            "weight_decay": config.training.weight_decay,
        },
        {"params": list(model.heads.parameters()), "lr": config.heads.lr, "weight_decay": 0.01},
    ]
    if config.training.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    try:
        from bitsandbytes.optim.adamw import PagedAdamW32bit
    except ImportError as error:
        raise MissingExtra(extra="quant", needed_for="a paged optimiser") from error
    paged: torch.optim.Optimizer = PagedAdamW32bit(groups)
    return paged
