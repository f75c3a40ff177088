"""What every test relies on: quiet TensorFlow, two threads, parsed flags."""

import os

# Before TensorFlow is imported, which reads it once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import flags  # noqa: E402


def pytest_configure(config):
    """Does once a process what absl's own test runner would have done."""
    del config
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Each xdist worker is a process; without a limit each takes every core.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(1, (os.cpu_count() or 1) // workers)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


@pytest.hookimpl(tryfirst=True)  # Before `-m` selects.
def pytest_collection_modifyitems(items):
    """Marks as slow the cases of a test that `one_in` leaves out."""
    for item in items:
        marker = item.get_closest_marker("one_in")
        if marker is None:
            continue
        # absl appends the number of the case to the name of the method.
        method = item.function.__wrapped__.__name__
        case = int(item.name.removeprefix(method))
        (n,) = marker.args
        if case % n != marker.kwargs.get("start", 0):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Gives each test the same seeds and layer names, in any order."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
