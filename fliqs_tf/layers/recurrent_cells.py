"""Cells of recurrent layers that compute with the operands they are given.

They are Keras's cells; a searchable layer lends them its rounded kernels, and
what rounds the state, for the time of a loop.
"""

import contextlib
from typing import Any

import keras
from keras import ops

_KERNELS = ("kernel", "recurrent_kernel")


class _LendingCell(keras.layers.Layer):
    """Mixin before a Keras cell."""

    _round_state = staticmethod(lambda state: state)

    def add_weight(self, *args, name=None, **kwargs):
        # Rounded once, not to 16 bits before (see `SearchableLayer`).
        if name in _KERNELS:
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

    @contextlib.contextmanager
    def using(self, kernels, round_state):
        """Context in which the cell uses other kernels and rounds its state.

        Args:
            kernels: Name of a kernel -> tensor in its place.
            round_state: What the state goes through before it is multiplied.
        """
        attributes: Any = vars(self)
        own = {name: attributes[name] for name in kernels}
        # Not by `setattr`: tensors are no state of the cell.
        attributes |= {**kernels, "_round_state": round_state}
        try:
            yield
        finally:
            attributes |= own
            del attributes["_round_state"]


@keras.saving.register_keras_serializable(package="fliqs_tf")
class SimpleRNNCell(_LendingCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with rounded operands."""

    def call(self, sequence, states, training=False):
        if isinstance(states, list | tuple):
            states = [self._round_state(states[0])]
        else:
            states = self._round_state(states)
        return super().call(sequence, states, training)


@keras.saving.register_keras_serializable(package="fliqs_tf")
class LSTMCell(_LendingCell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with rounded operands."""

    def call(self, inputs, states, training=False):
        hidden, carry = states
        return super().call(
            inputs, [self._round_state(hidden), carry], training
        )


@keras.saving.register_keras_serializable(package="fliqs_tf")
class GRUCell(_LendingCell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with rounded operands.

    With update gate `z`, reset gate `r` and candidate `c`

        state = z * state + (1 - z) * c

    where only the products with kernels see a rounded state: its own update
    does not, or small steps would be lost. So the cell needs a `call` of its
    own, in the order of Keras's operations.
    """

    def call(self, inputs, states, training=False):
        is_nested = isinstance(states, list | tuple)
        state = states[0] if is_nested else states
        units = self.units
        input_bias = recurrent_bias = None
        if self.use_bias and self.reset_after:
            input_bias, recurrent_bias = self.bias[0], self.bias[1]
        elif self.use_bias:
            input_bias = self.bias

        x_z, x_r, x_c = self._project(
            self._masked(inputs, self.dropout, self.get_dropout_mask, training),
            self.kernel,
            input_bias,
        )
        masked = self._masked(
            state,
            self.recurrent_dropout,
            self.get_recurrent_dropout_mask,
            training,
        )
        rounded = [self._round_state(tensor) for tensor in masked]
        kernel = self.recurrent_kernel
        if self.reset_after:
            h_z, h_r, h_c = self._project(rounded, kernel, recurrent_bias)
        else:
            h_z, h_r = self._project(rounded, kernel[:, : 2 * units], None)
        z = self.recurrent_activation(x_z + h_z)
        r = self.recurrent_activation(x_r + h_r)
        if self.reset_after:
            h_c = r * h_c
        else:
            h_c = ops.matmul(
                self._round_state(r * masked[-1]), kernel[:, 2 * units :]
            )
        candidate = self.activation(x_c + h_c)
        state = z * state + (1 - z) * candidate
        return state, [state] if is_nested else state

    def _project(self, tensors, kernel, bias):
        """Products with the gates of a kernel: at once, or gate by gate."""
        units = self.units
        gates = [
            slice(start, start + units)
            for start in range(0, kernel.shape[1], units)
        ]
        if len(tensors) == 1:
            product = ops.matmul(tensors[0], kernel)
            if bias is not None:
                product = ops.add(product, bias)
            return [product[:, gate] for gate in gates]
        products = [
            ops.matmul(tensor, kernel[:, gate])
            for tensor, gate in zip(tensors, gates, strict=False)
        ]
        if bias is None:
            return products
        return [
            product + bias[gate]
            for product, gate in zip(products, gates, strict=True)
        ]

    def _masked(self, tensor, rate, get_mask, training):
        """The tensor under dropout, once or once a gate."""
        if not (training and 0.0 < rate < 1.0):
            return [tensor] * (1 if self.implementation != 1 else 3)
        masks = get_mask(tensor)
        if self.implementation != 1:
            return [tensor * masks]
        return [tensor * mask for mask in masks]
