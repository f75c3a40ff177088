"""An ONNX file in ONNX Runtime."""

from collections.abc import Sequence

import numpy as np


class OnnxRunner:
    """Calls a file with arrays in the order of its inputs, on the CPU.

    Args:
        content: The bytes of the file.
        names: Names of the inputs, in the order of the arrays.

    Raises:
        RuntimeError: If ONNX Runtime lacks an operator of the file.
    """

    def __init__(self, content: bytes, names: Sequence[str]):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        # The classes of its errors have no base but this.
        except Exception as error:
            raise RuntimeError(
                "ONNX Runtime must be able to load the file. Received: "
                f"{error}. Export with `activations='float'`, or with other "
                "formats."
            ) from error
        # What a model does not read is no input of the file.
        known = {tensor.name for tensor in self._session.get_inputs()}
        self._names = [name if name in known else None for name in names]

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        feed = {
            name: array
            for name, array in zip(self._names, arrays, strict=True)
            if name is not None
        }
        return self._session.run(None, feed)
