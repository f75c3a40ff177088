"""Reports for people: a table of layers, and a page about a run."""

import io
import math
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import rich.box
import rich.console
import rich.table

from fliqs_tf import costs
from fliqs_tf.export import ExportReport
from fliqs_tf.export import RecipeReport
from fliqs_tf.export.agreement import MAX
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import searchable_layers


def layer_rows(
    model: keras.Model, export: ExportReport | RecipeReport | None = None
) -> list[dict]:
    """Describes the layers of a fixed model as plain data.

    Args:
        model: Fixed model.
        export: What was stored, if the model has been exported.

    Returns:
        One dictionary a layer, in the model's order: path, kind, MACs of one
        sample, number of weights, weight and input format, and the stored type
        (`None` without `export`) with why it differs.
    """
    stored = {layer.path: layer for layer in export.layers} if export else {}
    layers = searchable_layers(model)
    rows = []
    for path, profile in costs.profile(model).items():
        layer = layers[path]
        inputs = None
        if isinstance(layer, SearchableLayer):
            if not layer.is_fixed:
                raise ValueError(
                    "A table of layers needs one format a layer. Received: "
                    f"layer {path!r} with options {', '.join(layer.formats)}. "
                    "Call `fliqs.to_fixed` first."
                )
            weight = layer.formats[0]
            if layer.input_quantizer is not None:
                inputs = layer.input_quantizer.formats[0]
        else:
            weight = inputs = "fp32"
        written = stored.get(path)
        rows.append(
            {
                "path": path,
                "kind": profile.kind,
                "macs": profile.macs,
                "weights": profile.weights,
                "weight_format": weight,
                "input_format": inputs,
                "stored_type": written and written.stored_type,
                "stored_bytes": written and written.weight_bytes,
                "why": written.why if written else "",
            }
        )
    return rows


def layer_table(
    model: keras.Model, export: ExportReport | RecipeReport | None = None
) -> rich.table.Table:
    """Table of a fixed model: layer, MACs, weights, format, stored type.

    Args:
        model: Fixed model.
        export: What was stored; without it the table has no such column.

    Returns:
        A table that `rich.print` shows.
    """
    return _table(layer_rows(model, export), rich.box.SIMPLE_HEAD)


def run_page(report: Mapping, pictures: Sequence[tuple[str, str]]) -> str:
    """Writes the report of a run as Markdown.

    Args:
        report: What `report.json` holds.
        pictures: `(title, path relative to the page)`.
    """
    result, config = report["result"], report["config"]
    lines = [
        f"# {config['model']} on {config['dataset']}",
        "",
        result_line(result),
        f"File: `model.tflite`, {report['export']['file_bytes']:,} bytes "
        f"(weights in float32: {report['export']['float32_bytes']:,}), "
        f"activations `{report['export']['activations']}`.",
        proof_line(report["export"]),
        "",
        "## Layers",
        "",
        _markdown(_table(report["layers"], rich.box.MARKDOWN)),
    ]
    remarks = [row for row in report["layers"] if row["why"]]
    lines += [f"- `{row['path']}`: {row['why']}" for row in remarks]
    for title, path in pictures:
        lines += ["", f"## {title}", "", f"![{title}]({path})"]
    return "\n".join(lines) + "\n"


def result_line(result: Mapping) -> str:
    """One sentence on what a fixed model can do and what it costs."""
    unit, target = result["cost_unit"], result["cost_target"]
    line = (
        f"Accuracy {result['accuracy']:.2%} on {result['test_samples']} test "
        f"images; cost {result['cost']:.6g} {unit}"
    )
    if target is None:
        return f"{line}."
    return f"{line}, {result['cost_ratio']:.1%} of the target of {target:.6g}."


def proof_line(export: Mapping) -> str:
    """One sentence on how well the file agrees with the Keras model."""
    check, trained = export["verification"], export["trained"]
    if check["measure"] != MAX:
        line = (
            f"In the LiteRT interpreter, {check['argmax_agreement']} of "
            f"{check['samples']} images have the argmax of the Keras model "
            f"with its inputs in the file's containers; the RMS error of its "
            f"outputs is {check['rms_error']:.2g}"
        )
        if trained["accuracy"] is None:
            return f"{line}."
        return (
            f"{line}. The file's accuracy is {trained['accuracy']:.2%}, that "
            f"of the model as trained {trained['reference_accuracy']:.2%}."
        )
    return (
        f"In the LiteRT interpreter, {check['argmax_agreement']} of "
        f"{check['samples']} images have the Keras model's argmax; the largest "
        f"relative difference of an output is "
        f"{check['max_relative_error']:.1e} (tolerance "
        f"{check['tolerance']:.0e})."
    )


def study_table(rows: Sequence[Mapping]) -> rich.table.Table:
    """Table of a study: mean and standard deviation of what was measured.

    Args:
        rows: As `fliqs_tf.study.summarize` returns them.

    Returns:
        A table that `rich.print` shows.
    """
    return _study_table(rows, rich.box.SIMPLE_HEAD)


def study_page(
    config: Mapping,
    rows: Sequence[Mapping],
    state: str,
    command: str,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """Writes the report of a study as Markdown.

    Args:
        config: Configuration of one of its runs, as plain data.
        rows: As `fliqs_tf.study.summarize` returns them.
        state: One sentence on how much of it is done.
        command: Command line that makes it.
        pictures: `(title, path relative to the page)`.
    """
    lines = [
        f"# Study: {config['model']} on {config['dataset']}",
        "",
        f"    {command}",
        "",
        f"{state} Each has {config['epochs']} epochs of batches of "
        f"{config['batch_size']}, search and retraining counted, from the same "
        "model and data; accuracy is the fixed model's on the test split. "
        "Mean ± standard deviation over seeds.",
        "",
        _markdown(_study_table(rows, rich.box.MARKDOWN)),
    ]
    for title, path in pictures:
        lines += ["", f"## {title}", "", f"![{title}]({path})"]
    return "\n".join(lines) + "\n"


def _study_table(rows, box):
    table = rich.table.Table(box=box)
    table.add_column("Method", no_wrap=True)
    table.add_column("Target", no_wrap=True)
    table.add_column("Runs", justify="right")
    measures = {
        "Accuracy (%)": ("accuracy", 100, 2),
        f"Cost ({rows[0]['cost_unit']})": ("cost", 1, None),
        "Of target (%)": ("cost_ratio", 100, 1),
        "Size (KiB)": ("size_mib", 1024, 1),
        "Entropy (nat)": ("entropy", 1, 3),
        "Time (s)": ("seconds", 1, 0),
        "Memory (MiB)": ("peak_memory_mib", 1, 0),
    }
    # What no run has measured is no column.
    shown = {
        title: measure
        for title, measure in measures.items()
        if any(row[measure[0]] for row in rows)
    }
    for title in shown:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row["method"],
            row["target"] or "-",
            str(row["runs"]),
            *(
                _spread(row[name], factor, digits)
                for name, factor, digits in shown.values()
            ),
        )
    return table


def _spread(pair, factor=1.0, digits=None):
    """Mean and deviation with as many decimals; by default 4 digits' worth."""
    if pair is None:
        return "-"
    mean, deviation = pair
    if digits is None:
        magnitude = math.floor(math.log10(mean)) if mean else 0
        digits = max(0, 3 - magnitude)
    text = f"{mean * factor:.{digits}f}"
    if deviation is None:
        return text
    return f"{text} ± {deviation * factor:.{digits}f}"


def _table(rows, box):
    table = rich.table.Table(box=box)
    table.add_column("Layer", no_wrap=True)
    table.add_column("Kind")
    table.add_column("MACs", justify="right")
    table.add_column("Weights", justify="right")
    table.add_column("Format")
    is_stored = any(row["stored_type"] for row in rows)
    if is_stored:
        table.add_column("Stored as")
    for row in rows:
        cells = [
            row["path"],
            row["kind"],
            f"{row['macs']:,}",
            f"{row['weights']:,}",
            _format(row),
        ]
        table.add_row(*cells, *([row["stored_type"]] if is_stored else []))
    return table


def _format(row):
    if row["weight_format"] == row["input_format"]:
        return row["weight_format"]
    return f"{row['weight_format']}, inputs {row['input_format'] or 'float'}"


def _markdown(table):
    text = io.StringIO()
    console = rich.console.Console(file=text, width=10_000)
    console.print(table)
    return "\n".join(
        " ".join(line.split()) for line in text.getvalue().strip().splitlines()
    )
