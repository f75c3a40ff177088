import numpy as np
from absl.testing import absltest
from ai_edge_litert.tools import flatbuffer_utils

from fliqs_tf.export import export_tflite
from fliqs_tf.export import serialization
from fliqs_tf.export.runner import Runner
from tests.export import small_models


def _plain(value):
    """An object of the schema as nested tuples."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, list):
        return tuple(map(_plain, value))
    if hasattr(value, "__dict__"):
        return type(value).__name__, tuple(
            (name, _plain(item)) for name, item in sorted(vars(value).items())
        )
    return value


class SerializationTest(absltest.TestCase):
    def test_equal_arrays_are_written_once_and_read_alike(self):
        images = small_models.images()
        path = self.create_tempfile().full_path
        fixed = small_models.fixed(small_models.residual(), "int4")
        export_tflite(fixed, path, "int8", images)
        with open(path, "rb") as file:
            shared = file.read()
        model = flatbuffer_utils.read_model_from_bytearray(shared)
        apart = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
        self.assertEqual(
            _plain(model),
            _plain(flatbuffer_utils.read_model_from_bytearray(apart)),
        )
        # At least 8 bytes for the zero point of each channel of the biases.
        channels = sum(
            len(tensor.quantization.zeroPoint)
            for tensor in model.subgraphs[0].tensors
            if tensor.quantization is not None
            and tensor.quantization.zeroPoint is not None
            and tensor.type == 2
        )
        self.assertGreater(channels, 0)
        self.assertLess(len(shared), len(apart) - 8 * channels)
        # Nothing is lost by writing again.
        self.assertEqual(serialization.to_bytes(model), shared)
        for ours, theirs in zip(
            Runner(shared)([images[:4]]),
            Runner(apart)([images[:4]]),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


if __name__ == "__main__":
    absltest.main()
