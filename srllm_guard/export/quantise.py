"""Store the weights of a graph in 8 or 4 bits.

int8: a scale for each output channel, and for each token as it comes: the range of a token's
activations is its own. ONNX Runtime's dynamic quantisation takes one range for all tokens of a pass,
so what follows a token, or was guessed behind it, would change its result; and the first token's
activations are a thousand times those of the others, which leaves these a few levels.

int4: MatMulNBits, blocks of 32 weights with a scale and a zero point each.

A table that is both embedding and output head is stored once, as the head needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"

WEIGHT_TOP = 63
"""Largest 8-bit weight: with 7 bits no processor's sums of two products overflow 16 bits."""
ACTIVATION_TOP = 127
MIDDLE = 128
"""The 8-bit number that stands for 0 in activations."""
BLOCK = 32
"""Weights that share a scale in 4 bits."""
TINY = np.float32(1e-12)
"""Least range of a token, so that zeros divide by something."""
INT8_COMPUTE = 4
"""MatMulNBits' `accuracy_level`: activations are rounded to 8 bits, by blocks of a token."""

Array = NDArray[Any]


def quantise(model: ModelProto, precision: str) -> None:
    """Quantise all products with constant weights, and the embedding, in place.

    Args:
        model: a float32 graph of `srllm_guard.export.graphs`.
        precision: "int8" or "int4".
    """
    _Rewriter(model, {"int8": _Int8, "int4": _Int4}[precision]).run()


class _Rewriter:
    """Goes through the nodes of a graph and puts others in their places."""

    def __init__(self, model: ModelProto, kind: Callable[[_Rewriter], _Int8 | _Int4]) -> None:
        self._graph = model.graph
        self._held = {each.name: each for each in self._graph.initializer}
        self._added: dict[str, TensorProto] = {}
        self.nodes: list[NodeProto] = []
        self._kind = kind(self)

    def run(self) -> None:
        nodes = list(self._graph.node)
        transposed = {
            node.output[0]: node.input[0]
            for node in nodes
            if node.op_type == "Transpose" and node.input[0] in self._held
        }
        gone = set()
        for node in nodes:
            if node.op_type == "MatMul" and node.input[1] in self._held:
                self._kind.product(node, node.input[1], self._array(node.input[1]).T)
                gone.add(node.input[1])
            elif node.op_type == "MatMul" and node.input[1] in transposed:
                table = transposed[node.input[1]]
                self._kind.product(node, table, self._array(table))
                gone.add(table)
            elif node.op_type == "Gather" and node.input[0] in self._held:
                table = self._array(node.input[0])
                if table.ndim == 2:
                    self._kind.rows(node, node.input[0], table)
                    gone.add(node.input[0])
                else:
                    self.nodes.append(node)
            elif not (node.op_type == "Transpose" and node.output[0] in transposed):
                self.nodes.append(node)
        kept = [each for each in self._graph.initializer if each.name not in gone]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self.nodes)
        self._graph.initializer.extend([*kept, *self._added.values()])

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self._held[name])

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Put a node behind the others; its output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        """Hold an array under a name, which is returned."""
        self._added[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name


class _Int8:
    """Integer products, scaled back by output channel and by token."""

    def __init__(self, graph: _Rewriter) -> None:
        self._graph = graph
        self._rounded: dict[str, tuple[str, str]] = {}

    def product(self, node: NodeProto, name: str, weight: Array) -> None:
        """`weight` [N, K] for a node that multiplies by its transpose."""
        graph = self._graph
        values, scales = _levels(weight, WEIGHT_TOP)
        given, scale = self._tokens(node.input[0])
        stored = graph.constant(f"{name}_int8", values)
        turned = graph.add("Transpose", [stored], f"{name}_turned", perm=[1, 0])
        plain = graph.add(
            "MatMulIntegerToFloat",
            [
                given,
                turned,
                graph.constant("one", np.float32(1)),
                graph.constant(f"{name}_scales", scales),
                graph.constant("zero_point", np.uint8(MIDDLE)),
            ],
            f"{node.output[0]}_unscaled",
            domain=CONTRIB,
        )
        graph.add("Mul", [plain, scale], node.output[0])

    def rows(self, node: NodeProto, name: str, table: Array) -> None:
        """Looked up rows of `table` [V, H]."""
        graph = self._graph
        values, scales = _levels(table, WEIGHT_TOP)
        ids, out = node.input[1], node.output[0]
        stored = graph.constant(f"{name}_int8", values)
        chosen = graph.add("Gather", [stored, ids], f"{out}_int8")
        levels = graph.add("Cast", [chosen], f"{out}_levels", to=TensorProto.FLOAT)
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
            unit = graph.constant("unit", np.float32(1 / ACTIVATION_TOP))
            scale = graph.add("Mul", [safe, unit], f"{name}_scale")
            levels = graph.add("Div", [name, scale], f"{name}_levels")
            # Unsigned, because ONNX Runtime has no fast kernel for two signed factors everywhere.
            middle = graph.constant("middle", np.float32(MIDDLE))
            raised = graph.add("Add", [levels, middle], f"{name}_raised")
            whole = graph.add("Round", [raised], f"{name}_whole")
            rounded = graph.add("Cast", [whole], f"{name}_uint8", to=TensorProto.UINT8)
            self._rounded[name] = rounded, scale
        return self._rounded[name]


class _Int4:
    """MatMulNBits, and the embedding looked up in the same blocks."""

    def __init__(self, graph: _Rewriter) -> None:
        self._graph = graph

    def product(self, node: NodeProto, name: str, weight: Array) -> None:
        """`weight` [N, K] for a node that multiplies by its transpose."""
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
        """Looked up rows of `table` [V, H]."""
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


def _levels(weight: Array, top: int) -> tuple[Array, Array]:
    """`weight` [N, K] as int8 of at most `top`, and the float32 scale of each row, `[N]`."""
    scales = np.maximum(np.abs(weight).max(1), TINY) / top
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)


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
