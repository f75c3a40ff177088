"""A whole run: data, model, training or search, export, report."""

import dataclasses
import time
from typing import Any

import keras
import rich
import tensorflow as tf

import fliqs_tf
from fliqs_tf import costs
from fliqs_tf import datasets
from fliqs_tf import plots
from fliqs_tf import report as reports
from fliqs_tf.assignment import Assignment
from fliqs_tf.callbacks import SearchHistory
from fliqs_tf.config import SearchConfig
from fliqs_tf.config import TrainConfig
from fliqs_tf.controller import Controller
from fliqs_tf.convert import to_fixed
from fliqs_tf.export import export_tflite
from fliqs_tf.files import write_json
from fliqs_tf.files import write_text
from fliqs_tf.formats import get_format
from fliqs_tf.run_folder import RunFolder
from fliqs_tf.search_model import SearchModel


@dataclasses.dataclass(frozen=True)
class _Data:
    train: tf.data.Dataset
    test: tf.data.Dataset
    info: datasets.DatasetInfo


def search(config: SearchConfig) -> dict[str, Any]:
    """Searches, trains, exports and reports in one run.

    Args:
        config: The run; its folder is written, or resumed.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: If the configuration fits neither the folder nor the model.
        RuntimeError: If the exported file disagrees with the model.
    """
    folder, data, model = _start(config)
    model = SearchModel(
        model,
        space=config.space,
        cost=config.cost,
        cost_target=config.cost_target,
        reward=config.reward,
        beta=config.beta,
        quality=config.quality,
        input_range=config.input_range,
        seed=config.seed,
    )
    controller = Controller(
        optimizer=keras.optimizers.Adam(config.controller_learning_rate),
        warmup=config.warmup,
        activation_delay=config.activation_delay,
        freeze=config.freeze,
        entropy_weight=config.entropy_weight,
        baseline_momentum=config.baseline_momentum,
        cost_samples=config.cost_samples,
    )
    rich.print(
        f"Cost between {model.budget.lowest:.6g} and "
        f"{model.budget.highest:.6g} {model.cost.unit}, target "
        f"{model.budget.target:.6g} {model.cost.unit}."
    )
    history, seconds = _fit(
        config, folder, data, model, {"controller": controller}
    )
    assignment = model.assignment()
    phases = {
        name: getattr(config, name) * config.epochs
        for name in ("warmup", "freeze")
    }
    plots.probabilities(history, folder.plots / "probabilities.png")
    plots.search_curves(history, folder.plots / "search.png", phases)
    return _finish(
        config,
        folder,
        data,
        model.best_model(),
        assignment,
        {
            "cost_target": model.budget.target,
            "cost_lowest": model.budget.lowest,
            "cost_highest": model.budget.highest,
        },
        history,
        seconds,
    )


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains under given formats, exports and reports; see `search`."""
    folder, data, model = _start(config)
    if config.formats.endswith(".json"):
        assignment = Assignment.load(config.formats)
    else:
        name = get_format(config.formats).name
        assignment = Assignment.uniform(model, name)
    model = to_fixed(model, assignment, config.input_range)
    history, seconds = _fit(config, folder, data, model, {"jit_compile": False})
    return _finish(
        config,
        folder,
        data,
        model,
        assignment,
        {"cost_target": None},
        history,
        seconds,
    )


def _start(config):
    folder = RunFolder(config)
    keras.utils.set_random_seed(config.seed)
    arguments = {
        "batch_size": config.batch_size,
        "data_dir": config.data_dir,
        "seed": config.seed,
    }
    train = datasets.load(
        config.dataset, "train", first_epoch=folder.first_epoch(), **arguments
    )
    info = datasets.info(config.dataset, config.data_dir)
    split = "test" if "test" in info.num_examples else "validation"
    test = datasets.load(config.dataset, split, training=False, **arguments)
    width = {} if config.width is None else {"width": config.width}
    model = fliqs_tf.models.get(
        config.model,
        input_shape=info.image_shape,
        classes=info.num_classes,
        **width,
    )
    return folder, _Data(train, test, info), model


def _fit(config, folder, data, model, compile_arguments):
    """Trains, or goes on; returns the epochs' records and the seconds."""
    folder.create()
    steps = config.epochs * int(data.train.cardinality())
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    decay = config.weight_decay or None
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate, weight_decay=decay)
    else:
        optimizer = keras.optimizers.SGD(
            rate, momentum=0.9, nesterov=True, weight_decay=decay
        )
    model.compile(
        optimizer,
        _loss(config),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        **compile_arguments,
    )
    recorder = SearchHistory(folder.history, str(folder.events / "policy"))
    start = time.monotonic()
    model.fit(
        _one_hot(data.train, data.info),
        validation_data=_one_hot(data.test, data.info),
        epochs=config.epochs,
        # The data set shuffles itself.
        shuffle=False,
        callbacks=[
            keras.callbacks.BackupAndRestore(
                str(folder.checkpoint), delete_checkpoint=False
            ),
            keras.callbacks.TensorBoard(str(folder.events), write_graph=False),
            recorder,
        ],
    )
    return recorder.epochs, time.monotonic() - start


def _loss(config):
    return keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=config.label_smoothing
    )


def _one_hot(dataset, info):
    # Sparse losses know no label smoothing.
    return dataset.map(
        lambda x, y: (x, tf.one_hot(y, info.num_classes)),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _finish(config, folder, data, fixed, assignment, cost, history, seconds):
    """Evaluates, exports and reports a trained fixed model."""
    assignment.save(folder.assignment)
    fixed.compile(
        loss=_loss(config),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        # XLA reorders float32 sums; a stored model is to repeat its numbers.
        jit_compile=False,
    )
    scores = fixed.evaluate(
        _one_hot(data.test, data.info), verbose=0, return_dict=True
    )
    folder.save_model(fixed)
    export = export_tflite(
        fixed,
        folder.tflite,
        activations=config.activations,
        verify_data=data.test,
    )
    measure = costs.get(getattr(config, "cost", "bitops"))
    value = measure(fixed, assignment)
    rows = reports.layer_rows(fixed, export)
    target = cost["cost_target"]
    report = {
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
            "cost_ratio": value / target if target else None,
            "size_mib": costs.get("size")(fixed, assignment),
            "fit_seconds": seconds,
            **cost,
        },
        "layers": rows,
        "export": export.to_dict(),
        "history": history,
    }
    plots.layer_formats(rows, folder.plots / "formats.png")
    pictures = {
        "Format of each layer": "formats.png",
        "Probabilities of each decision": "probabilities.png",
        "Reward, cost and entropy": "search.png",
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
    rich.print(reports.layer_table(fixed, export))
    rich.print(
        f"Accuracy {scores['accuracy']:.2%} on {export.samples} test images; "
        f"cost {value:.6g} {measure.unit}"
        + (f", {value / target:.1%} of the target." if target else ".")
    )
    rich.print(reports.proof_line(report["export"]))
    rich.print(f"The run folder is {folder.root.resolve()}")
    return report
