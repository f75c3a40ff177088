"""One run: its folder, data and model; how it is trained, what it reports."""

import math
import resource
import time
from typing import Any

import keras
import rich
import tensorflow as tf

import fliqs_tf
from fliqs_tf import costs
from fliqs_tf import datasets
from fliqs_tf import plots
from fliqs_tf import recipes
from fliqs_tf import report as reports
from fliqs_tf.bin import initial_model
from fliqs_tf.callbacks import Backup
from fliqs_tf.callbacks import FiniteLoss
from fliqs_tf.callbacks import SearchHistory
from fliqs_tf.config import TrainConfig
from fliqs_tf.distillation import distill
from fliqs_tf.export import export_tflite
from fliqs_tf.files import write_json
from fliqs_tf.files import write_text
from fliqs_tf.recalibrate import MAX_BATCHES
from fliqs_tf.recalibrate import Recalibration
from fliqs_tf.recalibrate import recalibrate
from fliqs_tf.run_folder import RunFolder
from fliqs_tf.search_model import SearchModel
from fliqs_tf.search_run import value_of


class Run:
    """What all runs share: folder, data, a new model, how it is trained.

    Args:
        config: The run; its folder is made when training begins.

    Raises:
        ValueError: If the configuration fits neither the folder nor the model.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.folder = RunFolder(config)
        self.history: list[dict] = []
        self._start = time.monotonic()
        self._fitted = 0.0
        # Prepares the set if need be: before, its splits are not known. It
        # draws random numbers, hence before the seed.
        self._load("train")
        keras.utils.set_random_seed(config.seed)
        self.info = datasets.info(
            config.dataset, config.data_dir, image_size=config.image_size
        )
        split = "test" if "test" in self.info.num_examples else "validation"
        self.test = self._load(split, training=False)
        self.model = self._model()
        self.loss = keras.losses.CategoricalCrossentropy(
            from_logits=not initial_model.gives_probabilities(self.model),
            label_smoothing=config.label_smoothing,
        )

    def _model(self):
        config = self.config
        image_shape, classes = self.info.image_shape, self.info.num_classes
        if config.model_file is not None:
            model = initial_model.load(config.model_file)
            initial_model.check(model, image_shape, classes)
            return model
        try:
            return fliqs_tf.models.get(
                config.model,
                input_shape=image_shape,
                classes=classes,
                **config.network_arguments(),
            )
        except TypeError as error:
            raise ValueError(
                "`model_arguments` must be arguments of the network, besides "
                "its input shape and classes, which the data set has. "
                f"Received: model={config.model!r}, width={config.width}, "
                f"model_arguments={config.model_arguments!r}: {error}."
            ) from error

    def _load(self, split, **arguments):
        config = self.config
        return datasets.load(
            config.dataset,
            split,
            batch_size=config.batch_size,
            data_dir=config.data_dir,
            seed=config.seed,
            image_size=config.image_size,
            normalize=config.normalize,
            rand_augment=config.rand_augment,
            random_erasing=config.random_erasing,
            mixup=config.mixup,
            cutmix=config.cutmix,
            **arguments,
        )

    def _one_hot(self, data):
        # Sparse losses know no label smoothing. Mixed labels are spread out.
        if data.element_spec[1].shape.rank > 1:
            return data
        return data.map(
            lambda x, y: (x, tf.one_hot(y, self.info.num_classes)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def train_data(self, first_epoch=0):
        """Batches of `(image, one-hot label)` from an epoch of the run on."""
        return self._one_hot(self._load("train", first_epoch=first_epoch))

    def fit(self, model, first, last, rate=1.0, **compile_arguments):
        """Trains in some epochs of the run, or goes on; see `Task.fit`."""
        backup = Backup(self.folder.checkpoint / f"from_epoch{first}")
        epoch = backup.epoch() or first
        data = self.train_data(epoch)
        steps = int(data.cardinality())
        self._compile(
            model,
            recipes.make_optimizer(self.config, steps, last - first, rate),
            **compile_arguments,
        )
        if self.config.teacher is not None:
            distill(
                model,
                initial_model.read(self.config.teacher),
                self.config.teacher_temperature,
                self.config.teacher_weight,
            )
        backup.restore(model)
        if isinstance(model, SearchModel) and value_of(model.frozen):
            # Passes are counted, and the freeze has made some of its own.
            data = self.train_data(epoch + math.ceil(MAX_BATCHES / steps))
        # Here, as a run that cannot start is to leave no folder.
        self.folder.create()
        recorder = SearchHistory(
            self.folder.history, str(self.folder.events / "policy")
        )
        start = time.monotonic()
        model.fit(
            _endless(data),
            steps_per_epoch=steps,
            validation_data=self._one_hot(self.test),
            initial_epoch=epoch,
            epochs=last,
            # The data set shuffles itself.
            shuffle=False,
            callbacks=[
                FiniteLoss(),
                keras.callbacks.TensorBoard(
                    str(self.folder.events), write_graph=False
                ),
                # A search does so itself.
                *(
                    []
                    if isinstance(model, SearchModel)
                    else [Recalibration(data)]
                ),
                recorder,
                # Last: what it saves, the others have recorded.
                backup,
            ],
        )
        if self.config.weight_ema:
            # The averaged weights have statistics of their own.
            recalibrate(getattr(model, "searchable_model", model), data)
        self._fitted += time.monotonic() - start
        self.history = recorder.epochs

    def _compile(self, model, optimizer=None, **arguments):
        arguments.setdefault("jit_compile", False)
        model.compile(
            optimizer or "sgd",
            self.loss,
            metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
            **arguments,
        )

    def finish(self, fixed, assignment, target, bounds=None):
        """Evaluates, exports and reports a trained fixed model.

        Args:
            fixed: The model.
            assignment: Its formats.
            target: Largest cost allowed, `None` if the run had none.
            bounds: More of the result to record.
        """
        config, folder = self.config, self.folder
        seconds, peak_memory = self._seconds(), _peak_memory_mib()
        folder.create()
        assignment.save(folder.assignment)
        # XLA reorders float32 sums; a stored model is to repeat its numbers.
        self._compile(fixed)
        scores = fixed.evaluate(
            self._one_hot(self.test), verbose=0, return_dict=True
        )
        folder.save_model(fixed)
        export = export_tflite(
            fixed,
            folder.tflite,
            activations=config.activations,
            verify_data=self.test,
        )
        measure = costs.get(getattr(config, "cost", "bitops"))
        value = measure(fixed, assignment)
        rows = reports.layer_rows(fixed, export)
        report: dict[str, Any] = {
            "config": config.to_dict(),
            "versions": {
                "fliqs_tf": fliqs_tf.__version__,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
            "result": {
                "accuracy": scores["accuracy"],
                "loss": scores["loss"],
                "test_samples": export.samples,
                "cost": value,
                "cost_unit": measure.unit,
                "cost_target": target,
                "cost_ratio": value / target if target else None,
                "size_mib": costs.get("size")(fixed, assignment),
                "seconds": seconds,
                "peak_memory_mib": peak_memory,
                **(bounds or {}),
            },
            "layers": rows,
            "export": export.to_dict(),
            "history": self.history,
        }
        self._write(report)
        rich.print(reports.layer_table(fixed, export))
        rich.print(reports.result_line(report["result"]))
        rich.print(reports.proof_line(report["export"]))
        rich.print(f"The run folder is {folder.root.resolve()}")
        return report

    def _seconds(self):
        """Time of all epochs, before an interruption too, and of the rest."""
        rest = time.monotonic() - self._start - self._fitted
        return rest + sum(record["seconds"] for record in self.history)

    def _write(self, report):
        folder = self.folder
        plots.layer_formats(report["layers"], folder.plots / "formats.png")
        pictures = {
            "Format of each layer": "formats.png",
            "Probabilities of each decision": "probabilities.png",
            "Reward, cost and entropy": "search.png",
            "Change of the weights by switching formats": "switching.png",
        }
        page = reports.run_page(
            report,
            [
                (title, f"plots/{name}")
                for title, name in pictures.items()
                if (folder.plots / name).exists()
            ],
        )
        write_json(folder.report, report)
        write_text(folder.page, page)


def _endless(data):
    """Repeats a data set so that its passes begin when they are due.

    Keras takes two iterators an epoch from a data set that ends, and each
    draws another order: a resumed run would not know which. Nor would it if a
    pass began ahead of time, before or after the freeze makes its own.
    """
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return data.repeat().with_options(options)


def _peak_memory_mib():
    """What this process has held at most, TensorFlow and the data included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
