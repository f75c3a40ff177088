"""What a run does, by its method: training or search, export, report."""

from typing import Any

import keras
import rich

from fliqs_tf import baselines
from fliqs_tf import costs
from fliqs_tf import plots
from fliqs_tf import search_recipe
from fliqs_tf.assignment import Assignment
from fliqs_tf.bin.run import Run
from fliqs_tf.config import SearchConfig
from fliqs_tf.config import TrainConfig
from fliqs_tf.convert import to_fixed
from fliqs_tf.formats import get_format
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
    run = Run(config)
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
    run = Run(config)
    if config.method == "fliqs":
        search_recipe.make_search(config, run.model)
    else:
        _task(run)


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains under given formats, exports and reports; see `search`."""
    run = Run(config)
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
    run = Run(config)
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
    # They do not change any more once the formats are fixed.
    entropies = keras.ops.convert_to_numpy(model.policy.entropy())
    return run.finish(
        result.model,
        result.assignment,
        model.budget.target,
        {
            "entropy": float(entropies.mean()),
            # Which decisions were open, if some were.
            "entropies": {
                decision.name: round(float(entropy), 6)
                for decision, entropy in zip(
                    model.decisions, entropies, strict=True
                )
            },
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
