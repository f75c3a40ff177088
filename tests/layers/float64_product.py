"""The product of a layer's operands, by Keras in float64.

Exact for integer codes, and independent of how searchable layers compute.
"""

import keras
import numpy as np


class Float64Product:
    """Mixin before `LayerContract`: `product` for layers of one kernel."""

    def product(self, layer, x, kernel):
        ours = layer.format_config()
        config = {k: v for k, v in layer.get_config().items() if k not in ours}
        config |= {"dtype": "float64", "activation": None}
        # On CPUs TensorFlow has no float64 convolution of channels first.
        first = config.get("data_format") == "channels_first"
        if first:
            config["data_format"] = "channels_last"
            x = np.moveaxis(x, 1, -1)
        twin = self.keras_class.from_config(config)
        twin.build(x.shape)
        twin.kernel.assign(kernel.astype(np.float64))
        if twin.bias is not None:
            twin.bias.assign(np.zeros(twin.bias.shape))
        outputs = keras.ops.convert_to_numpy(twin(x.astype(np.float64)))
        return np.moveaxis(outputs, -1, 1) if first else outputs
