"""Compares every network at its defaults with a stored summary.

A summary that is missing is written and the test fails once, so that the new
file is read before it is committed.
"""

import json
import pathlib

import pytest
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs

# Parameters that others publish for the same networks: torchvision (ResNet-50,
# with the statistics of batch norm), Keras (EfficientNets, less the seven of
# the normalization of the input, MobileNetV2, and InceptionV3, which has no
# scale in its batch norms), the DeiT authors (ViT-B/16) and MLPerf Tiny.
_PUBLISHED = (
    ("deit", 86_567_656),
    ("efficientnet_b0", 5_330_571 - 7),
    ("efficientnet_b1", 7_856_239 - 7),
    ("efficientnet_b2", 9_177_569 - 7),
    ("efficientnet_b3", 12_320_535 - 7),
    ("efficientnet_b4", 19_466_823 - 7),
    ("inception_v3", 23_851_784 + 17_216),
    ("mlperf_tiny_mobilenet_v1", 221_794),
    ("mlperf_tiny_resnet8", 78_666),
    ("mobilenet_v2", 3_538_984),
    ("resnet50", 25_557_032 + 53_120),
)
_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "models"


def _summary(model):
    profiles = fliqs.costs.profile(model).values()
    return {
        "input_shape": list(model.input_shape[1:]),
        "parameters": model.count_params(),
        "macs": sum(layer.macs for layer in profiles),
        "kernel_layers": {
            layer.path: {
                "kind": layer.kind,
                "macs": layer.macs,
                "weights": layer.weights,
                "biases": layer.biases,
            }
            for layer in profiles
        },
    }


def _to_text(summary):
    """JSON with one line for each layer, so that changes are easy to read."""
    layers = ",\n".join(
        f"  {json.dumps(path)}: {json.dumps(layer)}"
        for path, layer in summary["kernel_layers"].items()
    )
    head = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value)}"
        for key, value in summary.items()
        if key != "kernel_layers"
    )
    return f'{{\n{head},\n "kernel_layers": {{\n{layers}\n }}\n}}\n'


class SummaryTest(parameterized.TestCase):
    @parameterized.parameters(*fliqs.models.names())
    @pytest.mark.one_in(4)
    def test_summary(self, name):
        text = _to_text(_summary(fliqs.models.get(name)))
        path = _GOLDEN / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            self.fail(f"There was no {path}; wrote it. Read it, run again.")
        self.assertEqual(text, path.read_text(encoding="utf-8"))

    def test_stored_parameters_are_the_published(self):
        for name, parameters in _PUBLISHED:
            stored = json.loads((_GOLDEN / f"{name}.json").read_text("utf-8"))
            self.assertEqual(stored["parameters"], parameters, name)

    def test_every_summary_has_its_network(self):
        stored = {path.stem for path in _GOLDEN.glob("*.json")}
        self.assertEqual(stored, set(fliqs.models.names()))


if __name__ == "__main__":
    absltest.main()
