"""Export to LiteRT, ONNX and recipes."""

from fliqs_tf.export.export_report import ExportReport
from fliqs_tf.export.export_report import LayerReport
from fliqs_tf.export.file_report import FileReport
from fliqs_tf.export.file_report import inspect
from fliqs_tf.export.onnx_file import export_onnx
from fliqs_tf.export.recipe_file import export_recipe
from fliqs_tf.export.recipe_report import RecipeReport
from fliqs_tf.export.tflite import export_tflite

__all__ = [
    "ExportReport",
    "FileReport",
    "LayerReport",
    "RecipeReport",
    "export_onnx",
    "export_recipe",
    "export_tflite",
    "inspect",
]
