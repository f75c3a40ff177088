"""What it costs shared weights that formats switch from step to step.

For a kernel `w` and two formats `f`, `g` of its options, each with its own
scales,

    D(f, g) = mean |Q_f(w) - Q_g(w)| / mean |w|

is how far the weights that a step uses move when the sample changes from one
to the other. Under independent samples from probabilities `p` that happens with
`p_f p_g`, so that the expected change from one step to the next is

    sum_f sum_g p_f p_g D(f, g),

which ends with the entropy of the policy. (FLIQS names a switching error; its
definition is ours.)
"""

import numpy as np
from keras import ops

from fliqs_tf.quantizers import WeightQuantizer
from fliqs_tf.search_model import SearchModel

# Of a pair; rarer ones change no digit that is shown.
_RARE = 1e-5


def switching_errors(model: SearchModel) -> dict[str, float]:
    """Expected relative change of each layer's kernels from step to step.

    Args:
        model: A search, at any time; nothing is changed.

    Returns:
        Path of a layer -> error, the mean over its kernels. 0 once the formats
        are fixed, and for layers without a choice of weights' formats.
    """
    errors = {}
    rows = model.probabilities()
    for decision, row in zip(model.decisions, rows, strict=True):
        if decision.kind == "input_format":
            continue
        for path in decision.layers:
            layer = model.layers_by_path[path]
            found = [
                _expected(layer, name, decision.options, row)
                for name in layer.kernels
            ]
            # A product of activations has no kernel.
            if found:
                errors[path] = float(np.mean(found))
    return errors


def format_distance(layer, kernel: str, first: str, second: str) -> float:
    """`D(first, second)` of a searchable layer's kernel.

    Args:
        layer: Built searchable layer.
        kernel: Name of its kernel.
        first: Name of a format.
        second: Name of another.
    """
    weights, scale = _kernel(layer, kernel)
    return _distance(
        _rounded(layer, kernel, weights, first),
        _rounded(layer, kernel, weights, second),
        scale,
    )


def _expected(layer, kernel, options, probabilities):
    weights, scale = _kernel(layer, kernel)
    # Padded options have probability 0, and no name.
    likely = [
        (p, _rounded(layer, kernel, weights, option))
        for option, p in zip(options, probabilities, strict=False)
        if p * (1 - p) > _RARE
    ]
    return sum(
        2 * p * q * _distance(a, b, scale)
        for number, (p, a) in enumerate(likely)
        for q, b in likely[:number]
    )


def _kernel(layer, kernel):
    weights = ops.convert_to_tensor(getattr(layer.holder(layer), kernel))
    return weights, float(ops.mean(ops.abs(weights)))


def _rounded(layer, kernel, weights, option):
    own = layer.kernel_quantizers[kernel]
    codes, scale = WeightQuantizer(option, own.axis, own.granularity).codes(
        weights, training=False, weights={}
    )
    return ops.convert_to_numpy(codes * scale)


def _distance(first, second, scale):
    return float(np.mean(np.abs(first - second))) / scale if scale else 0.0
