"""Keras layers whose weights and inputs have a searchable number format."""

from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.conv import Conv2D
from fliqs_tf.layers.dense import Dense
from fliqs_tf.layers.depthwise_conv import DepthwiseConv2D

__all__ = [
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "SearchableLayer",
    "searchable",
]
