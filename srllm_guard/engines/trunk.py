"""The first k layers of a transformers decoder, sharing its weights: all that detection runs."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class Trunk(nn.Module):
    """Embeddings and the first `layers` blocks of a decoder, without its final norm.

    The blocks are the decoder's own, adapters included, not copies.
    """

    def __init__(self, decoder: Any, layers: int) -> None:
        super().__init__()
        depth = len(decoder.layers)
        if not 0 < layers <= depth:
            raise ValueError(f"layers is {layers}; this model has {depth}")
        short = copy.copy(decoder)
        # A shallow copy shares its table of submodules; this one gets a table of its own.
        vars(short)["_modules"] = dict(vars(decoder)["_modules"])
        short.layers = nn.ModuleList(decoder.layers[:layers])
        short.norm = nn.Identity()
        short.config = copy.copy(decoder.config)
        short.config.num_hidden_layers = layers
        self.decoder = short

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` [B, T], padded at the right -> hidden states [B, T, H].

        No mask is needed: a causal model's tokens never see the padding behind them.
        """
        states: Tensor = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return states
