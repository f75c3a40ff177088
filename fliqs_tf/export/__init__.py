"""Export to LiteRT."""

from fliqs_tf.export.export_report import ExportReport
from fliqs_tf.export.export_report import LayerReport
from fliqs_tf.export.tflite import export_tflite

__all__ = ["ExportReport", "LayerReport", "export_tflite"]
