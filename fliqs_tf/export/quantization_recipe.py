"""A recipe for `ai-edge-quantizer`: what it is to make of which operator.

The tool finds operators by regular expressions over their scopes: the names of
their outputs, each with a semicolon behind it. Names of layers are no good
expressions. A converter joins the names of all that it fused into an operator,
so that a scope holds several layers, and names the last one after the call of
the whole (`StatefulPartitionedCall_1:0`), so that it holds none. The entries
here have the whole scope of one operator each.
"""

import re
from typing import Any

from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import builtin_name


class QuantizationRecipe:
    """Entries for operators of a file.

    Args:
        graph: The file, whose tensors have names of their own.
    """

    def __init__(self, graph: Graph):
        # The import takes seconds, and only some exports need it.
        from ai_edge_quantizer import qtyping
        from ai_edge_quantizer import recipe_manager

        self._graph = graph
        self._types = qtyping
        self._manager = recipe_manager.RecipeManager()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Plain data in the tool's layout; what JSON is made of."""
        return self._manager.get_quantization_recipe()

    def add(
        self,
        operator,
        weight_bits: int,
        activation_bits: int | None = None,
        is_weight_only: bool = False,
    ) -> None:
        """Adds an operator.

        Args:
            operator: Operator of the graph.
            weight_bits: Width of its weights: 4 or 8, with a scale for each
                output channel. Without weights, 8.
            activation_bits: Width of its inputs and outputs: 8, 16, or `None`
                for float32.
            is_weight_only: Whether it is to compute in float32, from decoded
                weights.
        """
        types = self._types
        tensor = types.TensorQuantizationConfig
        activations = None
        if activation_bits is not None:
            # The runtime's kernels for 16 bits have no zero points.
            activations = tensor(
                num_bits=activation_bits, symmetric=activation_bits != 8
            )
        precision = types.ComputePrecision
        self._manager.add_quantization_config(
            self._expression(operator),
            types.TFLOperationName(builtin_name(self._graph.builtin(operator))),
            types.OpQuantizationConfig(
                activation_tensor_config=activations,
                weight_tensor_config=tensor(
                    num_bits=weight_bits,
                    symmetric=True,
                    granularity=types.QuantGranularity.CHANNELWISE,
                ),
                compute_precision=(
                    precision.FLOAT if is_weight_only else precision.INTEGER
                ),
                explicit_dequantize=is_weight_only,
            ),
        )

    def _expression(self, operator) -> str:
        names = [self._graph.name(int(n)) for n in operator.outputs]
        return f"^{re.escape(';'.join(names))};?$"
