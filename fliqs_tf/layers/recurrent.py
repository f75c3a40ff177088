"""Searchable recurrent layers.

Arguments are those of the Keras layers and of `SearchableLayer`. A layer has
two kernels, for its input and for its state, and one decision: both kernels
have the layer's format, and so have the input and the state where they are
multiplied. Each column of each kernel has its own scale.

Operands are rounded and scaled back (`codes * scale`), as the sum of the two
products has no one scale. The kernels and the whole input sequence are rounded
once, before the loop over time. The state is rounded at each step, for the
product only: what the cell carries on is not rounded. Its range is 1 where the
activations bound it (tanh and sigmoid do; an initial state beyond 1 is
clipped), otherwise the absmax of the step.

cuDNN's fused loop is not used: it knows no formats.
"""

import math
from typing import Any

import keras
from keras import ops

from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.calibration import warn_if_uncalibrated
from fliqs_tf.layers.children import exchange
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.recurrent_cells import GRUCell
from fliqs_tf.layers.recurrent_cells import LSTMCell
from fliqs_tf.layers.recurrent_cells import SimpleRNNCell
from fliqs_tf.layers.searchable_layer import SearchableLayer
from fliqs_tf.quantizers import InputQuantizer

_GATES = (keras.activations.sigmoid, keras.activations.hard_sigmoid)
_BOUNDED = (
    keras.activations.tanh,
    keras.activations.hard_tanh,
    keras.activations.softsign,
    *_GATES,
)


class _Recurrent(SearchableLayer):
    operands = (
        Operand("kernel", -1, "input"),
        Operand("recurrent_kernel", -1, "state"),
    )
    cell_class: Any

    def __init__(self, *args, use_cudnn="auto", **kwargs):
        if use_cudnn is True:
            raise ValueError(
                "cuDNN knows no number formats. Received: use_cudnn=True. "
                "Leave it at 'auto', or give False."
            )
        super().__init__(*args, **kwargs)
        if hasattr(self, "use_cudnn"):
            self.use_cudnn = False
            # Keras forbids XLA where it would call cuDNN.
            self.supports_jit = True
        cell = self.cell_class.from_config(
            {**self.cell.get_config(), **_implementation(self)}
        )
        exchange(self, {"cell": cell})
        gates = getattr(self.cell, "recurrent_activation", _GATES[0])
        self._is_bounded = self.cell.activation in _BOUNDED and gates in _GATES
        self._state_quantizer = self.input_quantizer and InputQuantizer(
            self.input_quantizer.formats,
            "ema" if self._is_bounded else "dynamic",
        )

    @classmethod
    def holder(cls, layer):
        return layer.cell

    @classmethod
    def config_of(cls, layer):
        return {**layer.get_config(), **_implementation(layer)}

    def get_config(self):
        return {**super().get_config(), **_implementation(self)}

    def build(self, sequences_shape, initial_state_shape=None):
        keras.layers.RNN.build(self, sequences_shape, initial_state_shape)
        self._build_quantizers()

    def _build_input(self, quantizer, name):
        if name == "state":
            # Its range is a constant, so that the choice is all of its state.
            quantizer = InputQuantizer(quantizer.formats, "dynamic")
        return super()._build_input(quantizer, name)

    def drop_input_quantizers(self):
        super().drop_input_quantizers()
        self._state_quantizer = None

    def call(  # type: ignore[override]
        self, sequences, initial_state=None, mask=None, training=False
    ):
        return keras.layers.RNN.call(
            self, sequences, initial_state, mask, training
        )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        if self.is_float:
            return keras.layers.RNN.inner_loop(
                self, sequences, initial_state, mask, training
            )
        if not training:
            warn_if_uncalibrated(self)
        kernels = {}
        for operand in self.operands:
            codes, scale = self.kernel_codes(training, operand.kernel)
            kernels[operand.kernel] = ops.cast(
                codes * scale, self.compute_dtype
            )
        if self.input_quantizer is not None:
            sequences = self.input_quantizer(
                sequences, training, self._input_states["input"]
            )
        with self.cell.using(kernels, self._round_state):
            return keras.layers.RNN.inner_loop(
                self, sequences, initial_state, mask, training
            )

    def _round_state(self, state):
        if self._state_quantizer is None:
            return state
        weights = {**self._input_states["state"]}
        if self._is_bounded:
            weights |= {"range": ops.ones(()), "updates": ops.ones(())}
        return self._state_quantizer(state, False, weights)

    @staticmethod
    def macs(layer, input_shape):
        """Steps times the sizes of both kernels."""
        kernels = (layer.cell.kernel, layer.cell.recurrent_kernel)
        sizes = sum(math.prod(kernel.shape) for kernel in kernels)
        return input_shape[1] * sizes


def _implementation(layer):
    """The order of operations, which Keras leaves out of configurations."""
    if hasattr(layer.cell, "implementation"):
        return {"implementation": layer.cell.implementation}
    return {}


@searchable(keras.layers.SimpleRNN)
class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` whose kernels and operands have a format."""

    cell_class = SimpleRNNCell


@searchable(keras.layers.LSTM)
class LSTM(_Recurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` whose kernels and operands have a format."""

    cell_class = LSTMCell


@searchable(keras.layers.GRU)
class GRU(_Recurrent, keras.layers.GRU):
    """`keras.layers.GRU` whose kernels and operands have a format."""

    cell_class = GRUCell
