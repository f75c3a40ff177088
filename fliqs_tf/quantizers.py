"""Quantizers: a format or a choice of formats, and the state it needs.

They have the methods of TFMOT's `Quantizer` (`build`, `__call__`,
`get_config`): `build` creates variables on a layer and returns them in a
dictionary, which the layer hands back at each call. So a quantizer is
stateless, serialises as plain data and knows no layer.

`codes` is what searchable layers call: `x` is about `codes * scale`, with the
codes on a grid that is small and exact. A layer that works on codes and
multiplies its *output* by the scales gets sums of exact products: for integer
formats they do not depend on the order of summation, hence not on the machine.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf import numerics
from fliqs_tf import ranges
from fliqs_tf.format_quantizer import FormatQuantizer
from fliqs_tf.formats import get_format
from fliqs_tf.ranges import check_range

RANGES = ranges.RANGES
GRANULARITIES = ("channel", "tensor")
# The extra option of every input quantizer: leave the tensor as it is.
IDENTITY = "fp32"


@keras.saving.register_keras_serializable(package="fliqs_tf")
class WeightQuantizer(FormatQuantizer):
    """Symmetric absmax quantizer of weights, one scale for each channel.

    `scale = absmax / v_max` is taken anew from the current weights at every
    call; it clips nothing and takes no gradient, so `dq/dw = 1`.

    Groups, and the blocks of block formats, are runs of weights of one output
    channel, in the kernel's order (that of a convolution's height, width,
    input channels); the last one may be short.

    Args:
        formats: One format, or the options among which the variable `choice`
            selects.
        axis: Axis or axes of the tensor that keep a scale of their own (the
            output channels); `None` for one scale.
        granularity: `"channel"`, `"tensor"` (one scale), or the size of groups
            that have a scale each, such as 64. Block formats have blocks of 32
            in any case.
        rounding: `"nearest"` (half to even), or `"stochastic"` while training.
    """

    def __init__(
        self,
        formats,
        axis: int | Sequence[int] | None = -1,
        granularity: str | int = "channel",
        rounding: str = "nearest",
    ):
        super().__init__(formats, rounding)
        self.axis = axis if axis is None or isinstance(axis, int) else (*axis,)
        self.set_tables([get_format(fmt) for fmt in self.formats])
        is_size = isinstance(granularity, int) and granularity > 1
        if granularity not in GRANULARITIES and not is_size:
            raise ValueError(
                f"`granularity` must be one of {', '.join(GRANULARITIES)} or a "
                "size of groups above 1. Received: "
                f"granularity={granularity!r}."
            )
        block = numerics.BLOCK_SIZE
        if is_size and self.has_blocks and granularity != block:
            raise ValueError(
                f"Beside block formats groups have their size, {block}. "
                f"Received: granularity={granularity}."
            )
        self.granularity = granularity

    def build(self, tensor_shape, name, layer) -> dict:
        """Creates the quantizer's variables on a layer.

        Args:
            tensor_shape: Shape of the tensor that will be quantized.
            name: Prefix of the variables' names.
            layer: Layer whose `add_weight` is used.

        Returns:
            Dictionary of variables, to be passed to the calls.
        """
        del tensor_shape, layer
        return self.build_choice(name)

    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`; the scale keeps `axis` only.

        Where the scale varies within a channel (groups, blocks) the codes are
        the rounded weights themselves and the scale is 1.
        """
        row = self.chosen(weights, self._rows)
        options = {
            "codebook": self.chosen(weights, self._codebooks),
            "noise": self.noise(inputs, training, weights),
        }
        own = self.axis if self.granularity != "tensor" else None
        scale = numerics.absmax_scale(inputs, row, own)
        axes = numerics.other_axes(len(inputs.shape), self.axis)
        if own != self.axis:
            kept = [1 if a in axes else n for a, n in enumerate(inputs.shape)]
            scale = ops.broadcast_to(scale, kept)
        size = self.granularity if isinstance(self.granularity, int) else None
        if size or self.has_blocks:
            return numerics.quantize_blocks(
                inputs, row, scale, axes, size, **options
            )
        return numerics.quantize(inputs, row, scale, **options), scale

    def get_config(self):
        axis = self.axis if isinstance(self.axis, int | None) else [*self.axis]
        return {
            **super().get_config(),
            "axis": axis,
            "granularity": self.granularity,
        }


@keras.saving.register_keras_serializable(package="fliqs_tf")
class InputQuantizer(FormatQuantizer):
    """Quantizer of a layer's input, one scale for the tensor.

    Besides its formats it has the option `len(formats)` to leave the input as
    it is, which a search uses before its activation delay is over.

    Ranges, each shared by all the formats (`scale = range / v_max`):

    - `"ema"`: running average of the absmax, so that the scale is a constant at
      inference and one sample's result does not depend on its batch. Values
      beyond the range are clipped, with zero gradient.
    - `"dynamic"`: the absmax of the tensor at hand.
    - `"percentile"`: like `"ema"`, of a percentile of the magnitudes: clips
      outliers for the sake of the others.
    - `"lsq"`: learned (Esser et al. 2020, arXiv 1902.08153): the range `r`
      starts from the first batch and has the gradient `dq/dr = (q - x) / r`,
      and `q / r` where it clips, times `1 / sqrt(features * Q)`, with the
      number `Q` of positive values of the format in use.

    A running or learned range that has seen no data (`is_calibrated`) is no
    range: the layer then takes each tensor's own.

    Args:
        formats: One format, or the options of the variable `choice`.
        range: One of the above.
        momentum: Weight of the past in the running average, see
            `numerics.running_mean`.
        signedness: Grid of integer formats (others are symmetric):
            `"symmetric"`, codes `-n..n`; `"unsigned"`, codes `0..2n + 1` for
            inputs that are never negative, as after ReLU; `"affine"`, as many
            codes with a zero point. See `ranges.grid_of`.
        percentile: Of the range `"percentile"`.
        rounding: See `WeightQuantizer`.
        axis: Axis along which the blocks of block formats run, the channels.
    """

    def __init__(
        self,
        formats,
        range: str = "ema",
        momentum: float = 0.99,
        signedness: str = "symmetric",
        percentile: float = 99.9,
        rounding: str = "nearest",
        axis: int = -1,
    ):
        super().__init__(formats, rounding)
        check_range(range)
        ranges.check(range, signedness, percentile)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"`momentum` must be in [0, 1). Received: momentum={momentum}."
            )
        self.range = range
        self.momentum = momentum
        self.signedness = signedness
        self.percentile = percentile
        self.axis = axis
        options = [get_format(fmt) for fmt in self.formats]
        # Q of LSQ.
        self._narrowest = min(ranges.positive_values(fmt) for fmt in options)
        if len(options) > 1:
            options.append(get_format(IDENTITY))
        if signedness != "symmetric":
            options = [ranges.nonnegative(fmt) for fmt in options]
        self.set_tables(options)
        self._is_integer = np.array([ranges.has_step(fmt) for fmt in options])
        self._levels = np.array(
            [ranges.positive_values(fmt) for fmt in options], np.float32
        )

    def build(self, tensor_shape, name, layer) -> dict:
        """Creates the quantizer's variables; see `WeightQuantizer.build`."""
        del tensor_shape
        weights = self.build_choice(name)
        if self.range != "dynamic":
            learns = self.range == "lsq"
            is_pair = self.signedness != "symmetric" and not learns
            for key, shape in (("range", (2,) * is_pair), ("updates", ())):
                weights[key] = ranges.scalar_weight(
                    layer, f"{name}_{key}", shape, learns and key == "range"
                )
        return weights

    def is_calibrated(self, weights) -> bool:
        """Whether the range, if it needs data, has seen some.

        Args:
            weights: What `build` returned.
        """
        if "updates" not in weights:
            return True
        # A sum, as a variable that replicas share is no number itself.
        return float(weights["updates"] + 0.0) > 0.0

    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`; the scale is one number.

        The zero point of an affine grid is subtracted from the codes. Where a
        block format is chosen they are the rounded values, and the scale is 1.
        """
        row = self.chosen(weights, self._rows)
        limits = self._limits(inputs, training, weights)
        scale, bounds = ranges.grid_of(
            limits,
            row,
            self.signedness,
            self.chosen(weights, self._is_integer),
        )
        options = {
            "clips": self.range != "dynamic" or self.signedness == "unsigned",
            "bounds": bounds,
            "codebook": self.chosen(weights, self._codebooks),
            "noise": self.noise(inputs, training, weights),
        }
        if self.has_blocks:
            rank = len(inputs.shape)
            codes, scale = numerics.quantize_blocks(
                inputs,
                row,
                ops.reshape(scale, [1] * rank),
                [self.axis % rank],
                **options,
            )
            scale = ops.reshape(scale, ())
        else:
            codes = numerics.quantize(inputs, row, scale, **options)
        if self.range == "lsq":
            codes = ranges.let_scale_learn(codes, inputs, scale, row, bounds)
        return codes, scale

    def _limits(self, inputs, training, weights):
        share = self.percentile if self.range == "percentile" else None
        if self.range == "dynamic":
            return ranges.limits_of(inputs, self.signedness)
        mean, seen = weights["range"], weights["updates"]

        def latest():
            if self.range == "lsq":
                return ranges.first_learned_limit(inputs, self._narrowest)
            return ranges.limits_of(inputs, self.signedness, share)

        if self.range == "lsq":
            return self._learned_limits(inputs, training, weights, latest)
        if training:
            value = ops.cond(_is_any(inputs), latest, lambda: mean + 0.0)
            mean.assign(numerics.running_mean(mean, seen, value, self.momentum))
            seen.assign(seen + ops.cast(_is_any(inputs), "float32"))
            return ops.convert_to_tensor(mean)
        # A range that saw no data is no range: take this tensor's.
        return ops.cond(seen > 0, lambda: ops.convert_to_tensor(mean), latest)

    def _learned_limits(self, inputs, training, weights, first):
        limit, seen = (
            ops.convert_to_tensor(weights["range"]),
            weights["updates"],
        )
        start = ops.cond(
            ops.logical_or(seen > 0, ops.logical_not(_is_any(inputs))),
            lambda: ops.stop_gradient(limit),
            first,
        )
        # A step of the optimizer can pass 0. A range of 0 or less would have
        # no gradient, and what is below its layer neither.
        start = ops.maximum(start, numerics.TINY)
        if training:
            weights["range"].assign(start)
            seen.assign(seen + ops.cast(_is_any(inputs), "float32"))
        features = math.prod(ops.shape(inputs)[1:])
        levels = self.chosen(weights, self._levels)
        limit = ranges.scale_gradient(
            limit, ops.rsqrt(ops.cast(features, "float32") * levels)
        )
        limit = limit + ops.stop_gradient(start - limit)
        if self.signedness == "symmetric":
            return limit
        return ops.stack([-limit, limit])

    def get_config(self):
        return {
            **super().get_config(),
            "range": self.range,
            "momentum": self.momentum,
            "signedness": self.signedness,
            "percentile": self.percentile,
            "axis": self.axis,
        }


def _is_any(inputs):
    """Whether a tensor has elements: of a last batch a replica may get none."""
    return ops.size(inputs) > 0
