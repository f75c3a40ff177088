"""Times the input pipeline against plain batching of images in memory.

Random images of CIFAR-10's size, stored as a set of TFDS in a temporary folder
and read once, so that what is timed are epochs from memory: shuffling, crops
and flips, normalisation. Plain batching is tf.data's usual
`from_tensor_slices(...).shuffle(...).batch(...)` of the 8-bit images with
nothing done to them. All on one thread, as beside a training step that takes
the others; interleaved in one process. Prints medians of images a second, and
the time of each relative to plain batching's.

    python benchmarks/input_pipeline.py [--rounds=9] [--images=20000]
"""

import json
import statistics
import tempfile
import time

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app
from absl import flags

import fliqs_tf as fliqs

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds.", lower_bound=3)
_IMAGES = flags.DEFINE_integer("images", 20_000, "Images.", lower_bound=1000)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Images.", lower_bound=1)
_NAME = "random_images"
_VARIANTS = {
    "normalised": {"augment": False},
    "crop, flip": {},
    "crop, flip, mixup": {"mixup": 0.2},
    "crop, flip, CutMix": {"cutmix": 1.0},
    "crop, flip, random erasing": {"random_erasing": 0.25},
}


def _store(folder, images, labels):
    tfds.dataset_builders.store_as_tfds_dataset(
        name=_NAME,
        version="1.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={
            "train": [
                (number, {"image": image, "label": int(label)})
                for number, (image, label) in enumerate(
                    zip(images, labels, strict=True)
                )
            ]
        },
    )


def _pipelines(folder):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES.value, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, _IMAGES.value)
    _store(folder, images, labels)
    yield (
        "plain batching",
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(_IMAGES.value)
        .batch(_BATCH.value, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE),
    )
    for name, arguments in _VARIANTS.items():
        yield (
            name,
            fliqs.datasets.load(
                _NAME, "train", _BATCH.value, folder, **arguments
            ),
        )


def _seconds(data):
    start = time.perf_counter()
    for _ in data:
        pass
    return time.perf_counter() - start


def main(argv):
    """Runs the benchmark."""
    del argv
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipelines = dict(_pipelines(folder))
        for data in pipelines.values():
            _seconds(data)  # Fills the memory.
        times = {name: [] for name in pipelines}
        for _ in range(_ROUNDS.value):
            for name, data in pipelines.items():
                times[name].append(_seconds(data))
    medians = {name: statistics.median(t) for name, t in times.items()}
    images = _IMAGES.value // _BATCH.value * _BATCH.value
    result = {
        name: {
            "images per second": round(images / median),
            "ratio": round(median / medians["plain batching"], 3),
        }
        for name, median in medians.items()
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
