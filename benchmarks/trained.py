"""Flags and data of benchmarks that look at a trained model of CIFAR-10."""

import tensorflow as tf
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf.bin import initial_model

_MODEL = flags.DEFINE_string(
    "model_file", None, "Trained model of CIFAR-10.", required=True
)
_NORMALIZE = flags.DEFINE_bool(
    "normalize", True, "Whether it takes normalized images."
)
_DATA = flags.DEFINE_string("data_dir", None, "See tfds.load.")


def load():
    """The model, and whether its outputs are logits."""
    model = initial_model.load(_MODEL.value)
    return model, not initial_model.gives_probabilities(model)


def images(batch_size: int) -> tf.data.Dataset:
    """Batches of training images, without labels."""
    return fliqs.datasets.load(
        "cifar10",
        "train",
        batch_size=batch_size,
        data_dir=_DATA.value,
        normalize=_NORMALIZE.value,
    ).map(lambda x, _: x)
