"""Store the weights of a graph in 16, 8 or 4 bits.

fp16: products and attention; norms and the sums between layers stay float32.

int8: a scale for each output channel, and for each token as it comes: the range of a token's
activations is its own. ONNX Runtime's dynamic quantisation takes one range for all tokens of a
pass, so what follows a token, or was guessed behind it, would change its result; and the first
token's activations are many times those of the others, which leaves these a few levels. Both
factors are unsigned: of an unsigned and a signed one, many processors add two products in 16 bits,
which overflow. Weights of 7 bits avoid that too, but moved scores by up to 0.32.

int4: MatMulNBits, blocks of 32 weights with a scale and a zero point each.

A table that is both embedding and output head is stored once, as the head needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from srllm_guard.errors import ModelError

CONTRIB = "com.microsoft"

TOP = 127
"""Largest number of levels from 0 in 8 bits."""
MIDDLE = 128
"""The unsigned 8-bit number that stands for 0."""
BLOCK = 32
"""Weights that share a scale in 4 bits."""
TINY = np.float32(1e-12)
"""Least range of a token, so that zeros divide by something."""
INT8_COMPUTE = 4
"""MatMulNBits' `accuracy_level`: activations are rounded to 8 bits, by blocks of a token."""

Array = NDArray[Any]


def convert(model: ModelProto, precision: str) -> None:
    """Put the products with constant weights, and the embedding, into a precision, in place.

    Args:
        model: a float32 graph of `srllm_guard.export.graphs`.
        precision: a name in `srllm_guard.models.exported.PRECISIONS`; "fp32" changes nothing.
    """
    if precision != "fp32":
        kinds: dict[str, Kind] = {"fp16": _Half, "int8": _Int8, "int4": _Int4}
        _Rewriter(model, kinds[precision]).run()


class _Rewriter:
    """Goes through the nodes of a graph and puts others in their places."""

    def __init__(self, model: ModelProto, kind: Kind) -> None:
        self._graph = model.graph
        self._held = {each.name: each for each in self._graph.initializer}
        self._added: dict[str, TensorProto] = {}
        self._nodes: list[NodeProto] = []
        self._kind = kind(self)

    def run(self) -> None:
        """Replace nodes and weights."""
        nodes = list(self._graph.node)
        turned = {
            node.output[0]: node.input[0]
            for node in nodes
            if node.op_type == "Transpose" and node.input[0] in self._held
        }
        gone = set()
        for node in nodes:
            second = node.input[1] if len(node.input) > 1 else ""
            if node.op_type == "MatMul" and second in self._held:
                self._kind.product(node, second, self._array(second).T)
                gone.add(second)
            elif node.op_type == "MatMul" and second in turned:
                self._kind.product(node, turned[second], self._array(turned[second]))
                gone.add(turned[second])
            elif node.op_type == "Gather" and node.input[0] in self._held:
                self._kind.rows(node, node.input[0], self._array(node.input[0]))
                gone.add(node.input[0])
            elif node.op_type == "GroupQueryAttention":
                self._kind.attention(node)
            elif node.output[0] not in turned:
                self._nodes.append(node)
        kept = [each for each in self._graph.initializer if each.name not in gone | {*self._added}]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend([*kept, *self._added.values()])
        for value in (*self._graph.input, *self._graph.output):
            if value.name.startswith(("past", "present")):
                value.type.tensor_type.elem_type = self._kind.cache

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self._held[name])

    def keep(self, node: NodeProto) -> None:
        """Put a node of the old graph behind the others."""
        self._nodes.append(node)

    def halve(self, name: str) -> None:
        """Turn a float32 weight into float16."""
        self.constant(name, self._array(name).astype(np.float16))

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Put a node behind the others; its output's name."""
        self._nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, values: Array | np.generic) -> str:
        """Hold an array under a name, which is returned."""
        self._added[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name


class _Kind(ABC):
    """What becomes of the nodes that have to do with weights."""

    cache = TensorProto.FLOAT
    """Type of keys and values."""

    def __init__(self, graph: _Rewriter) -> None:
        self._graph = graph

    @abstractmethod
    def product(self, node: NodeProto, name: str, weight: Array) -> None:
        """Replace a node that multiplies by the transpose of `weight` [N, K]."""

    @abstractmethod
    def rows(self, node: NodeProto, name: str, table: Array) -> None:
        """Replace a node that looks up rows of `table` [V, H]."""

    def attention(self, node: NodeProto) -> None:
        """Replace or keep the attention of a layer."""
        self._graph.keep(node)


Kind = Callable[[_Rewriter], _Kind]
"""Makes what replaces the nodes of one graph."""


class _Half(_Kind):
    """Products and attention in float16, between casts."""

    cache = TensorProto.FLOAT16

    def __init__(self, graph: _Rewriter) -> None:
        super().__init__(graph)
        self._cast: dict[str, str] = {}

    def product(self, node: NodeProto, name: str, weight: Array) -> None:
        graph, out = self._graph, node.output[0]
        stored = graph.constant(f"{name}_half", weight.astype(np.float16))
        turned = graph.add("Transpose", [stored], f"{name}_turned", perm=[1, 0])
        found = graph.add("MatMul", [self._halved(node.input[0]), turned], f"{out}_half")
        self._cast[out] = found
        graph.add("Cast", [found], out, to=TensorProto.FLOAT)

    def rows(self, node: NodeProto, name: str, table: Array) -> None:
        graph, out = self._graph, node.output[0]
        stored = graph.constant(f"{name}_half", table.astype(np.float16))
        chosen = graph.add("Gather", [stored, node.input[1]], f"{out}_half")
        graph.add("Cast", [chosen], out, to=TensorProto.FLOAT)

    def attention(self, node: NodeProto) -> None:
        graph, out = self._graph, node.output[0]
        for n in range(3):
            node.input[n] = self._halved(node.input[n])
        for name in node.input[-2:]:
            graph.halve(name)
        node.output[0] = self._cast[out] = f"{out}_half"
        graph.keep(node)

    def _halved(self, name: str) -> str:
        """A value in float16; cast once."""
        if name not in self._cast:
            cast = self._graph.add("Cast", [name], f"{name}_cast", to=TensorProto.FLOAT16)
            self._cast[name] = cast
        return self._cast[name]


class _Int8(_Kind):
    """Integer products, scaled back by output channel and by token."""

    def __init__(self, graph: _Rewriter) -> None:
        super().__init__(graph)
        self._rounded: dict[str, tuple[str, str]] = {}

    def product(self, node: NodeProto, name: str, weight: Array) -> None:
        graph = self._graph
        values, scales = _levels(weight)
        given, scale = self._tokens(node.input[0])
        zero = graph.constant("zero_point", np.uint8(MIDDLE))
        stored = graph.constant(f"{name}_int8", values)
        turned = graph.add("Transpose", [stored], f"{name}_turned", perm=[1, 0])
        plain = graph.add(
            "MatMulIntegerToFloat",
            [
                given,
                turned,
                graph.constant("one", np.float32(1)),
                graph.constant(f"{name}_scales", scales),
                zero,
                zero,
            ],
            f"{node.output[0]}_unscaled",
            domain=CONTRIB,
        )
        graph.add("Mul", [plain, scale], node.output[0])

    def rows(self, node: NodeProto, name: str, table: Array) -> None:
        graph = self._graph
        values, scales = _levels(table)
        ids, out = node.input[1], node.output[0]
        stored = graph.constant(f"{name}_int8", values)
        chosen = graph.add("Gather", [stored, ids], f"{out}_int8")
        raised = graph.add("Cast", [chosen], f"{out}_raised", to=TensorProto.FLOAT)
        levels = graph.add("Sub", [raised, self._middle()], f"{out}_levels")
        held = graph.constant(f"{name}_scales", scales)
        scale = graph.add("Gather", [held, ids], f"{out}_scale")
        last = graph.constant("last", np.array([-1], np.int64))
        column = graph.add("Unsqueeze", [scale, last], f"{out}_column")
        graph.add("Mul", [levels, column], out)

    def _tokens(self, name: str) -> tuple[str, str]:
        """States `[1, T, K]` in 8 bits, and the scale of each token `[1, T, 1]`; made once."""
        if name not in self._rounded:
            graph = self._graph
            last = graph.constant("last", np.array([-1], np.int64))
            size = graph.add("Abs", [name], f"{name}_abs")
            top = graph.add("ReduceMax", [size, last], f"{name}_top", keepdims=1)
            safe = graph.add("Max", [top, graph.constant("tiny", TINY)], f"{name}_safe")
            unit = graph.constant("unit", np.float32(1 / TOP))
            scale = graph.add("Mul", [safe, unit], f"{name}_scale")
            levels = graph.add("Div", [name, scale], f"{name}_levels")
            raised = graph.add("Add", [levels, self._middle()], f"{name}_raised")
            whole = graph.add("Round", [raised], f"{name}_whole")
            rounded = graph.add("Cast", [whole], f"{name}_uint8", to=TensorProto.UINT8)
            self._rounded[name] = rounded, scale
        return self._rounded[name]

    def _middle(self) -> str:
        return self._graph.constant("middle", np.float32(MIDDLE))


class _Int4(_Kind):
    """MatMulNBits, and the embedding looked up in the same blocks."""

    def product(self, node: NodeProto, name: str, weight: Array) -> None:
        values, scales, zeros = _blocks(weight)
        rows, width = weight.shape
        self._graph.add(
            "MatMulNBits",
            [node.input[0], *self._stored(name, values, scales, zeros)],
            node.output[0],
            domain=CONTRIB,
            K=width,
            N=rows,
            bits=4,
            block_size=BLOCK,
            accuracy_level=INT8_COMPUTE,
        )

    def rows(self, node: NodeProto, name: str, table: Array) -> None:
        if table.shape[1] % (2 * BLOCK):
            # Packed rows would not end where the operator, which has no padding, expects them to.
            raise ModelError(
                f"A width of {table.shape[1]} is not exported in int4; it takes multiples of 64.",
                hint="Export it in int8.",
            )
        values, scales, zeros = _blocks(table)
        stored = self._stored(name, values.reshape(len(values), -1), scales, zeros)
        self._graph.add(
            "GatherBlockQuantized",
            [stored[0], node.input[1], *stored[1:]],
            node.output[0],
            domain=CONTRIB,
            bits=4,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def _stored(self, name: str, values: Array, scales: Array, zeros: Array) -> list[str]:
        parts = {"int4": values, "scales": scales, "zeros": zeros}
        return [self._graph.constant(f"{name}_{part}", held) for part, held in parts.items()]


def _levels(weight: Array) -> tuple[Array, Array]:
    """`weight` [N, K] as uint8 around `MIDDLE`, and the float32 scale of each row, `[N]`."""
    scales = np.maximum(np.abs(weight).max(1), TINY) / TOP
    values = np.rint(weight / scales[:, None]) + MIDDLE
    return values.astype(np.uint8), scales.astype(np.float32)


def _blocks(weight: Array) -> tuple[Array, Array, Array]:
    """`weight` [N, K] in 4 bits: two values a byte, the first in the low half.

    Returns:
        Values `[N, blocks, BLOCK / 2]`, float32 scales `[N, blocks]`, and zero points
        `[N, (blocks + 1) // 2]`, packed like the values.
    """
    rows, width = weight.shape
    count = -(-width // BLOCK)
    full = np.zeros((rows, count * BLOCK), np.float32)
    full[:, :width] = weight
    blocks = full.reshape(rows, count, BLOCK)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    scales = np.maximum(high - low, TINY) / 15
    zeros = np.rint(-low / scales)
    values = np.rint(blocks / scales[..., None]) + zeros[..., None]
    return _packed(values.clip(0, 15)), scales.astype(np.float32), _packed(zeros)


def _packed(values: Array) -> Array:
    """Whole numbers from 0 to 15, two a byte along the last axis."""
    whole = values.astype(np.uint8)
    if whole.shape[-1] % 2:
        whole = np.concatenate((whole, np.zeros_like(whole[..., :1])), -1)
    found: Array = whole[..., ::2] | whole[..., 1::2] << 4
    return found
