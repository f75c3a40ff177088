"""The search: one `train_step` for the weights and for the policy."""

import types
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras import ops

from fliqs_tf import costs
from fliqs_tf import rewards
from fliqs_tf.assignment import Assignment
from fliqs_tf.budget import USED
from fliqs_tf.budget import make_budget
from fliqs_tf.controller import Controller
from fliqs_tf.convert import to_fixed
from fliqs_tf.convert import to_searchable
from fliqs_tf.decisions import assignment_of
from fliqs_tf.decisions import model_decisions
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import walk
from fliqs_tf.layers.children import exchange
from fliqs_tf.policy import Policy
from fliqs_tf.quality import accuracy
from fliqs_tf.random_states import random_states
from fliqs_tf.search_arguments import check_arguments
from fliqs_tf.search_arguments import check_controller
from fliqs_tf.search_arguments import check_no_conversion
from fliqs_tf.search_arguments import check_steps
from fliqs_tf.search_run import SearchRun
from fliqs_tf.search_run import create_state
from fliqs_tf.search_run import value_of
from fliqs_tf.space import Rule


@keras.saving.register_keras_serializable(package="fliqs_tf")
class SearchModel(keras.Model):
    """Searches formats for the layers of a model while it trains (FLIQS).

    At every step each replica samples one option per decision, the weights
    take an ordinary step under it, and the controller a REINFORCE step on

        reward(Q, C / C_target, beta)

    with the quality `Q` of the batch just seen and the cost `C` of the sample.
    `fit` runs the whole schedule (see `Controller`): weights only, search, and
    training under the formats found, whose cost never exceeds the target.

    Evaluation and prediction use the most probable options so far, and after
    the freeze the fixed ones. Before it they may cost more than the target
    (`val_cost_ratio`), so that a callback that keeps the best epoch is to look
    at those after it only.

    Example:
        search = fliqs.SearchModel(
            model, space="int_l", cost_target="1.25xint4"
        )
        search.compile(
            optimizer="adam",
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        search.fit(train, validation_data=val, epochs=20)
        fixed = search.best_model()

    Args:
        model: Built model: a plain one, or one whose layers are searchable
            already (then without `space`, `rules` and what says how inputs
            are quantized). A `compute_loss`, `train_step` or `test_step` of
            its own is not called: subclass `SearchModel` for that.
        space: Formats to choose from, see `to_searchable`.
        cost: What the reward weighs: a name that `fliqs.costs.get` takes, or a
            `fliqs.costs.Cost`.
        cost_target: Largest cost of the result: a number in the cost's unit, a
            multiple of a uniform format's, such as `"1.25xint4"`, or a per
            cent of float32's, such as `"10%"`. `None` for no bound.
        rules: Exceptions for some layers, see `to_searchable`.
        reward: Name of a function of `fliqs_tf.rewards`.
        beta: Weight of the cost in the reward, in units of the quality. Below
            what more cost is worth, the policy stays above the target.
        quality: `"loss"` (minus the loss of the batch) or `"accuracy"` (of the
            batch, in [0, 1]).
        input_range: See `to_searchable`.
        input_signedness: See there.
        seed: Seed of the sampling.
        bounds: Further costs -> targets of the same forms as `cost_target`.
            The reward knows nothing of them, but the result keeps them.
    """

    def __init__(
        self,
        model: keras.Model,
        space: str | Sequence[str] | None = None,
        cost: str | costs.AnyCost = "bitops",
        cost_target: float | str | None = None,
        rules: Sequence[Rule] = (),
        reward: str = "absolute",
        beta: float = 1.0,
        quality: str = "loss",
        input_range: str = "ema",
        input_signedness: str = "symmetric",
        seed: int = 0,
        bounds: Mapping[str | costs.AnyCost, float | str] = {},  # noqa: B006
        **kwargs,
    ):
        check_arguments(reward, beta, quality, bounds)
        check_steps(model, type(self), SearchModel)
        # Keras scales the loss where the policy is float16's. What the model
        # is given, it casts itself.
        super().__init__(
            **{"dtype": model.dtype_policy, "autocast": False, **kwargs}
        )
        conversion = rules, input_range, input_signedness
        if space is not None:
            model = to_searchable(model, space, *conversion)
        else:
            check_no_conversion(*conversion)
        self.searchable_model = model
        # By which losses and metrics of several outputs are given.
        self.output_names = getattr(model, "output_names", None)
        layers = {
            path: layer
            for path, layer in walk(model)
            if isinstance(layer, SearchableLayer)
        }
        if not layers:
            raise ValueError(
                "A plain model needs a space to search. Received: space=None. "
                "Give one, for example space='int_l'."
            )
        self.cost = costs.get(cost)
        self._reward = rewards.get(reward)
        self.reward, self.beta, self.quality = reward, beta, quality
        self.seed = seed
        found = model_decisions(layers)
        self.decisions = tuple(decision for decision, _ in found)
        self._choices = tuple(tuple(variables) for _, variables in found)
        # A view, which Keras does not track: the model that holds them is.
        self.layers_by_path = types.MappingProxyType(layers)
        self.budget = make_budget(
            model, self.decisions, self.cost, cost_target, bounds
        )
        self.policy = Policy(self.decisions, seed=seed, name="policy")
        self._identities = [
            identity
            for layer in layers.values()
            for identity in layer.input_identities()
        ]
        # Steps done; steps of the whole run (0: not known yet); whether the
        # formats are fixed, and to what.
        self.step = self._counter("step")
        self.total_steps = self._counter("total_steps")
        self.frozen = self._counter("frozen")
        self.frozen_sample = self._counter(
            "frozen_sample", (len(self.decisions),)
        )
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("reward", "cost", "cost_ratio", "entropy")
        }
        self.built = True

    def _counter(self, name, shape=()):
        return self.add_weight(
            name=name,
            shape=shape,
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        *,
        controller: Controller | None = None,
        jit_compile: bool | None = None,
        **kwargs,
    ):
        """Configures the run; like `keras.Model.compile`, with a controller.

        Args:
            optimizer: Optimizer of the weights.
            loss: As in Keras.
            loss_weights: As in Keras.
            metrics: As in Keras.
            controller: What updates the policy, a new one for each search;
                `None` for the defaults.
            jit_compile: Whether to compile the step with XLA. `None`: if there
                is an accelerator; on CPUs it slows convolutions down.
            **kwargs: As in Keras.
        """
        if jit_compile is None:
            jit_compile = any(
                tf.config.list_physical_devices(kind) for kind in ("GPU", "TPU")
            ) and not kwargs.get("run_eagerly", False)
        current = getattr(self, "controller", None)
        if controller is None:
            controller = Controller()
        check_controller(controller, current, self.reward)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            jit_compile=jit_compile,
            **kwargs,
        )
        if current is None:
            self.controller = controller
        elif controller is not current:
            # Keras would keep the old one among the layers.
            exchange(self, {"controller": controller})
        if not controller.built:
            controller.prepare(self.policy, self.budget, self.beta)

    def get_compile_config(self):
        config = super().get_compile_config()
        if not self.compiled:
            return config
        return {
            **config,
            "controller": keras.saving.serialize_keras_object(self.controller),
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=False):
        if not training:
            self._choose(self.most_probable(), quantize_inputs=True)
        return self.searchable_model(inputs, training=training)

    def most_probable(self):
        """int32 `(decisions,)`: the fixed options, or the likeliest so far."""
        return ops.where(
            self.frozen > 0, self.frozen_sample, self.policy.best()
        )

    def probabilities(self) -> np.ndarray:
        """Of the options, `(decisions, options)`: 1 for what is fixed."""
        table = ops.convert_to_numpy(self.policy.probabilities())
        if value_of(self.frozen):
            fixed = ops.convert_to_numpy(self.frozen_sample)
            table = np.eye(table.shape[1])[fixed]
        return table

    def _choose(self, sample, quantize_inputs):
        """Hands a sample to the layers."""
        for number, variables in enumerate(self._choices):
            for variable in variables:
                variable.assign(sample[number])
        for variable, identity in self._identities:
            variable.assign(ops.where(quantize_inputs, variable, identity))

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        frozen = self.frozen > 0
        progress = ops.cast(self.step, "float32") / ops.cast(
            ops.maximum(self.total_steps, 1), "float32"
        )
        replica = tf.distribute.get_replica_context()
        # All replicas draw the same list, and each takes its own row.
        samples = self.policy.sample(replica.num_replicas_in_sync)
        sample = ops.where(
            frozen,
            self.frozen_sample,
            samples[replica.replica_id_in_sync_group],
        )
        self._choose(
            sample,
            ops.logical_or(
                frozen, progress >= self.controller.activation_delay
            ),
        )
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(
                x=x,
                y=y,
                y_pred=y_pred,
                sample_weight=sample_weight,
                training=True,
            )
            scaled = self.optimizer.scale_loss(loss)
        weights = self.searchable_model.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)

        # Keras divides the loss by the number of replicas.
        loss = ops.cast(loss, "float32") * replica.num_replicas_in_sync
        quality = (
            -loss if self.quality == "loss" else accuracy(y, y_pred, self.loss)
        )
        cost = self.budget.of_tensor(sample)
        ratio = cost / self.budget.target
        reward = self._reward(quality, ratio, self.beta)
        self._update_policy(
            *(sample, quality, reward, progress, frozen),
            replicas=replica.num_replicas_in_sync,
        )
        self.step.assign(self.step + 1)

        entropy = ops.where(frozen, 0.0, ops.mean(self.policy.entropy()))
        batch_size = ops.shape(keras.tree.flatten(x)[0])[0]
        self._loss_tracker.update_state(loss, sample_weight=batch_size)
        for name, value in (
            ("reward", reward),
            ("cost", cost),
            ("cost_ratio", ratio),
            ("entropy", entropy),
        ):
            self._trackers[name].update_state(value)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _update_policy(
        self, sample, quality, reward, progress, frozen, replicas
    ):
        count = self.controller.cost_samples
        simulated = None
        if count > 1:
            samples = self.policy.sample(count)
            ratios = self.budget.of_tensor(samples) / self.budget.target
            simulated = samples, self._reward(0.0, ratios, self.beta)
            reward = quality
        self.controller.update(
            *(self.policy, sample, reward, progress, frozen, simulated),
            share=1.0 / replicas,
        )

    def test_step(self, data):
        logs = super().test_step(data)
        cost = self.budget.of_tensor(self.most_probable())
        return {
            **{k: v for k, v in logs.items() if k not in self._trackers},
            "cost": cost,
            "cost_ratio": cost / self.budget.target,
        }

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        **kwargs,
    ):
        """Runs the search; like `keras.Model.fit`.

        The schedule covers the whole run, so the number of steps must be known
        (give `steps_per_epoch` for data of unknown length). A run that was
        restored from a checkpoint goes on, whether `epochs` counts those done
        (with `initial_epoch`) or not; after its end, `fit` goes on training
        under the formats found. Batch-norm statistics are re-estimated at the
        freeze and after the last step (see `fliqs.recalibrate`).

        The history has, besides Keras's, `reward`, `cost` (in the cost's
        unit), `cost_ratio` (to the target) of the samples and `entropy` (mean
        per decision, nat).

        Raises:
            ValueError: If the number of steps is unknown.
            FloatingPointError: If the loss becomes NaN or infinite.
        """
        held_out = validation_split if validation_data is None else None
        run = SearchRun(x, batch_size or 32, initial_epoch, held_out or 0.0)
        given = [] if callbacks is None else callbacks
        given = given if isinstance(given, list | tuple) else [given]
        create_state(self, x, y)
        return super().fit(
            *(x, y, batch_size, epochs, verbose, [*given, run]),
            *(validation_split, validation_data, shuffle),
            *(class_weight, sample_weight, initial_epoch),
            **kwargs,
        )

    def train_on_batch(self, *args, **kwargs):
        """Trains on a batch of a run that `fit` has begun.

        Raises:
            ValueError: If there is no such run.
        """
        if not value_of(self.total_steps):
            raise ValueError(
                "The schedule of a search needs its number of steps. Received: "
                "`train_on_batch` before `fit`, which knows it. Use `fit`."
            )
        return super().train_on_batch(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Exports `best_model`; like `keras.Model.export`."""
        return self.best_model().export(*args, **kwargs)

    def assignment(self) -> Assignment:
        """The most probable assignment whose cost does not exceed the target.

        Where the controller has a critic: the one of the largest quality.
        Under the reward `"absolute"`, which wants the target met, one that
        uses at least 98% of it, or of the most that an assignment can use
        (if the cost is a sum over layers), and the rest for more bits of the
        same kinds of formats, as far as they fit (`Budget.widened`): what a
        search is too short to tell apart does not leave a layer narrower than
        the budget has room for.
        """
        return assignment_of(self.decisions, self._affordable_sample())

    def best_model(self) -> keras.Model:
        """The trained model at the formats of `assignment`.

        Before the freeze its weights have not been trained under these alone.
        """
        if not value_of(self.frozen):
            logging.warning(
                "The search has not ended: it is at step %d of %d, and its "
                "weights are not trained under the formats of `best_model`.",
                value_of(self.step),
                value_of(self.total_steps),
            )
        return to_fixed(self, self.assignment())

    def freeze(self) -> None:
        """Fixes the formats to those of `assignment`."""
        self.frozen_sample.assign(self._affordable_sample())
        self.frozen.assign(1)

    def _affordable_sample(self):
        if value_of(self.frozen):
            return ops.convert_to_numpy(self.frozen_sample)
        if self.compiled:
            scores = self.controller.scores(self.policy)
        else:
            scores = self.policy.log_probabilities()
        scores = ops.convert_to_numpy(scores)
        if self.reward not in rewards.WANTS_TARGET_MET:
            return self.budget.most_probable(scores)
        return self.budget.widened(self.budget.most_probable(scores, USED))

    def _random_states(self):
        """Key -> state of a random generator of the searched model."""
        states = random_states(self.searchable_model)
        return {f"random_state_{n}": state for n, state in enumerate(states)}

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for key, variable in self._random_states().items():
            store[key] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        saved = {key: store[key] for key in store.keys()}
        for key, variable in self._random_states().items():
            variable.assign(saved.pop(key))
        super().load_own_variables(saved)

    def get_config(self):
        return {
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "model": keras.saving.serialize_keras_object(self.searchable_model),
            "cost": self.cost.name,
            "cost_target": self.budget.target,
            "bounds": {b.cost.name: b.target for b in self.budget.bounds},
            "reward": self.reward,
            "beta": self.beta,
            "quality": self.quality,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = {**config}
        config["model"] = keras.saving.deserialize_keras_object(config["model"])
        return cls(**config)
