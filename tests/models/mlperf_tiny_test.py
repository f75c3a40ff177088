from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs


def _conv(kernel, inputs, outputs):
    return [(kernel, kernel, inputs, outputs), (outputs,)]


def _bn(channels):
    return [(channels,)] * 4


# The weights of the benchmark's `pretrainedResnet.h5`, in its order.
_RESNET8 = [
    *_conv(3, 3, 16),
    *_bn(16),
    *_conv(3, 16, 16),
    *_bn(16),
    *_conv(3, 16, 16),
    *_bn(16),
    *_conv(3, 16, 32),
    *_bn(32),
    *_conv(3, 32, 32),
    *_conv(1, 16, 32),
    *_bn(32),
    *_conv(3, 32, 64),
    *_bn(64),
    *_conv(3, 64, 64),
    *_conv(1, 32, 64),
    *_bn(64),
    (64, 10),
    (10,),
]


class MLPerfTinyTest(parameterized.TestCase):
    def test_resnet8_takes_the_weights_of_the_benchmark(self):
        model = fliqs.models.get("mlperf_tiny_resnet8")
        self.assertEqual([w.shape for w in model.weights], _RESNET8)
        self.assertEqual(model.count_params(), 78_666)

    def test_resnet8_projects_without_batch_norm(self):
        model = fliqs.models.get("mlperf_tiny_resnet8")
        names = [layer.name for layer in model.layers]
        self.assertIn("block2_projection", names)
        self.assertNotIn("block2_projection_bn", names)
        self.assertNotIn("block1_projection", names)

    def test_mobilenet_v1_has_the_parameters_of_the_benchmark(self):
        model = fliqs.models.get("mlperf_tiny_mobilenet_v1")
        self.assertEqual(model.count_params(), 221_794)
        self.assertEqual(model.input_shape, (None, 96, 96, 3))
        self.assertEqual(model.output_shape, (None, 2))

    @parameterized.parameters((0.25, 8, 256), (1.0, 32, 1024))
    def test_mobilenet_v1_width(self, width, first, last):
        model = fliqs.models.get(
            "mlperf_tiny_mobilenet_v1", input_shape=(32, 32, 3), width=width
        )
        self.assertEqual(model.get_layer("stem").filters, first)
        self.assertEqual(model.get_layer("block13_pointwise").filters, last)


if __name__ == "__main__":
    absltest.main()
