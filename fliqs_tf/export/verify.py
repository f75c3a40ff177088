"""The proof: the file against the Keras model, on data.

The file runs in the LiteRT interpreter with the kernels that users get by
default. Where it is to equal the reference, that one is called eagerly,
operator by operator. Compiled calls (`predict`) regroup float32 sums, XLA more
than TensorFlow's own optimizer, so that they themselves differ from the eager
call where a last bit carries a value across a rounding boundary. Without that
optimizer's `arithmetic_optimization`
(`tf.config.optimizer.set_experimental_options`) and without XLA they were equal
to it on all samples measured. Elsewhere the file rounds more or less than the
reference on purpose: a last bit is nothing beside that, and with compiled calls
10,000 images take half the time (`benchmarks/verification.py`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import litert
from fliqs_tf.export.agreement import Agreement
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.output_errors import deviating
from fliqs_tf.export.ranges import CALIBRATION_SAMPLES
from fliqs_tf.export.tally import Tally

BATCH_SIZE = 64
RANDOM_SAMPLES = 64
# Tracing takes as long as some eager calls.
_EAGER_BATCHES = 8
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples to compare on.

    Args:
        inputs: Arrays `(batch, ...)`, one an input of the model.
        labels: Class numbers `(batch,)`, `None` where they are not known.
    """

    inputs: list[np.ndarray]
    labels: np.ndarray | None = None


def compare(
    runner: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    references: Mapping[str, tuple[keras.Model, Bounds]],
    batches: Iterator[Batch],
    data: str,
    replay: Callable[[list[np.ndarray]], list[np.ndarray] | None] | None = None,
    is_exact: bool = False,
) -> dict[str, Agreement]:
    """Runs a file and its references on the same batches.

    Args:
        runner: The file: arrays, in the order of the inputs, -> outputs.
        references: Name -> Keras model with the same inputs and outputs, and
            how far the file may be from it.
        batches: What to run.
        data: Where the batches come from, for the record.
        replay: What a deviating sample of `"verification"` is compared with in
            the second place: a sample -> outputs, `None` if they would prove
            nothing.
        is_exact: Whether the file is to have the bits of the references, so
            that they may not be compiled.

    Returns:
        Name -> comparison with that reference.
    """
    tallies = {name: Tally() for name in references}
    calls: dict[str, Callable] = {
        name: functools.partial(litert.call, model)
        for name, (model, _) in references.items()
    }
    for number, batch in enumerate(batches):
        if number == _EAGER_BATCHES and not is_exact:
            calls = {
                name: _compiled(model)
                for name, (model, _) in references.items()
            }
        received = runner(batch.inputs)
        tensors = [tf.convert_to_tensor(array) for array in batch.inputs]
        for name, (_, bounds) in references.items():
            expected = [np.asarray(y) for y in calls[name](tensors)]
            replays = {}
            if replay is not None and name == "verification":
                replays, replay = _replays(
                    replay, batch, received, expected, bounds
                )
            tallies[name].add(received, expected, batch.labels, replays)
    return {
        name: tally.result(data, references[name][1])
        for name, tally in tallies.items()
    }


def _compiled(model):
    return tf.function(
        functools.partial(litert.call, model),
        input_signature=[
            [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in model.inputs]
        ],
        autograph=False,
    )


def first_batches(
    verify_data, model: keras.Model
) -> tuple[list[Batch], Iterator[Batch], str]:
    """Begins to read the data, so that what is wrong with it is found early.

    Args:
        verify_data: See `batches_of`; `None` for `random_batches`.
        model: Model whose inputs they are.

    Returns:
        The first batches, enough to measure ranges on; all batches, the
        first ones again; and where they come from, `"given"` or `"random"`.
    """
    if verify_data is None:
        batches, data = random_batches(model), "random"
    else:
        batches, data = batches_of(verify_data, model), "given"
    head: list[Batch] = []
    for batch in batches:
        head.append(batch)
        if sum(len(b.inputs[0]) for b in head) >= CALIBRATION_SAMPLES:
            break
    return head, itertools.chain(head, batches), data


def _replays(replay, batch, received, expected, bounds):
    """Returns replayed outputs by sample; no replay once one proved nothing."""
    found: dict[int, list[np.ndarray]] = {}
    for index in deviating(received, expected, bounds.tolerance):
        outputs = replay([array[index : index + 1] for array in batch.inputs])
        if outputs is None:
            return found, None
        found[index] = outputs
    return found, replay


def random_batches(model: keras.Model) -> Iterator[Batch]:
    """Yields standard normal inputs of a fixed seed, one batch of them.

    Raises:
        ValueError: If a dimension besides the batch is open, or an input
            holds no floats: whole numbers have a range that is not known.
    """
    for tensor in model.inputs:
        if not keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                "Only inputs of floats can be made up. Received: "
                f"{tensor.name!r} of dtype={tensor.dtype!r}. Give "
                "`verify_data`."
            )
        if None in tensor.shape[1:]:
            raise ValueError(
                "Inputs of open sizes cannot be made up. Received: "
                f"{tensor.name!r} of shape {tensor.shape}. Give `verify_data`."
            )
    random = np.random.default_rng(_SEED)
    yield Batch(
        [
            random.standard_normal((RANDOM_SAMPLES, *x.shape[1:])).astype(
                x.dtype
            )
            for x in model.inputs
        ]
    )


def batches_of(verify_data, model: keras.Model) -> Iterator[Batch]:
    """Yields batches of the data that a caller gave.

    Args:
        verify_data: An array of the input or, for several inputs, a list of
            them (dictionaries by input name); or such batches, in a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterator.
            The `y` of a pair `(x, y)`, given or of a data set, are labels if
            they can be: one class number, or one row of the output's width
            with a single 1 among zeros, a sample.
        model: Model whose inputs they are.

    Raises:
        ValueError: If there is no sample, a shape is not the model's, or a
            number is not finite: outputs of NaN agree with any others of NaN,
            whatever a file computes.
    """
    found = False
    for arrays, labels in _raw_batches(verify_data, model):
        for start in range(0, len(arrays[0]), BATCH_SIZE):
            found = True
            part = slice(start, start + BATCH_SIZE)
            yield Batch(
                [array[part] for array in arrays],
                None if labels is None else labels[part],
            )
    if not found:
        raise ValueError(
            "`verify_data` must hold at least one sample. Received: none. Give "
            "some inputs, or None for random ones."
        )


def _raw_batches(verify_data, model):
    for element in _elements(verify_data):
        y = None
        if isinstance(element, tuple):
            element, y, _ = keras.utils.unpack_x_y_sample_weight(element)
        arrays = _inputs_of(element, model)
        _check_shapes(arrays, model)
        _check_finite(arrays, model)
        labels = None if y is None else _labels_of(y, model)
        if labels is not None and len(labels) != len(arrays[0]):
            raise ValueError(
                "`verify_data` must hold a label for every sample. Received: "
                f"{len(labels)} labels of {len(arrays[0])} samples. Give as "
                "many, or inputs alone."
            )
        yield arrays, labels


def _elements(verify_data) -> Iterable:
    """Batches `x` or `(x, y)`, of any number of samples."""
    if isinstance(verify_data, tf.data.Dataset):
        is_endless = verify_data.cardinality() == tf.data.INFINITE_CARDINALITY
        elements = verify_data.as_numpy_iterator()
    elif isinstance(verify_data, keras.utils.PyDataset):
        count = verify_data.num_batches
        is_endless = count is None
        elements = (verify_data[index] for index in range(count or 0))
    else:
        is_iterator = isinstance(verify_data, Iterator)
        return verify_data if is_iterator else [verify_data]
    if is_endless:
        raise ValueError(
            "`verify_data` must end. Received: an infinite data set. Use "
            "`.take(count)`, or give it a length."
        )
    return elements


def _labels_of(y, model) -> np.ndarray | None:
    """Class numbers `(batch,)` of what a data set calls `y`."""
    if isinstance(y, dict | tuple) or len(model.outputs) != 1:
        return None
    classes = model.outputs[0].shape[-1]
    y = np.asarray(y)
    if len(model.outputs[0].shape) != 2 or classes in (None, 1) or not y.ndim:
        return None
    if y.ndim == 2 and y.shape[1] == classes:
        # Other rows of that width are targets: images of an autoencoder, say.
        is_one_hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()
        return y.argmax(axis=1) if is_one_hot else None
    y = y.reshape(len(y), -1)
    if y.shape[1] != 1 or not np.issubdtype(y.dtype, np.integer):
        return None
    _check_classes(y, classes)
    return y[:, 0]


def _check_classes(y, classes):
    if y.size and not 0 <= y.min() <= y.max() < classes:
        raise ValueError(
            "Labels in `verify_data` must be class numbers from 0 to "
            f"{classes - 1}. Received: numbers from {y.min()} to {y.max()}. "
            "Count from 0, leave out samples without a class, or give inputs "
            "alone."
        )


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
            f"`verify_data` must hold one array for each of the inputs {names},"
            " in a list, or be a tuple `(x, y)` of inputs and labels. Received:"
            f" {len(element)} arrays."
        )
    pairs = zip(element, model.inputs, strict=True)
    try:
        return [np.asarray(array).astype(x.dtype) for array, x in pairs]
    except (TypeError, ValueError) as error:
        kinds = [type(array).__name__ for array in element]
        raise ValueError(
            f"`verify_data` must hold arrays of numbers for the inputs {names}."
            f" Received: {', '.join(kinds)} ({error}). Give arrays, or batches "
            "of them in a `tf.data.Dataset` or an iterator."
        ) from error


def _check_shapes(arrays, model):
    for array, tensor in zip(arrays, model.inputs, strict=True):
        # The first one is the batch's.
        expected = (None, *tensor.shape[1:])
        if len(expected) != array.ndim or any(
            size not in (None, given)
            for size, given in zip(expected, array.shape, strict=True)
        ):
            raise ValueError(
                f"`verify_data` for input {tensor.name!r} must have the shape "
                f"{expected}. Received: shape={array.shape}. Leave "
                "the batch dimension in front, and preprocess as for training."
            )
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(
            "`verify_data` must hold as many samples for every input. "
            f"Received: {[len(array) for array in arrays]}."
        )


def _check_finite(arrays, model):
    for array, tensor in zip(arrays, model.inputs, strict=True):
        if not keras.backend.is_float_dtype(tensor.dtype):
            continue
        axes = tuple(range(1, array.ndim))
        is_finite = np.isfinite(array).all(axis=axes)
        if not is_finite.all():
            raise ValueError(
                f"`verify_data` for input {tensor.name!r} must hold finite "
                f"numbers. Received: {np.sum(~is_finite)} of {len(array)} "
                "samples with NaN or infinity. Leave these out, and preprocess "
                "as for training."
            )
