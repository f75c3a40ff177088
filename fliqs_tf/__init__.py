"""Mixed-precision search for Keras models, in the run that trains them.

Importing registers the layers with Keras; it defines no flag and changes no
environment variable.
"""

from fliqs_tf import backend  # noqa: F401  First: it refuses others.
from fliqs_tf import costs
from fliqs_tf import datasets
from fliqs_tf import layers
from fliqs_tf import models
from fliqs_tf import plots
from fliqs_tf import report
from fliqs_tf import rules
from fliqs_tf.assignment import Assignment
from fliqs_tf.attention_products import with_attention_products
from fliqs_tf.codebooks import register_format
from fliqs_tf.controller import Controller
from fliqs_tf.convert import to_fixed
from fliqs_tf.convert import to_searchable
from fliqs_tf.distillation import distill
from fliqs_tf.export import export_onnx
from fliqs_tf.export import export_recipe
from fliqs_tf.export import export_tflite
from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format
from fliqs_tf.numerics import fake_quant
from fliqs_tf.recalibrate import recalibrate
from fliqs_tf.search_model import SearchModel
from fliqs_tf.space import SPACES
from fliqs_tf.space import Rule

__version__ = "0.1.0"
__all__ = [
    "SPACES",
    "Assignment",
    "Controller",
    "Format",
    "Rule",
    "SearchModel",
    "costs",
    "datasets",
    "distill",
    "export_onnx",
    "export_recipe",
    "export_tflite",
    "fake_quant",
    "get_format",
    "layers",
    "models",
    "plots",
    "recalibrate",
    "register_format",
    "report",
    "rules",
    "to_fixed",
    "to_searchable",
    "with_attention_products",
]
