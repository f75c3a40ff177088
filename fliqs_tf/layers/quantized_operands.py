"""The operands of a layer: its kernels, and what they multiply."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from fliqs_tf.formats import get_format
from fliqs_tf.quantizers import IDENTITY
from fliqs_tf.quantizers import InputQuantizer


@dataclasses.dataclass(frozen=True)
class Operand:
    """A kernel of a layer and the tensor that it multiplies.

    Args:
        kernel: Name of the kernel, the attribute that holds it and the prefix
            of its quantizer's variables.
        axis: Axes of the kernel that keep a scale of their own: those of the
            output channels.
        inputs: Name of the tensor, the prefix of its quantizer's variables;
            `None` if the kernel is a table that multiplies nothing.
    """

    kernel: str = "kernel"
    axis: int | tuple[int, ...] = -1
    inputs: str | None = "input"


class QuantizedOperands:
    """Mixin of a layer: quantizers of its operands, their state and choices.

    Attributes:
        operands: The kernels of the layer and what they multiply.
        formats: Options of the kernels.
        is_tied: Whether inputs have the format of the weights.
        kernel_quantizers: Name of a kernel -> its quantizer.
        input_quantizer: Quantizer of all tensors that kernels multiply, each
            with a state of its own; `None` leaves them as they are.
    """

    operands: tuple[Operand, ...] = (Operand(),)
    formats: tuple[str, ...]
    is_tied: bool
    kernel_quantizers: dict[str, Any]
    input_quantizer: Any
    compute_dtype: Any

    @classmethod
    def operands_of(cls, layer) -> tuple[Operand, ...]:
        """Operands of a layer of this class or of its Keras parent."""
        del layer
        return cls.operands

    @classmethod
    def holder(cls, layer):
        """What has the kernels and the bias of a layer as attributes."""
        return layer

    @classmethod
    def shapes(cls, layer) -> tuple[list[tuple[Any, Any]], Any]:
        """Shapes of the weights of a layer of this class or of its parent.

        Returns:
            For each kernel its shape and the axes that keep scales, a tuple;
            and the shape of the bias, `None` without one.
        """
        holder = cls.holder(layer)
        kernels = []
        for operand in cls.operands_of(layer):
            axis = operand.axis
            axes = (axis,) if isinstance(axis, int) else axis
            kernels.append((tuple(getattr(holder, operand.kernel).shape), axes))
        bias = getattr(holder, "bias", None)
        return kernels, None if bias is None else tuple(bias.shape)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return tuple(self.kernel_quantizers)

    @property
    def kernel_quantizer(self):
        """Quantizer of the first kernel."""
        return next(iter(self.kernel_quantizers.values()))

    @kernel_quantizer.setter
    def kernel_quantizer(self, quantizer):
        self.kernel_quantizers[self.operands[0].kernel] = quantizer

    def _build_quantizers(self):
        """Creates the quantizers' variables, once the kernels are there."""
        self._kernel_states = {
            name: self._build_kernel(quantizer, name)
            for name, quantizer in self.kernel_quantizers.items()
        }
        self._input_states = {}
        if self.input_quantizer is not None:
            self._input_states = {
                operand.inputs: self._build_input(
                    self.input_quantizer, operand.inputs
                )
                for operand in self.operands
                if operand.inputs
            }

    def _build_kernel(self, quantizer, name) -> dict:
        return quantizer.build(
            getattr(self.holder(self), name).shape, name, self
        )

    def _build_input(self, quantizer, name) -> dict:
        return quantizer.build(None, name, self)

    @property
    def _kernel_state(self) -> dict:
        return self._kernel_states[self.operands[0].kernel]

    @property
    def _input_state(self) -> dict:
        return next(iter(self._input_states.values()), {})

    @property
    def is_fixed(self) -> bool:
        """Whether no format is left to choose."""
        quantizers = (self.kernel_quantizer, self.input_quantizer)
        return all(q is None or len(q.formats) == 1 for q in quantizers)

    def choices(self) -> dict[str, tuple[tuple[str, ...], list[Any]]]:
        """The layer's decisions.

        Returns:
            Kind of decision -> (options, variables that take the index of the
            chosen one), weights before inputs. Decisions with one option have
            no variables.
        """
        kernel = [s.get("choice") for s in self._kernel_states.values()]
        inputs = [s.get("choice") for s in self._input_states.values()]
        if self.input_quantizer is None:
            found = {"weight_format": (self.formats, kernel)}
        elif self.is_tied:
            found = {"format": (self.formats, kernel + inputs)}
        else:
            found = {
                "weight_format": (self.formats, kernel),
                "input_format": (self.input_quantizer.formats, inputs),
            }
        return {
            kind: (options, [v for v in variables if v is not None])
            for kind, (options, variables) in found.items()
        }

    def input_identities(self) -> list[tuple[Any, int]]:
        """`(variable, index)`: what leaves searched inputs as they are."""
        if self.input_quantizer is None:
            return []
        identity = len(self.input_quantizer.formats)
        return [
            (state["choice"], identity)
            for state in self._input_states.values()
            if "choice" in state
        ]

    def is_calibrated(self) -> bool:
        """Whether every input range that needs data has seen some.

        Until then a layer takes each tensor's own range, which a static export
        cannot.
        """
        return all(
            # The exporter puts quantizers of its own in their place.
            not isinstance(quantizer, InputQuantizer)
            or quantizer.formats == (IDENTITY,)
            or quantizer.is_calibrated(state)
            for quantizer, state in self.input_ranges()
        )

    def input_ranges(self) -> list[tuple[InputQuantizer, dict]]:
        """Quantizers of activations, each with its state."""
        if self.input_quantizer is None:
            return []
        return [
            (self.input_quantizer, state)
            for state in self._input_states.values()
        ]

    def drop_input_quantizers(self) -> None:
        """Leaves activations unrounded from now on."""
        self.input_quantizer = None

    def quantized_kernel(
        self, kernel: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The weights of a fixed layer as they are used.

        Args:
            kernel: Name of the kernel; `None` for the first one.

        Returns:
            `(codes, scale)`, float32 arrays: codes in the format's own units
            (integers for integer formats) and of the kernel's shape, scale of
            size 1 but on the axes with scales of their own. `codes * scale`
            is the effective kernel.
        """
        (name,) = self.formats
        unit = np.float32(get_format(name).unit)
        codes, scale = self.kernel_codes(False, kernel)
        codes, scale = ops.convert_to_numpy(codes), ops.convert_to_numpy(scale)
        return codes * unit, scale / unit

    def kernel_codes(self, training, kernel=None):
        """Returns float32 codes and scale of a kernel, the first by default."""
        kernel = kernel or self.operands[0].kernel
        return self.kernel_quantizers[kernel].codes(
            getattr(self.holder(self), kernel),
            training,
            self._kernel_states[kernel],
        )

    def quantize_operands(self, inputs, training, operand=None):
        """Returns both operands' codes in the compute dtype, and the scale.

        The scale of the inputs times that of the kernel, float32, of the
        kernel's rank.
        """
        operand = operand or self.operands[0]
        codes, scale = self.kernel_codes(training, operand.kernel)
        dtype = self.compute_dtype
        if self.input_quantizer is not None:
            inputs, input_scale = self.input_quantizer.codes(
                inputs, training, self._input_states[operand.inputs]
            )
            scale = scale * ops.reshape(input_scale, [1] * len(scale.shape))
        return ops.cast(inputs, dtype), ops.cast(codes, dtype), scale
