"""Plots of a search, written as PNG."""

import os
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from fliqs_tf.formats import get_format

_DPI = 120
_FLOAT_HATCH = "//"
# From this ratio of costs on, an axis of costs is logarithmic.
_LOGARITHMIC = 5.0
# Of the largest cost, what an axis of costs shows at least.
_SPAN = 0.1
_MARKERS = "os^v"


def layer_formats(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draws the format of every layer, and how much of the work it does.

    Args:
        rows: As `fliqs.report.layer_rows` returns them.
        path: PNG file.
    """
    figure, (left, right) = _subplots(
        1, 2, (8, 1.2 + 0.3 * len(rows)), sharey=True, width_ratios=(2, 1)
    )
    names = [row["path"] for row in rows]
    positions = np.arange(len(rows))
    formats = [row["weight_format"] for row in rows]
    bits = [get_format(fmt).bits for fmt in formats]
    inputs = [row["input_format"] or "float" for row in rows]
    labels, title, room = formats, "Format of each layer", 1.2
    if inputs != formats:
        labels = [
            " / ".join(pair) for pair in zip(formats, inputs, strict=True)
        ]
        title, room = "Formats of each layer: weights / inputs", 1.6
    bars = left.barh(positions, bits, color=[_color(fmt) for fmt in formats])
    left.bar_label(bars, labels=labels, padding=3, fontsize=8)
    left.set_yticks(positions, names, fontsize=8)
    left.invert_yaxis()
    left.set_xlim(0, max(bits) * room)
    left.set_xlabel("bits of a weight")
    macs = np.array([row["macs"] for row in rows], float)
    right.barh(positions, macs / macs.sum() * 100, color="0.6")
    right.set_xlabel("share of MACs (%)")
    figure.suptitle(title)
    _save(figure, path)


def probabilities(epochs: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draws the probabilities of every decision's options over time.

    Args:
        epochs: As `fliqs_tf.callbacks.SearchHistory` records them.
        path: PNG file.
    """
    decisions = epochs[-1]["probabilities"]
    columns = min(3, len(decisions))
    rows = -(-len(decisions) // columns)
    figure, axes = _subplots(
        rows,
        columns,
        (3.2 * columns, 1.2 + 1.7 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    time = [record["epoch"] + 1 for record in epochs]
    handles = {}
    for axis, name in zip(axes.flat, decisions, strict=False):
        options = list(decisions[name])
        values = [
            [record["probabilities"][name][option] for record in epochs]
            for option in options
        ]
        areas = axis.stackplot(
            time, values, colors=[_color(option) for option in options]
        )
        for option, area in zip(options, areas, strict=True):
            if _is_float(option):
                area.set_hatch(_FLOAT_HATCH)
            handles[option] = area
        axis.set_title(name, fontsize=8)
        axis.set_ylim(0, 1)
        axis.set_xlim(time[0], max(time[-1], time[0] + 1))
    for axis in axes.flat[len(decisions) :]:
        axis.set_axis_off()
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("probability", fontsize=9)
    figure.legend(
        handles.values(),
        handles,
        loc="outside upper center",
        ncols=min(len(handles), 9),
        fontsize=8,
    )
    _save(figure, path)


def search_curves(
    epochs: Sequence[Mapping],
    path: str | os.PathLike,
    phases: Mapping[str, float] | None = None,
) -> None:
    """Draws reward, cost ratio and entropy over time.

    Args:
        epochs: As `fliqs_tf.callbacks.SearchHistory` records them.
        path: PNG file.
        phases: Name of a phase -> epoch at which it begins, to be marked.
    """
    figure, axes = _subplots(3, 1, (7, 6), sharex=True)
    time = [record["epoch"] + 1 for record in epochs]
    labels = {
        "reward": "reward",
        "cost_ratio": "cost / target",
        "entropy": "entropy (nat per decision)",
    }
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        values = [record["logs"][name] for record in epochs]
        axis.plot(time, values, color="C0")
        axis.set_ylabel(label, fontsize=9)
        axis.grid(alpha=0.3)
        for epoch in (phases or {}).values():
            axis.axvline(epoch, color="0.5", linestyle=":")
    axes[1].axhline(1.0, color="C3", linestyle="--", linewidth=1)
    for name, epoch in (phases or {}).items():
        axes[0].annotate(
            name,
            (epoch, 1.02),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            ha="center",
        )
    axes[-1].set_xlabel("epoch")
    _save(figure, path)


def switching_errors(
    series: Mapping[str, Sequence[Mapping]], path: str | os.PathLike
) -> None:
    """Draws the switching error of each layer over time, a panel a search.

    Args:
        series: Title -> epochs, as `fliqs_tf.callbacks.SearchHistory` records
            them.
        path: PNG file.
    """
    columns = min(2, len(series))
    rows = -(-len(series) // columns)
    figure, axes = _subplots(
        rows,
        columns,
        (4.5 * columns, 1.0 + 2.6 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis, (title, epochs) in zip(axes.flat, series.items(), strict=False):
        time = [record["epoch"] + 1 for record in epochs]
        errors = [record["switching_errors"] for record in epochs]
        for layer in errors[0]:
            values = [100 * error[layer] for error in errors]
            axis.plot(time, values, color="0.7", linewidth=0.8)
        means = [100 * np.mean(list(error.values())) for error in errors]
        axis.plot(time, means, color="C0", label="mean of the layers")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(series) :]:
        axis.set_axis_off()
    # Once all is drawn: it holds for every panel.
    axes[0, 0].set_ylim(bottom=0.0)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("expected change of the weights a step (%)", fontsize=9)
    _save(figure, path)


def pareto(
    points: Sequence[Mapping],
    path: str | os.PathLike,
    cost_label: str = "cost",
    quality_label: str = "accuracy",
) -> None:
    """Draws quality against cost, one series a method, and the front.

    The axis of the cost is logarithmic where costs differ by more than 5, and
    does not zoom into differences that are small beside them.

    Args:
        points: Dictionaries with `method`, `cost` and `quality`; those of one
            method and one `target` (optional) become a mean with the standard
            deviation as error bar. A `label` (optional) is written beside it.
        path: PNG file.
        cost_label: Label of the cost, with its unit.
        quality_label: Label of the quality.
    """
    groups: dict[tuple, list] = {}
    labels = {}
    for point in points:
        key = point["method"], point.get("target", point["cost"])
        groups.setdefault(key, []).append((point["cost"], point["quality"]))
        labels[key] = point.get("label")
    if not groups:
        raise ValueError("A Pareto plot needs points. Received: none.")
    figure, axis = _subplots(1, 1, (8, 5))
    means = {key: np.mean(values, axis=0) for key, values in groups.items()}
    for index, method in enumerate(dict.fromkeys(m for m, _ in groups)):
        series = sorted(
            (*means[key], *_deviations(values))
            for key, values in groups.items()
            if key[0] == method
        )
        cost, quality, cost_std, quality_std = np.array(series).T
        axis.errorbar(
            cost,
            quality,
            quality_std,
            cost_std,
            # Ten colours; then they come again with another marker.
            fmt=f"{_MARKERS[index // 10 % len(_MARKERS)]}-",
            capsize=3,
            label=method,
            color=f"C{index}",
        )
    costs = np.array(list(means.values()))[:, 0]
    if costs.max() > _LOGARITHMIC * costs.min() > 0:
        axis.set_xscale("log")
    for key, mean in means.items():
        if labels[key]:
            axis.annotate(
                labels[key],
                mean,
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=8,
            )
    front = _front([tuple(mean) for mean in means.values()])
    # To the right edge: nothing dearer is better than the last of the front.
    front.append((costs.max(), front[-1][1]))
    axis.step(
        *np.array(front).T, where="post", color="0.6", zorder=0, label="front"
    )
    # Room for labels.
    axis.margins(x=0.1)
    low, high = axis.get_xlim()
    # Costs at one target differ by a thousandth: not to be looked at closer.
    missing = _SPAN * costs.max() - (high - low)
    if missing > 0:
        axis.set_xlim(low - missing / 2, high + missing / 2)
    axis.set_xlabel(cost_label)
    axis.set_ylabel(quality_label)
    axis.grid(alpha=0.3)
    # Beside the axes: within, it would cover points or error bars.
    figure.legend(loc="outside right upper", fontsize=8)
    _save(figure, path)


def _deviations(values):
    """Standard deviation of each column, of the sample; 0 for one row."""
    if len(values) == 1:
        return (0.0, 0.0)
    return tuple(np.std(values, axis=0, ddof=1))


def _front(points):
    """Points that no cheaper point equals or beats, by rising cost."""
    front: list = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def _is_float(option):
    fmt = get_format(option)
    return not fmt.is_integer and fmt.is_scaled


def _color(option):
    """A colour by width: few bits dark, many bright."""
    import matplotlib

    bits = min(get_format(option).bits, 9)
    return matplotlib.colormaps["viridis"]((bits - 2) / 7)


def _subplots(rows, columns, size, **kwargs):
    # Not at import: `import fliqs_tf` is for training too.
    from matplotlib import figure as figures

    # No pyplot: a library leaves its user's backend and figures alone.
    figure = figures.Figure(figsize=size, dpi=_DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def _save(figure, path):
    partial = f"{os.fspath(path)}.partial"
    figure.savefig(partial, format="png")
    os.replace(partial, path)
