"""Runs methods x targets x seeds, and compares them.

Example:
  python -m fliqs_tf.bin.study --flagfile=flags/presets/digits_study.flags

Each run has its own process and its own folder below --run_dir. A study that
was stopped goes on when it is started again; finished runs are not redone. At
the end, and whenever a run is finished, report.md and pareto.png are written;
--workers=0 does that alone. A file findings.md in the folder is the end of the
report.
"""

import dataclasses
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from typing import Any

import rich
import rich.console
import rich.progress
import tensorflow as tf
from absl import flags
from absl import logging

from fliqs_tf import report as reports
from fliqs_tf.bin import experiment
from fliqs_tf.bin import program
from fliqs_tf.flags import study_flags
from fliqs_tf.study import Study

# Shown by --helpshort.
flags.adopt_module_key_flags(study_flags)

_POLL_SECONDS = 1.0
_FILE_WIDTH = 200
# Seldom enough to read every history anew.
_PROGRESS_SECONDS = 5.0


def main(argv):
    """Runs the study that the flags describe."""
    program.refuse_arguments(argv)
    study = study_flags.study_from_flags()
    command = study_flags.command(sys.argv[1:])
    workers = study_flags.WORKERS.value
    if not workers:
        _show_report(study, command)
        return
    _check(study)
    study.create()
    # For the processes: what TensorFlow says at its import is in no log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _lock(study):
        failed = _Workers(study, workers, command).run()
        if len(failed) < len(study.runs):
            _show_report(study, command)
    if failed:
        raise ValueError(
            f"Every run must finish. Received: {len(failed)} that did not: "
            f"{', '.join(failed)}. See their files in {study.root / 'logs'}; "
            "the same command tries them again."
        )


def _check(study):
    """Tries what is to be run; in hours, when its turn comes, would be late."""
    tried = set()
    for config in study.runs:
        row = dataclasses.replace(config, seed=0, run_dir=str(study.root))
        if not study.is_finished(config) and row not in tried:
            tried.add(row)
            experiment.check(config)


def _show_report(study, command):
    """Writes the report of what is finished, and prints its table."""
    if not study.results():
        raise ValueError(
            "A report needs a run that is finished. Received: run_dir="
            f"{study.root}, which has none; start the study with --workers=1."
        )
    table = reports.study_table(study.write_report(command))
    console = rich.console.Console()
    if not console.is_terminal:
        # A file has no width of its own.
        console = rich.console.Console(width=_FILE_WIDTH)
    console.print(table)
    rich.print(f"The study's folder is {study.root.resolve()}")


def _lock(study):
    """Takes the study's folder; it is free again when the process ends."""
    lock = open(study.root / "lock", "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ValueError(
            "A study is done by one process and its workers. Received: "
            f"run_dir={study.root}, where another is at work. Wait for it, or "
            "choose another folder; --workers sets how many runs go at a time."
        ) from error
    return lock


class _Workers:
    """Processes that do the runs of a study, a run each."""

    def __init__(self, study: Study, count: int, command: str):
        self._study = study
        self._count = count
        self._command = command
        self._context = multiprocessing.get_context("spawn")
        self._running: dict = {}
        self._failed: list[str] = []
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
        )
        self._total = sum(max(config.epochs, 1) for config in study.runs)
        self._start = time.monotonic()
        self._epochs_before = self._epochs()

    def run(self) -> list[str]:
        """Does every run that is not finished; returns the failed ones."""
        study = self._study
        pending = [c for c in study.runs if not study.is_finished(c)]
        rich.print(
            f"{len(study.runs)} runs, {len(study.runs) - len(pending)} of "
            f"them finished; logs in {study.root / 'logs'}"
        )
        if not pending:
            return []
        bar = self._progress.add_task("epochs", total=self._total, left="")
        try:
            with self._progress:
                next_look = 0.0
                while pending or self._running:
                    while pending and len(self._running) < self._count:
                        self._begin(pending.pop(0))
                    sentinels = {p.sentinel: p for p in self._running}
                    for sentinel in multiprocessing.connection.wait(
                        list(sentinels), timeout=_POLL_SECONDS
                    ):
                        self._end(sentinels[sentinel])
                    if time.monotonic() >= next_look:
                        next_look = time.monotonic() + _PROGRESS_SECONDS
                        self._progress.update(
                            bar,
                            completed=self._epochs(),
                            left=self._time_left(),
                        )
                self._progress.update(
                    bar, completed=self._epochs(), left=self._time_left()
                )
        finally:
            for process in self._running:
                process.terminate()
        return self._failed

    def _begin(self, config):
        # A process that dies before its first word has a log, too.
        self._study.log_path(config).touch()
        threads = max(1, (os.cpu_count() or 1) // self._count)
        process = self._context.Process(
            target=_work, args=(self._study, config, threads)
        )
        process.start()
        self._running[process] = config

    def _end(self, process):
        process.join()
        study, config = self._study, self._running.pop(process)
        done = sum(study.is_finished(c) for c in study.runs)
        line = f"[{done}/{len(study.runs)}] {study.name(config)}: "
        if study.is_finished(config):
            study.write_report(self._command)
            result = study.result(config)["result"]
            line += (
                f"{reports.result_line(result)} {result['seconds']:.0f} s; "
                f"{self._time_left()}"
            )
        else:
            self._failed.append(study.name(config))
            lines = study.log_path(config).read_text("utf-8").split("\n")
            last = next((x for x in reversed(lines) if x.strip()), "")
            line += f"failed with code {process.exitcode}. {last}"
        # No markup: an error's text may hold brackets.
        self._progress.console.print(
            line, markup=False, highlight=False, soft_wrap=True
        )

    def _epochs(self):
        return sum(self._study.epochs_done(c) for c in self._study.runs)

    def _time_left(self):
        epochs = self._epochs()
        done = epochs - self._epochs_before
        if epochs >= self._total:
            return "nothing left"
        if not done:
            return "time left not known yet"
        seconds = (time.monotonic() - self._start) / done
        minutes = seconds * (self._total - epochs) / 60
        return f"about {max(minutes, 0.1):.1f} min left"


def _work(study, config, threads):
    """Does one run, in a process of its own."""
    _end_with_parent()
    with open(study.log_path(config), "a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    logging.set_verbosity(logging.WARNING)
    study.add(config, experiment.search(config))


def _end_with_parent():
    # A study that is started again must be alone in the folders of its runs.
    # Any: `None` is for a process that nobody started.
    parent: Any = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run():
    """Entry point of the console script."""
    program.run(main)


if __name__ == "__main__":
    run()
