"""The cost `size` is the weight data of the exported file."""

import os

import keras
import numpy as np
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import TensorType


def _weight_bytes(path):
    """Bytes of weights, scales and biases, whatever their containers."""
    with open(path, "rb") as file:
        graph = Graph(file.read())
    total = 0
    for number, tensor in enumerate(graph.tensors):
        # Shapes and slices are INT32, and belong to the structure.
        if graph.size(number) and tensor.type != TensorType.INT32:
            total += graph.size(number)
            scale = tensor.quantization and tensor.quantization.scale
            total += 0 if scale is None else 4 * len(scale)
    return total


class ExportedSizeTest(parameterized.TestCase):
    @parameterized.product(
        network=(
            ("residual_small", {}),
            ("resnet20", {"width": 0.5}),
            ("mlperf_tiny_resnet8", {}),
            ("mlperf_tiny_mobilenet_v1", {}),
        ),
        fmt=("int4", "int8", "e4m3"),
    )
    def test_within_two_per_cent(self, network, fmt):
        name, arguments = network
        model = fliqs.models.get(name, **arguments)
        fixed = fliqs.to_fixed(model, fliqs.Assignment.uniform(model, fmt))
        # As after a training: no bias is zero, no norm the identity.
        random = np.random.default_rng(0)
        for layer in fixed.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.set_weights(
                    [random.uniform(0.5, 1.5, w.shape) for w in layer.weights]
                )
            elif getattr(layer, "bias", None) is not None:
                layer.bias.assign(random.normal(size=layer.bias.shape))
        path = os.path.join(self.create_tempdir().full_path, "model.tflite")
        # Random weights may leave two outputs equal within the tolerance.
        fliqs.export_tflite(fixed, path, allow_mismatch=True)
        stored = _weight_bytes(path)
        if fmt == "e4m3":
            stored -= 256 * 4  # The table that turns codes into values.
        size = fliqs.costs.get("size")(model, fmt) * 2**20
        self.assertAlmostEqual(size / stored, 1.0, delta=0.02)
