"""Rank of the formats that searches find among random ones of equal cost.

On the embedded digits: 200 random assignments that use 98% to 100% of the
target, and those that searches find, are all trained from scratch, from the
same weights and on the same batches. An assignment's rank is one plus the
number of random ones with a lower loss on the test images. Writes
`search_rank.json` after every training (a run that was stopped goes on) and
`search_rank.png`.

    python benchmarks/search_rank.py --output=docs/results/search_rank
"""

import functools
import pathlib

import keras
import matplotlib
import numpy as np
import search_trials
from absl import app
from absl import flags
from matplotlib import pyplot
from matplotlib import ticker

import fliqs_tf as fliqs
from fliqs_tf.baselines import ptq
from fliqs_tf.baselines import random_choice
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.files import read_json
from fliqs_tf.files import write_json

OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
TARGET = flags.DEFINE_string("cost_target", "0.5xint4", "Cost of all of them.")
EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of every training.")
COUNT = flags.DEFINE_integer("count", 200, "Random assignments.")
SEEDS = flags.DEFINE_integer("seeds", 6, "Searches of each kind.")

_SPACE = tuple(f"int{bits}" for bits in range(2, 9))
_SAMPLE = {"cost_samples": 64, "entropy_weight": 0.1}
_DECISION = {**_SAMPLE, "credit": "decision"}
# Each update is a step of Adam: as many shorter ones.
_SLOW = {"learning_rate": 0.02 / search_trials.PARTS}
# Name -> what searches, and settings of its controller.
_SEARCHES: dict[str, tuple[type, dict]] = {
    "one sample a step": (fliqs.SearchModel, {"baseline_momentum": 0.99}),
    "64 samples of the cost": (fliqs.SearchModel, _SAMPLE),
    "credit a decision": (fliqs.SearchModel, _DECISION),
    "wide formats first": (fliqs.SearchModel, {**_SAMPLE, "wide_first": 5.0}),
    "4 parts of the batch": (search_trials.Parts, {**_SAMPLE, **_SLOW}),
    "4 parts, credit a decision": (
        search_trials.Parts,
        {**_DECISION, **_SLOW},
    ),
    "4 samples judged": (search_trials.Judged, {**_SAMPLE, **_SLOW}),
    "4 samples judged, credit a decision": (
        search_trials.Judged,
        {**_DECISION, **_SLOW},
    ),
    "held-out quality": (search_trials.HeldOut, _SAMPLE),
    "held-out quality, credit a decision": (search_trials.HeldOut, _DECISION),
    "self-distillation": (search_trials.SelfDistilled, _SAMPLE),
}


def _train():
    return fliqs.datasets.load("digits", "train", batch_size=32)


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class _Trainer:
    """Trains one model from scratch, again and again, under given formats."""

    def __init__(self):
        self.test = fliqs.datasets.load("digits", "test", batch_size=360)
        keras.utils.set_random_seed(0)
        self.plain = fliqs.models.get(
            "residual_small", input_shape=(8, 8, 1), classes=10
        )
        self.steps = EPOCHS.value * int(_train().cardinality())
        cost = fliqs.costs.get("bitops")
        self.choice = Choice(
            self.plain,
            _SPACE,
            cost,
            fliqs.costs.target(cost, self.plain, TARGET.value),
        )
        self._compile(self.choice.model)
        self._start = self.choice.model.get_weights()

    def _compile(self, model, **arguments):
        model.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(3e-3, self.steps)
            ),
            _loss(),
            metrics=["accuracy"],
            jit_compile=False,
            **arguments,
        )

    def score(self, sample):
        """Loss and accuracy on the test images after a training."""
        keras.utils.set_random_seed(0)
        # Anew: another pass over the same data set would have other batches.
        train = _train()
        model = self.choice.model
        model.set_weights(self._start)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        self.choice.set(sample)
        model.fit(train, epochs=EPOCHS.value, verbose=0)
        fliqs.recalibrate(model, train)
        result = model.evaluate(self.test, verbose=0, return_dict=True)
        return {
            "formats": [self.choice.options[option] for option in sample],
            "cost_ratio": self.choice.budget.of(sample)
            / self.choice.budget.target,
            "loss": result["loss"],
            "accuracy": result["accuracy"],
        }

    def search(
        self, seed, kind, learning_rate=0.02, wide_first=0.0, **keywords
    ):
        """The sample that a search finds, and the test scores it ends with."""
        keras.utils.set_random_seed(seed)
        space = _SPACE
        if kind is search_trials.SelfDistilled:
            space = (*_SPACE, "fp32")
            # Never drawn.
            keywords["prior"] = np.append(np.zeros(len(_SPACE)), -30.0)
        if wide_first:
            keywords["prior"] = -wide_first * _errors()
        if "prior" in keywords:
            keywords["prior"] = np.tile(
                keywords["prior"], (len(self.choice.decisions), 1)
            )
        search = kind(
            keras.models.clone_model(self.plain),
            space=space,
            cost_target=TARGET.value,
            seed=seed,
        )
        controller = fliqs.Controller(
            optimizer=keras.optimizers.Adam(learning_rate), **keywords
        )
        self._compile(search, controller=controller)
        search.fit(_train(), epochs=EPOCHS.value, verbose=0)
        scores = search.evaluate(self.test, verbose=0, return_dict=True)
        sample = keras.ops.convert_to_numpy(search.frozen_sample)
        return sample, {name: scores[name] for name in ("loss", "accuracy")}

    def post_training(self, seed):
        """The sample of a post-training search in a float model, unscored."""
        keras.utils.set_random_seed(seed)
        model = keras.models.clone_model(self.plain)
        self._compile(model)
        train = _train()
        model.fit(train, epochs=EPOCHS.value, verbose=0)
        table = ptq.sensitivities(model, train, _SPACE)
        return ptq.best_sample(self.choice, table), None


def _errors():
    """Mean squared error of each format on a normal variable of variance 1."""
    x = np.random.default_rng(0).standard_normal(4096).astype("float32")
    return np.array(
        [np.mean((x - fliqs.fake_quant(x, name)) ** 2) for name in _SPACE]
    )


def main(_):
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "search_rank.json"
    trainer = _Trainer()
    result = read_json(file) if file.exists() else {"random": [], "found": {}}
    result = {
        "target": TARGET.value,
        "epochs": EPOCHS.value,
        "layers": [decision.path for decision in trainer.choice.decisions],
        **result,
    }
    rng = np.random.default_rng(0)
    samples = [
        random_choice.sample(trainer.choice, rng) for _ in range(COUNT.value)
    ]
    for sample in samples[len(result["random"]) :]:
        result["random"].append(trainer.score(sample))
        write_json(file, result)
    losses = np.array([entry["loss"] for entry in result["random"]])
    searches = {
        **{
            f"search, {name}": functools.partial(
                trainer.search, kind=kind, **controller
            )
            for name, (kind, controller) in _SEARCHES.items()
        },
        "post-training search": trainer.post_training,
    }
    for name, search in searches.items():
        found = result["found"].setdefault(name, [])
        for seed in range(len(found), SEEDS.value):
            sample, scores = search(seed)
            entry = {**trainer.score(sample), "in_the_search": scores}
            entry["rank"] = 1 + int(np.sum(losses < entry["loss"]))
            found.append(entry)
            write_json(file, result)
        print(name, [entry["rank"] for entry in found], flush=True)
    _plot(result, losses, output / "search_rank.png")


def _plot(result, losses, path):
    matplotlib.use("agg")
    figure, (top, bottom) = pyplot.subplots(
        *(2, 1),
        figsize=(8, 5.5),
        sharex=True,
        height_ratios=(2, 3),
        layout="constrained",
    )
    bins = np.geomspace(losses.min(), losses.max(), 40)
    top.hist(losses, bins=bins, color="0.8")
    top.set_xscale("log")
    top.set_ylabel(f"{len(losses)} random\nassignments")
    top.set_title(f"Formats INT2 to INT8 at {result['target']}, digits")
    labels = []
    for number, (name, found) in enumerate(result["found"].items()):
        numbers = [number] * len(found)
        bottom.plot([entry["loss"] for entry in found], numbers, "o")
        ranks = ", ".join(str(entry["rank"]) for entry in found)
        labels.append(f"{name}: {ranks}")
    bottom.set_yticks(range(len(labels)), labels)
    bottom.invert_yaxis()
    bottom.set_ylabel("found by, and their ranks")
    bottom.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    bottom.xaxis.set_major_formatter("{x:g}")
    bottom.xaxis.set_minor_formatter("")
    bottom.grid(axis="y", color="0.9")
    bottom.set_xlabel("Loss on the test images, trained from scratch")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    app.run(main)
