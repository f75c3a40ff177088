"""Command-line flags, imported by the entry points in `fliqs_tf.bin` only."""
