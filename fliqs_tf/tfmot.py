"""Found assignments for Keras 2 models, through TFMOT.

The one file that imports TensorFlow Model Optimization, which sets the
environment variable `TF_USE_LEGACY_KERAS` and loads Keras 2 (`tf_keras`).
Nothing else of the package imports this file: whoever needs it does so by
`from fliqs_tf import tfmot`. Keras 3 models go on working beside it.

Importing it makes `WeightQuantizer` and `InputQuantizer` quantizers of TFMOT:
`isinstance` holds, and they serve in a `QuantizeConfig` of your own.
"""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization import keras as tfmot_keras

from fliqs_tf.assignment import Assignment
from fliqs_tf.format_quantizer import FormatQuantizer
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from fliqs_tf.space import nearest

tfmot_keras.quantizers.Quantizer.register(FormatQuantizer)

# Class of a Keras 2 layer -> attribute of its kernel, axes with own scales.
_KERNELS = {
    tf_keras.layers.Conv1D: ("kernel", -1),
    tf_keras.layers.Conv2D: ("kernel", -1),
    tf_keras.layers.Conv3D: ("kernel", -1),
    tf_keras.layers.Dense: ("kernel", -1),
    tf_keras.layers.DepthwiseConv2D: ("depthwise_kernel", (-2, -1)),
}


def annotate(
    model: tf_keras.Model, assignment: Mapping, input_range: str = "ema"
) -> tf_keras.Model:
    """Applies an assignment to a Keras 2 model.

    Each named layer is annotated (`quantize_annotate_layer`) and wrapped
    (`quantize_apply`): its kernel is rounded as in the Keras 3 layer, one scale
    for each output channel, and so is its input, one scale for the tensor. No
    layer is folded into another and none is quantized that is not named.

    Args:
        model: Built Functional or Sequential `tf_keras` model. It gives its
            layers, with their weights, to the result.
        assignment: Layer name -> format, as `SearchModel.assignment()` returns
            it. Layers that are not named stay as they are.
        input_range: Range of the inputs, see `InputQuantizer`; not `"lsq"`.

    Returns:
        A `tf_keras` model to compile, train and evaluate.

    Raises:
        ValueError: If the model is no built `tf_keras` model, or the assignment
            names a layer that it lacks or that cannot be quantized, or the
            range is learned.
    """
    if input_range == "lsq":
        raise ValueError(
            "Ranges of inputs are not learned in Keras 2 models. Received: "
            "input_range='lsq'. Choose 'ema', 'percentile' or 'dynamic'."
        )
    if not isinstance(model, tf_keras.Model) or not model.built:
        raise ValueError(
            "Expected a built `tf_keras` model. Received: "
            f"{type(model).__module__}.{type(model).__name__}. Keras 3 models "
            "go through `fliqs.to_fixed`."
        )
    if not isinstance(assignment, Assignment):
        assignment = Assignment(assignment)
    layers = {layer.name: layer for layer in model.layers}
    for name in assignment:
        if type(layers.get(name)) not in _KERNELS:
            known = [n for n, la in layers.items() if type(la) in _KERNELS]
            raise ValueError(
                "An assignment names layers that have a kernel of a kind known "
                f"here. Received: {name!r}; nearest: {nearest(name, known)}."
            )

    def annotated(layer):
        if layer.name not in assignment:
            return layer
        weight, inputs = assignment.formats(layer.name)
        attribute, axis = _KERNELS[type(layer)]
        if inputs is not None:
            layer = RoundedInput(layer, inputs, input_range, name=layer.name)
        config = KernelConfig(weight, attribute, axis)
        return tfmot_keras.quantize_annotate_layer(layer, config)

    clone = tf_keras.models.clone_model(model, clone_function=annotated)
    scope = {cls.__name__: cls for cls in (KernelConfig, RoundedInput)}
    with tfmot_keras.quantize_scope(scope):
        return tfmot_keras.quantize_apply(clone, scheme=_NamedLayersOnly())


class RoundedInput(tf_keras.layers.Wrapper):
    """A Keras 2 layer whose input is rounded before it computes.

    Args:
        layer: The layer.
        fmt: Name of the format.
        input_range: See `InputQuantizer`.
    """

    def __init__(self, layer, fmt: str, input_range: str = "ema", **kwargs):
        super().__init__(layer, **kwargs)
        self.quantizer = InputQuantizer(fmt, input_range)

    def build(self, input_shape=None):
        super().build(input_shape)
        self._state = self.quantizer.build(None, "input", _Weights(self))

    def call(self, inputs, training=None):
        def rounded(training):
            return lambda: self.quantizer(inputs, training, self._state)

        if tf.is_tensor(training):
            inputs = tf.cond(
                tf.cast(training, tf.bool), rounded(True), rounded(False)
            )
        else:
            inputs = rounded(bool(training))()
        return self.layer.call(inputs)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "fmt": self.quantizer.formats[0],
            "input_range": self.quantizer.range,
        }


class _Weights:
    """Makes variables for a quantizer on a Keras 2 layer."""

    def __init__(self, layer):
        self._layer = layer

    def add_weight(self, aggregation, autocast, **kwargs):
        del autocast  # Keras 2 casts no float32 model.
        return self._layer.add_weight(
            aggregation=tf.VariableAggregation[aggregation.upper()], **kwargs
        )


class KernelConfig(tfmot_keras.QuantizeConfig):
    """Rounds the kernel of a layer, or of the layer in a `RoundedInput`.

    Args:
        fmt: Name of the format.
        attribute: Attribute that holds the kernel.
        axis: See `WeightQuantizer`.
    """

    def __init__(self, fmt: str, attribute: str, axis):
        self.attribute = attribute
        self.quantizer = WeightQuantizer(fmt, axis)

    def _holder(self, layer):
        return layer.layer if isinstance(layer, RoundedInput) else layer

    def get_weights_and_quantizers(self, layer):
        kernel = getattr(self._holder(layer), self.attribute)
        return [(kernel, self.quantizer)]

    def set_quantize_weights(self, layer, quantize_weights):
        setattr(self._holder(layer), self.attribute, quantize_weights[0])

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        del layer, quantize_activations

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {
            "fmt": self.quantizer.formats[0],
            "attribute": self.attribute,
            "axis": self.quantizer.axis,
        }


class _NamedLayersOnly(tfmot_keras.QuantizeScheme):
    """Quantizes what is annotated, and changes no layer on the way.

    TFMOT's own scheme would quantize the model's input to 8 bits and give its
    own configuration to layers before batch norm.
    """

    def get_layout_transformer(self):
        return _SameLayout()

    def get_quantize_registry(self):
        return _NoRegistry()


class _SameLayout(tfmot_keras.QuantizeLayoutTransform):
    def apply(self, model, layer_quantize_map):
        return model, layer_quantize_map


class _NoRegistry(tfmot_keras.QuantizeRegistry):
    """Knows no layer: each has its configuration from its annotation."""

    def supports(self, layer):
        del layer
        return False

    def get_quantize_config(self, layer):
        raise ValueError(f"No configuration for {layer.name!r}.")
