"""Make the two graphs that the ONNX engine runs of the one decoder that Optimum exports.

    lower.onnx    ids -> hidden states after the layers that detection reads
    upper.onnx    those states -> logits of the last places

Optimum's graph attends by some eighty small operations a layer and copies all keys and values in
each pass. Here each layer's attention becomes one GroupQueryAttention (ONNX Runtime's contributed
operator), which rotates positions, and writes keys and values into a static cache by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from srllm_guard.engines.onnx_session import (
    HIDDEN,
    IDS,
    LENGTH,
    LOGITS,
    SEEN,
    WANT,
    cache_names,
)
from srllm_guard.errors import ModelError

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

Sizes = Sequence[int | str]


class Decoder:
    """The decoder that Optimum exported, its attention fused.

    Args:
        model: the export of a Llama-family model with past; it is changed.
        layers: number of decoder layers.
        heads: query heads of a layer.
        kv_heads: heads of keys and values.
        cos: cosine of each place and frequency, `[places, D / 2]`, float32.
        sin: the sines.

    Raises:
        ModelError: the graph is not the one that is known.
    """

    def __init__(
        self,
        model: ModelProto,
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
    ) -> None:
        self._model = model
        self._graph = model.graph
        self._layers = layers
        self._kv_heads = kv_heads
        self._width = 2 * cos.shape[1]
        self._nodes = {node.name: node for node in self._graph.node}
        table = self._initializer("model.embed_tokens.weight")
        self.dtype = table.data_type
        self._hidden = int(table.dims[1])
        kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        for name, values in (("cos", cos), ("sin", sin)):
            self._graph.initializer.append(numpy_helper.from_array(values.astype(kind), name))
        for layer in range(layers):
            self._fuse(layer, heads)
        self._cut_logits()

    def lower(self, layers: int) -> ModelProto:
        """Ids to states after the first `layers` layers."""
        inputs = [_value(IDS, TensorProto.INT64, (1, "T")), *self._places()]
        states = _value(self._after(layers), self.dtype, (1, "T", self._hidden))
        return self._part("lower", inputs, [states], range(layers))

    def upper(self, layers: int) -> ModelProto:
        """States after the first `layers` layers to logits of the last places that are wanted."""
        states = _value(self._after(layers), self.dtype, (1, "T", self._hidden))
        inputs = [states, _value(WANT, TensorProto.INT64, (1,)), *self._places()]
        logits = _value(LOGITS, TensorProto.FLOAT, (1, "W", "V"))
        return self._part("upper", inputs, [logits], range(layers, self._layers))

    def _after(self, layers: int) -> str:
        name: str = self._last(f"/model/layers.{layers - 1}/Add_1").output[0]
        return name

    def _places(self) -> list[NodeProto]:
        return [_value(SEEN, TensorProto.INT32, (1,)), _value(LENGTH, TensorProto.INT32, ())]

    def _part(
        self, name: str, inputs: list[NodeProto], outputs: list[NodeProto], layers: Iterable[int]
    ) -> ModelProto:
        sizes = (1, self._kv_heads, "S", self._width)
        past, present = [], []
        for layer in layers:
            for old, new in cache_names(layer):
                past.append(_value(old, self.dtype, sizes))
                present.append(_value(new, self.dtype, sizes))
        graph = extract(self._graph, name, [*inputs, *past], [*outputs, *present])
        made = helper.make_model(
            graph,
            opset_imports=[*self._model.opset_import, helper.make_opsetid(CONTRIB, 1)],
            producer_name="srllm-guard",
        )
        made.ir_version = self._model.ir_version
        _rename(
            made.graph, {value.name: HIDDEN for value in (*inputs, *outputs) if "/" in value.name}
        )
        return made

    def _fuse(self, layer: int, heads: int) -> None:
        """Put one operator in the place of a layer's attention."""
        at = f"/model/layers.{layer}/self_attn"
        if any(name.startswith((f"{at}/q_norm", f"{at}/k_norm")) for name in self._nodes):
            raise ModelError(
                "This base normalises queries and keys, which is not exported.",
                hint='Use engine="torch".',
            )
        out = self._last(f"{at}/o_proj/MatMul")
        (past_key, key), (past_value, value) = cache_names(layer)
        for node in self._graph.node:  # what wrote them before
            for n, name in enumerate(node.output):
                if name in (key, value):
                    node.output[n] = f"{name}_before"
        attention = helper.make_node(
            "GroupQueryAttention",
            [
                *(self._last(f"{at}/{part}_proj/").output[0] for part in "qkv"),
                past_key,
                past_value,
                SEEN,
                LENGTH,
                "cos",
                "sin",
            ],
            [f"{at}/mixed", key, value],
            name=f"{at}/attention",
            domain=CONTRIB,
            num_heads=heads,
            kv_num_heads=self._kv_heads,
            do_rotary=1,
            scale=self._width**-0.5,
        )
        out.input[0] = attention.output[0]
        self._graph.node.append(attention)

    def _cut_logits(self) -> None:
        """Compute logits only for the last places, as float32."""
        constants = {"_first": [np.iinfo(np.int64).max], "_axis": [1], "_zero": [0]}
        for name, values in constants.items():
            array = np.array(values, np.int64)
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        states = self._after(self._layers)
        for node in self._graph.node:
            for n, name in enumerate(node.input):
                if name == states:
                    node.input[n] = "_wanted"
        last = self._last("/lm_head/")
        last.output[0] = "_logits"
        self._graph.node.extend(
            [
                helper.make_node("Neg", [WANT], ["_start"]),
                helper.make_node("Slice", [states, "_start", "_first", "_axis"], ["_wanted"]),
                helper.make_node("Cast", ["_logits"], [LOGITS], to=TensorProto.FLOAT),
            ]
        )

    def _last(self, prefix: str) -> NodeProto:
        """The last node whose name begins so: of a linear layer the one that adds its bias."""
        found = [node for name, node in self._nodes.items() if name.startswith(prefix)]
        if not found:
            raise ModelError(
                f"The exported graph has no operation {prefix!r}.",
                hint='Install the versions of the extra: pip install "srllm-guard[export]".',
            )
        last: NodeProto = found[-1]
        return last

    def _initializer(self, name: str) -> TensorProto:
        found: TensorProto = next(e for e in self._graph.initializer if e.name == name)
        return found


def extract(
    graph: GraphProto, name: str, inputs: Sequence[NodeProto], outputs: Sequence[NodeProto]
) -> GraphProto:
    """The part of a graph between these values, in an order that it can be run in."""
    makers = {output: node for node in graph.node for output in node.output}
    held = {each.name: each for each in graph.initializer}
    done = {value.name for value in inputs} | {""}
    order: list[NodeProto] = []
    weights: dict[str, TensorProto] = {}
    waiting = [value.name for value in reversed(outputs)]
    while waiting:
        wanted = waiting[-1]
        if wanted in done:
            waiting.pop()
        elif wanted in held:
            weights[wanted] = held[wanted]
            done.add(waiting.pop())
        else:
            node = makers[wanted]
            missing = [each for each in node.input if each not in done]
            if missing:
                waiting += reversed(missing)
            else:
                order.append(node)
                done.update(node.output)
    return helper.make_graph(order, name, inputs, outputs, list(weights.values()))


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            for n, name in enumerate(values):
                values[n] = names.get(name, name)
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _value(name: str, kind: int, sizes: Sizes) -> NodeProto:
    return helper.make_tensor_value_info(name, kind, sizes)
