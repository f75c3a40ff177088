"""A study: methods x targets x seeds, in one folder, with one report."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from fliqs_tf import baselines
from fliqs_tf import plots
from fliqs_tf import report as reports
from fliqs_tf import search_recipe
from fliqs_tf.config import PLACES
from fliqs_tf.config import SearchConfig
from fliqs_tf.files import read_json
from fliqs_tf.files import write_json
from fliqs_tf.files import write_text
from fliqs_tf.run_folder import RunFolder
from fliqs_tf.space import TIED

# What the report gives mean and standard deviation of.
MEASURES = (
    "accuracy",
    "cost",
    "cost_ratio",
    "size_mib",
    "entropy",
    "seconds",
    "peak_memory_mib",
)


# Models that a run reads. A result holds their names, as it may be moved.
_FILES = ("model_file", "teacher")


class Study:
    """Runs that differ in method, target and seed only, and their results.

    The folder holds `runs/<name>/` (see `RunFolder`), `results/<name>.json`
    for every finished run, `logs/`, and the report: `report.md`, `pareto.png`,
    `pareto_size.png`; a `findings.md` that somebody puts there is its end.
    More methods, targets and seeds may be added to it later: finished runs
    stand.

    Args:
        base: What all runs share; its `run_dir` is the study's folder.
        methods: Names of methods, see `SearchConfig`.
        targets: Cost targets. A method that takes none runs once a seed.
        seeds: Seeds.
        variants: Name -> settings of the search (see
            `SearchConfig.override`) under which the method `"fliqs"` runs,
            each a row of its own, besides the settings of `base`.

    Raises:
        ValueError: If the folder holds something else or another study, a
            method, target or seed is repeated, or a run has settings that none
            can have.
    """

    def __init__(
        self,
        base: SearchConfig,
        methods: Sequence[str],
        targets: Sequence[str],
        seeds: Sequence[int],
        variants: Mapping[str, Mapping[str, str]] | None = None,
    ):
        self.root = pathlib.Path(base.run_dir)
        self._results = self.root / "results"
        variants = variants or {}
        # In hours, when its turn comes, would be late.
        for settings in [{}, *variants.values()]:
            search_recipe.check(base.override(settings))
        self.runs = tuple(self._plan(base, methods, targets, seeds, variants))
        self._check_names()
        self._check_folder()
        for config in self.runs:
            self.is_finished(config)

    def _plan(self, base, methods, targets, seeds, variants):
        # The seed varies slowest: early on, every method has results.
        for seed in seeds:
            for method in methods:
                searches = method == "fliqs"
                bounded = searches or baselines.is_bounded(method)
                # Other methods' results stand whatever the search does.
                settings = [base if searches else base.without_search()]
                if searches:
                    settings += [
                        dataclasses.replace(base.override(v), variant=name)
                        for name, v in variants.items()
                    ]
                for setting in settings:
                    if not bounded:
                        # One format for all: there is nothing to decide.
                        setting = dataclasses.replace(
                            setting, input_formats=TIED
                        )
                    for target in targets if bounded else [None]:
                        config = dataclasses.replace(
                            setting,
                            method=method,
                            cost_target=target,
                            seed=seed,
                        )
                        folder = self.root / "runs" / self.name(config)
                        yield dataclasses.replace(config, run_dir=str(folder))

    def _check_names(self):
        names = [self.name(config) for config in self.runs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                "The runs of a study must differ, as each has a folder by its "
                "method, target and seed. Received: more than once "
                f"{', '.join(repeated)}. Name every method, target and seed "
                "once."
            )

    def _check_folder(self):
        if self.root.is_dir():
            is_ours = not os.listdir(self.root) or self._results.is_dir()
        else:
            is_ours = not self.root.exists()
        if not is_ours:
            raise ValueError(
                "A study's folder must be new, empty or hold a study. "
                f"Received: run_dir={self.root}, which has something else. "
                "Choose another folder."
            )

    def create(self) -> None:
        """Makes the folders."""
        # The results first: a folder without them is somebody else's.
        for name in (self._results.name, "runs", "logs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def name(self, config: SearchConfig) -> str:
        """Name of a run, fit for a file name."""
        parts = [
            config.method,
            config.variant,
            config.cost_target,
            f"seed{config.seed}",
        ]
        return "_".join(part.replace(":", "-") for part in parts if part)

    def result_path(self, config: SearchConfig) -> pathlib.Path:
        """File of a run's result; stands once the run is finished."""
        return self._results / f"{self.name(config)}.json"

    def log_path(self, config: SearchConfig) -> pathlib.Path:
        """File of what a run prints."""
        return self.root / "logs" / f"{self.name(config)}.txt"

    def is_finished(self, config: SearchConfig) -> bool:
        """Whether a run of this study needs not be done again."""
        path = self.result_path(config)
        if not path.exists():
            return False
        stored = read_json(path)["config"]
        differences = _without_folders(config).differences(stored)
        if differences:
            changed = [
                f"{name}={own!r} (there: {there!r})"
                for name, (own, there) in differences.items()
            ]
            raise ValueError(
                "A study's folder must be new, empty or hold results of the "
                f"same configuration. Received: {path} of another: "
                f"{', '.join(changed)}. Choose another folder, or delete it."
            )
        return True

    def epochs_done(self, config: SearchConfig) -> int:
        """How many epochs of a run are behind it."""
        if self.is_finished(config):
            return config.epochs
        history = RunFolder(config).history
        return len(read_json(history)) if history.exists() else 0

    def add(self, config: SearchConfig, report: Mapping[str, Any]) -> None:
        """Records the result of a finished run.

        Args:
            config: The run.
            report: What its `report.json` holds. The result leaves out the
                history of the epochs, and where the run and its files were.
        """
        layers = {
            row["path"]: {
                "weight": row["weight_format"],
                "input": row["input_format"],
            }
            for row in report["layers"]
        }
        export = report["export"]
        write_json(
            self.result_path(config),
            {
                "config": {
                    key: value
                    for key, value in _without_folders(config).to_dict().items()
                    if key not in PLACES
                },
                "versions": report["versions"],
                "result": report["result"],
                "formats": layers,
                "file_bytes": export["file_bytes"],
                "verification": export["verification"],
            },
        )

    def result(self, config: SearchConfig) -> dict:
        """Result of a finished run, as `add` recorded it."""
        return read_json(self.result_path(config))

    def results(self) -> list[dict]:
        """Results of the finished runs, in the order of the study."""
        return [
            self.result(config)
            for config in self.runs
            if self.is_finished(config)
        ]

    def write_report(self, command: str) -> list[dict]:
        """Writes `report.md` and its pictures from what is finished.

        Args:
            command: Command line that makes the study, for the report.

        Returns:
            The rows of its table, see `summarize`.
        """
        results = self.results()
        rows = summarize(results)
        unit = results[0]["result"]["cost_unit"]
        pictures = {
            "cost": (f"Accuracy against cost ({unit})", "pareto.png"),
            "size_mib": ("Accuracy against size (MiB)", "pareto_size.png"),
        }
        for measure, (title, name) in pictures.items():
            plots.pareto(
                _points(results, measure),
                self.root / name,
                cost_label=title.split("against ")[1],
                quality_label="accuracy (%)",
            )
        page = reports.study_page(
            results[0]["config"],
            rows,
            f"{len(results)} of {len(self.runs)} runs are finished.",
            command,
            list(pictures.values()),
        )
        # What somebody made of the numbers outlives the next report.
        findings = self.root / "findings.md"
        if findings.exists():
            page += "\n" + findings.read_text("utf-8")
        write_text(self.root / "report.md", page)
        return rows


def summarize(results: Iterable[Mapping]) -> list[dict]:
    """Mean and standard deviation of results, by method and target.

    Args:
        results: As `Study.results` returns them.

    Returns:
        One dictionary a method (with its variant) and target: `method`,
        `target`, `runs`, `cost_unit` and, for each of `MEASURES`,
        `(mean, standard deviation)`: of the sample, with `runs - 1`; `None`
        for one run. The pair is `None` if the measure does not apply.
    """
    groups: dict[tuple, list] = {}
    for item in results:
        config = item["config"]
        key = _method(config), config["cost_target"]
        groups.setdefault(key, []).append(item["result"])
    rows = []
    for (method, target), group in groups.items():
        row = {
            "method": method,
            "target": target,
            "runs": len(group),
            "cost_unit": group[0]["cost_unit"],
        }
        for name in MEASURES:
            row[name] = _mean_and_deviation([item.get(name) for item in group])
        rows.append(row)
    return rows


def _without_folders(config):
    """The same configuration, of its files the names only."""
    names = {
        field: pathlib.PurePath(path).name
        for field in _FILES
        if (path := getattr(config, field)) is not None
    }
    return dataclasses.replace(config, **names)


def _method(config):
    variant = config.get("variant")
    return f"{config['method']} ({variant})" if variant else config["method"]


def _mean_and_deviation(values):
    if None in values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def _points(results, measure):
    points = []
    for item in results:
        method, _, fmt = _method(item["config"]).partition(":")
        points.append(
            {
                "method": method,
                "target": fmt or item["config"]["cost_target"],
                "label": fmt,
                "cost": item["result"][measure],
                "quality": 100 * item["result"]["accuracy"],
            }
        )
    return points
