"""A file in the LiteRT interpreter."""

from collections.abc import Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.interpreter import OpResolverType

KERNELS = {
    "default": OpResolverType.AUTO,
    "reference": OpResolverType.BUILTIN_REF,
}


class Runner:
    """Calls a file with arrays in the order of its inputs.

    Args:
        content: The bytes of the file.
        kernels: `"default"`, what users get (XNNPACK where it can), or
            `"reference"`: the plain kernels, slow and written for reading.
        keeps_tensors: Whether `tensor` can be called.

    Raises:
        RuntimeError: If the kernels lack an operator of the file, or (when it
            is called) cannot prepare or compute it.
    """

    def __init__(
        self,
        content: bytes,
        kernels: str = "default",
        keeps_tensors: bool = False,
    ):
        self._kernels = kernels
        try:
            self._interpreter = Interpreter(
                model_content=content,
                experimental_op_resolver_type=KERNELS[kernels],
                experimental_preserve_all_tensors=keeps_tensors,
            )
        # Of operators it does not know.
        except (ValueError, RuntimeError) as error:
            raise self._refusal("read", error) from error
        self._quantization = {
            details["index"]: details["quantization"]
            for details in self._interpreter.get_tensor_details()
        }

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._invoke(arrays)
        except (RuntimeError, ValueError) as error:
            # Some operators fix the batch at conversion: one by one, then.
            if len(arrays[0]) == 1:
                raise self._refusal("run", error) from error
        single = [
            self([array[i : i + 1] for array in arrays])
            for i in range(len(arrays[0]))
        ]
        return [np.concatenate(parts) for parts in zip(*single, strict=True)]

    def tensor(self, number: int) -> np.ndarray:
        """Value of a tensor after a call, as float32 if it is quantized."""
        value = self._interpreter.get_tensor(number)
        scale, zero = self._quantization[number]
        if scale:
            return (value.astype(np.float32) - zero) * np.float32(scale)
        return value

    def _refusal(self, verb, error) -> RuntimeError:
        # LiteRT's messages have several lines.
        message = " ".join(str(error).split())
        return RuntimeError(
            f"LiteRT must be able to {verb} the file. Received: {message} "
            f"(kernels={self._kernels!r}). Export with another `activations` "
            'mode; "float" asks least of the runtime.'
        )

    def _invoke(self, arrays):
        run = self._interpreter
        inputs = [tensor["index"] for tensor in run.get_input_details()]
        for tensor, array in zip(inputs, arrays, strict=True):
            run.resize_tensor_input(tensor, array.shape)
        # Not before they have their sizes: those of a file are placeholders
        # where the model leaves them open, and too small for some operators.
        run.allocate_tensors()
        for tensor, array in zip(inputs, arrays, strict=True):
            run.set_tensor(tensor, array)
        run.invoke()
        outputs = [tensor["index"] for tensor in run.get_output_details()]
        return [run.get_tensor(tensor) for tensor in outputs]
