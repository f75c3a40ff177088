"""The data set `digits`, a TensorFlow Datasets builder that needs no network.

Importing this file imports TensorFlow Datasets, which defines an absl flag:
only `fliqs_tf.datasets` imports it, and only when the set is asked for.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """\
Handwritten digits, 1,797 grey images of 8x8 pixels in ten classes: the set that
scikit-learn carries (`sklearn.datasets.load_digits`), itself the test part of
the UCI set "Optical Recognition of Handwritten Digits". The 17 grey levels
0..16 are spread over 0..255. Sorted by class, in the original order within a
class, every fifth image is the test split: 360 images, in each class a fifth.
"""

_CITATION = """\
@misc{alpaydin1998optical,
  title  = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, E. and Kaynak, C.},
  year   = {1998},
  doi    = {10.24432/C50P49},
  note   = {UCI Machine Learning Repository}
}
"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """Builder of `digits`: splits `train` (1,437) and `test` (360).

    Features: `image` uint8 `(8, 8, 1)`, `label` one of ten classes. The split
    is the same on every machine and with every version of scikit-learn.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(8, 8, 1), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        try:
            from sklearn import datasets
        except ImportError as error:
            raise ImportError(
                "The data set `digits` comes from scikit-learn, which is not "
                "installed. Received: name='digits'. Run "
                "`pip install fliqs_tf[demo]`."
            ) from error
        source = datasets.load_digits()
        images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., None]
        by_class = np.argsort(source.target, kind="stable")
        in_test = np.zeros(len(images), bool)
        in_test[by_class[::5]] = True
        return {
            "train": self._generate_examples(images, source.target, ~in_test),
            "test": self._generate_examples(images, source.target, in_test),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in np.flatnonzero(chosen):
            yield (
                int(index),
                {"image": images[index], "label": int(labels[index])},
            )
