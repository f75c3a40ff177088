"""Export to LiteRT and ONNX."""

from fliqs_tf.export.export_report import ExportReport
from fliqs_tf.export.export_report import LayerReport
from fliqs_tf.export.file_report import FileReport
from fliqs_tf.export.file_report import inspect
from fliqs_tf.export.onnx_file import export_onnx
from fliqs_tf.export.tflite import export_tflite

__all__ = [
    "ExportReport",
    "FileReport",
    "LayerReport",
    "export_onnx",
    "export_tflite",
    "inspect",
]
