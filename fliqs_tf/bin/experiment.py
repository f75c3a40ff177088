"""A whole run: data, model, training or search, export, report."""

import math
import resource
import time
from typing import Any

import keras
import rich
import tensorflow as tf

import fliqs_tf
from fliqs_tf import baselines
from fliqs_tf import costs
from fliqs_tf import datasets
from fliqs_tf import plots
from fliqs_tf import recipes
from fliqs_tf import report as reports
from fliqs_tf import search_recipe
from fliqs_tf.assignment import Assignment
from fliqs_tf.bin import initial_model
from fliqs_tf.callbacks import Backup
from fliqs_tf.callbacks import FiniteLoss
from fliqs_tf.callbacks import SearchHistory
from fliqs_tf.config import SearchConfig
from fliqs_tf.config import TrainConfig
from fliqs_tf.convert import to_fixed
from fliqs_tf.distillation import distill
from fliqs_tf.export import export_tflite
from fliqs_tf.files import write_json
from fliqs_tf.files import write_text
from fliqs_tf.formats import get_format
from fliqs_tf.recalibrate import MAX_BATCHES
from fliqs_tf.recalibrate import recalibrate
from fliqs_tf.run_folder import RunFolder
from fliqs_tf.search_model import SearchModel
from fliqs_tf.search_run import value_of
from fliqs_tf.space import get_space


def search(config: SearchConfig) -> dict[str, Any]:
    """Searches by the configuration's method, trains, exports and reports.

    Args:
        config: The run; its folder is written, or resumed.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: If the configuration fits neither the folder nor the model.
        RuntimeError: If the exported file disagrees with the model.
    """
    if config.method == "fliqs":
        return _search(config)
    run = _Run(config)
    task, budget = _task(run)
    if budget is not None:
        _announce(budget)
    result = baselines.get(config.method)(task)
    return run.finish(
        result.model,
        result.assignment,
        task.target,
        None if budget is None else _kept(budget, result),
    )


def check(config: SearchConfig) -> None:
    """Tries what a run needs before it trains, in seconds.

    That is its data, which are prepared if need be, its model, and whether
    the space can keep the budget.

    Raises:
        ValueError: What `search` would.
    """
    run = _Run(config)
    if config.method == "fliqs":
        search_recipe.make_search(config, run.model)
    else:
        _task(run)


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains under given formats, exports and reports; see `search`."""
    run = _Run(config)
    if config.formats.endswith(".json"):
        assignment = Assignment.load(config.formats)
    else:
        name = get_format(config.formats).name
        assignment = Assignment.uniform(run.model, name)
    model = to_fixed(
        run.model, assignment, config.input_range, config.input_signedness
    )
    run.fit(model, 0, config.epochs)
    return run.finish(model, assignment, None)


def _search(config):
    run = _Run(config)
    model = search_recipe.make_search(config, run.model)
    controller = search_recipe.make_controller(
        config, _prior(run) if config.prior_weight else None
    )
    _announce(model.budget)
    run.fit(model, 0, config.epochs, controller=controller, jit_compile=None)
    phases = {
        name: getattr(config, name) * config.epochs
        for name in ("warmup", "freeze")
    }
    # A run that goes on after its last epoch may have lost its history.
    if run.history:
        folder = run.folder.plots
        plots.probabilities(run.history, folder / "probabilities.png")
        plots.search_curves(run.history, folder / "search.png", phases)
        plots.switching_errors(
            {"Switching error": run.history}, folder / "switching.png"
        )
    result = baselines.Result(model.best_model(), model.assignment())
    return run.finish(
        result.model,
        result.assignment,
        model.budget.target,
        {
            # It does not change any more once the formats are fixed.
            "entropy": float(keras.ops.mean(model.policy.entropy())),
            **_kept(model.budget, result),
        },
    )


def _task(run):
    """The task of another method, and its budget, if it takes one."""
    config = run.config
    cost = costs.get(config.cost)
    is_bounded = baselines.is_bounded(config.method)
    target = None
    if config.cost_target is not None and is_bounded:
        target = costs.target(cost, run.model, config.cost_target)
    task = baselines.Task(
        model=run.model,
        is_trained=config.model_file is not None,
        data=run.train_data(),
        loss=run.loss,
        space=get_space(config.space),
        cost=cost,
        target=target,
        bounds=costs.parse_bounds(config.bounds),
        epochs=config.epochs,
        input_range=config.input_range,
        input_signedness=config.input_signedness,
        input_formats=config.input_formats,
        seed=config.seed,
        fit=run.fit,
    )
    # Before hours of training: whether anything fits.
    return task, task.choice().budget if is_bounded else None


def _prior(run):
    """What a post-training search knows of the options' qualities."""
    config = run.config
    return -baselines.sensitivities(
        run.model,
        run.train_data(),
        get_space(config.space),
        config.input_range,
        config.input_signedness,
        is_logits=run.loss.from_logits,
        input_formats=config.input_formats,
        is_fine_tuned=config.epochs > 0,
    )


def _announce(budget):
    """Says what the space can reach, and what is asked of it."""
    unit = budget.cost.unit
    rich.print(
        f"Cost between {budget.lowest:.6g} and {budget.highest:.6g} {unit}, "
        f"target {budget.target:.6g} {unit}."
    )
    for bound, lowest in zip(budget.bounds, budget.lowest_bounds, strict=True):
        unit = bound.cost.unit
        rich.print(
            f"Bound of {bound.cost.name}: {bound.target:.6g} {unit}, of at "
            f"least {lowest:.6g} {unit} in this space."
        )


def _kept(budget, result):
    """What a report says of the budget that a result has kept."""
    return {
        "cost_lowest": budget.lowest,
        "cost_highest": budget.highest,
        "bounds": {
            bound.cost.name: {
                "value": bound.cost(result.model, result.assignment),
                "target": bound.target,
                "unit": bound.cost.unit,
            }
            for bound in budget.bounds
        },
    }


class _Run:
    """What all runs share: folder, data, a new model, how it is trained."""

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
