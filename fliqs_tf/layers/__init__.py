"""Keras layers whose weights and inputs have a searchable number format."""

from fliqs_tf.layers.attention import GroupQueryAttention
from fliqs_tf.layers.attention import MultiHeadAttention
from fliqs_tf.layers.attention_product import AttentionProduct
from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.conv import Conv1D
from fliqs_tf.layers.conv import Conv2D
from fliqs_tf.layers.conv import Conv3D
from fliqs_tf.layers.conv_transpose import Conv1DTranspose
from fliqs_tf.layers.conv_transpose import Conv2DTranspose
from fliqs_tf.layers.conv_transpose import Conv3DTranspose
from fliqs_tf.layers.dense import Dense
from fliqs_tf.layers.depthwise_conv import DepthwiseConv1D
from fliqs_tf.layers.depthwise_conv import DepthwiseConv2D
from fliqs_tf.layers.einsum_dense import EinsumDense
from fliqs_tf.layers.embedding import Embedding
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.recurrent import GRU
from fliqs_tf.layers.recurrent import LSTM
from fliqs_tf.layers.recurrent import SimpleRNN
from fliqs_tf.layers.searchable_layer import SearchableLayer
from fliqs_tf.layers.separable_conv import SeparableConv1D
from fliqs_tf.layers.separable_conv import SeparableConv2D

# The class's own name, beside Keras's public one.
GroupedQueryAttention = GroupQueryAttention

__all__ = [
    "GRU",
    "LSTM",
    "AttentionProduct",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "EinsumDense",
    "Embedding",
    "GroupQueryAttention",
    "GroupedQueryAttention",
    "MultiHeadAttention",
    "Operand",
    "SearchableLayer",
    "SeparableConv1D",
    "SeparableConv2D",
    "SimpleRNN",
    "searchable",
]
