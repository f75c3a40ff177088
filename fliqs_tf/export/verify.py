"""The proof: the file against the Keras model, on data.

The file runs in the LiteRT interpreter with the kernels that users get by
default. The reference is called eagerly, operator by operator. Compiled calls
(`predict`) regroup float32 sums, XLA more than TensorFlow's own optimizer, so
that they themselves differ from the eager call where a last bit carries a
value across a rounding boundary. Without that optimizer's
`arithmetic_optimization` (`tf.config.optimizer.set_experimental_options`) and
without XLA they were equal to it on all samples measured.
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from fliqs_tf.export import litert

BATCH_SIZE = 64
RANDOM_SAMPLES = 64
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Verification:
    """How well a file agrees with its reference.

    Args:
        data: `"given"`, or `"random"`: standard normal inputs of a fixed seed.
        samples: Number of samples compared.
        max_relative_error: Largest `|file - reference|`, relative to the
            largest magnitude of that output over all samples.
        argmax_agreement: Samples whose largest output has the same index.
        deviating_samples: Samples outside the tolerance or with another
            argmax.
        tolerance: Bound of the relative error.
    """

    data: str
    samples: int
    max_relative_error: float
    argmax_agreement: int
    deviating_samples: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.deviating_samples == 0


def compare(
    content: bytes,
    reference: keras.Model,
    batches: Iterator[list[np.ndarray]],
    data: str,
    tolerance: float,
) -> Verification:
    """Runs a file and its reference on the same batches.

    Args:
        content: The bytes of the file.
        reference: Keras model with the same inputs and outputs.
        batches: Lists of arrays `(batch, ...)`, one an input of the model.
        data: Where the batches come from, for the record.
        tolerance: Allowed error relative to the output's largest magnitude.

    Returns:
        The comparison.
    """
    runner = _Runner(content)
    errors, agreements, magnitudes = [], [], []
    for batch in batches:
        tensors = [tf.convert_to_tensor(array) for array in batch]
        expected = [np.asarray(y) for y in litert.call(reference, tensors)]
        received = runner(batch)
        pairs = list(zip(received, expected, strict=True))
        _check_outputs(pairs)
        errors.append([_sample_errors(*pair) for pair in pairs])
        agreements.append(np.all([_same_argmax(*pair) for pair in pairs], 0))
        magnitudes.append([np.abs(y).max(initial=0.0) for y in expected])
    scale = np.max(magnitudes, axis=0)
    # An output that is zero throughout has no scale: errors count as they are.
    scale = np.where(scale > 0, scale, 1.0)[:, None]
    relative = np.max(np.concatenate(errors, axis=1) / scale, axis=0)
    agrees = np.concatenate(agreements)
    return Verification(
        data=data,
        samples=len(relative),
        max_relative_error=float(relative.max()),
        argmax_agreement=int(agrees.sum()),
        deviating_samples=int(np.sum((relative > tolerance) | ~agrees)),
        tolerance=tolerance,
    )


def random_batches(model: keras.Model) -> Iterator[list[np.ndarray]]:
    """Yields standard normal inputs of a fixed seed, one batch of them.

    Raises:
        ValueError: If a dimension besides the batch is open.
    """
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "Inputs of open sizes cannot be made up. Received: "
                f"{tensor.name!r} of shape {tensor.shape}. Give `verify_data`."
            )
    random = np.random.default_rng(_SEED)
    yield [
        random.standard_normal((RANDOM_SAMPLES, *x.shape[1:])).astype(x.dtype)
        for x in model.inputs
    ]


def batches_of(verify_data, model: keras.Model) -> Iterator[list[np.ndarray]]:
    """Yields batches of the data that a caller gave.

    Args:
        verify_data: Array or `tf.data.Dataset` of batches, of the input or,
            for several inputs, a list of them (dictionaries by input name);
            pairs `(x, y)` of a data set lose their `y`.
        model: Model whose inputs they are.

    Raises:
        ValueError: If there is no sample, or a shape is not the model's.
    """
    found = False
    for arrays in _raw_batches(verify_data, model):
        _check_shapes(arrays, model)
        for start in range(0, len(arrays[0]), BATCH_SIZE):
            found = True
            yield [array[start : start + BATCH_SIZE] for array in arrays]
    if not found:
        raise ValueError(
            "`verify_data` must hold at least one sample. Received: none. Give "
            "some inputs, or None for random ones."
        )


def _raw_batches(verify_data, model):
    if not isinstance(verify_data, tf.data.Dataset):
        yield _inputs_of(verify_data, model)
        return
    if verify_data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`verify_data` must end. Received: an infinite data set. Use "
            "`.take(count)`."
        )
    for element in verify_data.as_numpy_iterator():
        if isinstance(element, tuple):
            element = element[0]
        yield _inputs_of(element, model)


def _inputs_of(element, model) -> list[np.ndarray]:
    names = litert.input_names(model)
    if isinstance(element, dict):
        if set(element) != set(names):
            raise ValueError(
                f"`verify_data` must name the inputs {names}. Received: "
                f"{sorted(element)}."
            )
        element = [element[name] for name in names]
    elif not isinstance(element, list | tuple):
        element = [element]
    if len(element) != len(names):
        raise ValueError(
            f"`verify_data` must hold one array for each of the inputs {names}."
            f" Received: {len(element)} arrays."
        )
    pairs = zip(element, model.inputs, strict=True)
    return [np.asarray(array).astype(x.dtype) for array, x in pairs]


def _check_shapes(arrays, model):
    for array, tensor in zip(arrays, model.inputs, strict=True):
        expected = tensor.shape[1:]
        received = array.shape[1:]
        if len(expected) != len(received) or any(
            size not in (None, given)
            for size, given in zip(expected, received, strict=True)
        ):
            raise ValueError(
                f"`verify_data` for input {tensor.name!r} must have the shape "
                f"{(None, *expected)}. Received: shape={array.shape}. Leave "
                "the batch dimension in front, and preprocess as for training."
            )
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(
            "`verify_data` must hold as many samples for every input. "
            f"Received: {[len(array) for array in arrays]}."
        )


def _check_outputs(pairs):
    shapes = [(received.shape, expected.shape) for received, expected in pairs]
    if any(received != expected for received, expected in shapes):
        raise RuntimeError(
            "The file must have outputs of the Keras model's shapes. Received: "
            f"(file, Keras) = {shapes}. LiteRT computes some layer differently;"
            " replace the layers that are not common ones, one by one."
        )


def _sample_errors(received, expected):
    """Largest absolute error of each sample; NaN counts as infinite."""
    difference = np.abs(received - expected).reshape(len(expected), -1)
    # Both infinite, or both NaN, is agreement; one of them is not.
    same = (received == expected) | (np.isnan(received) & np.isnan(expected))
    difference = np.where(same.reshape(difference.shape), 0.0, difference)
    return np.nan_to_num(difference, nan=np.inf).max(axis=1, initial=0.0)


def _same_argmax(received, expected):
    """Whether each sample's largest value stands at the same index.

    Where the reference has several equal largest values, any of them counts.
    """
    if expected.ndim < 2:
        return np.ones(len(expected), bool)
    index = received.argmax(axis=-1)[..., None]
    chosen = np.take_along_axis(expected, index, axis=-1)[..., 0]
    same = ~(chosen < expected.max(axis=-1))
    return same.reshape(len(expected), -1).all(axis=1)


class _Runner:
    """Calls a file with arrays in the order of its inputs."""

    def __init__(self, content: bytes):
        self._interpreter = Interpreter(model_content=content)

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._invoke(arrays)
        except (RuntimeError, ValueError):
            # Some operators fix the batch at conversion: one by one, then.
            if len(arrays[0]) == 1:
                raise
        single = [
            self._invoke([array[i : i + 1] for array in arrays])
            for i in range(len(arrays[0]))
        ]
        return [np.concatenate(parts) for parts in zip(*single, strict=True)]

    def _invoke(self, arrays):
        run = self._interpreter
        inputs = [tensor["index"] for tensor in run.get_input_details()]
        for tensor, array in zip(inputs, arrays, strict=True):
            run.resize_tensor_input(tensor, array.shape)
        run.allocate_tensors()
        for tensor, array in zip(inputs, arrays, strict=True):
            run.set_tensor(tensor, array)
        run.invoke()
        outputs = [tensor["index"] for tensor in run.get_output_details()]
        return [run.get_tensor(tensor) for tensor in outputs]
