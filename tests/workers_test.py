"""Several workers share the batches of one pipeline without repeats."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from absl.testing import absltest

from fliqs_tf import datasets

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Prints a number for every image that a worker gets.
_WORKER = """
import json
import sys
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from fliqs_tf import datasets
data = datasets.load("digits", data_dir=sys.argv[1], seed=5)
found = []
for images, _ in strategy.experimental_distribute_dataset(data):
    (images,) = strategy.experimental_local_results(images)
    weights = tf.reshape(tf.cos(tf.range(64.0) ** 2), (1, 8, 8, 1))
    found += tf.reduce_sum(images * weights, (1, 2, 3)).numpy().tolist()
print(json.dumps(found))
"""


def _free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class WorkersTest(absltest.TestCase):
    @pytest.mark.slow
    def test_two_workers_share_every_batch(self):
        folder = self.create_tempdir().full_path
        datasets.load("digits", data_dir=folder)
        cluster = {"worker": [f"localhost:{port}" for port in _free_ports(2)]}
        processes = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": cluster, "task": task})
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", _WORKER, folder],
                    env={
                        **os.environ,
                        "PYTHONPATH": str(_ROOT),
                        "TF_CONFIG": config,
                    },
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        shares = []
        for process in processes:
            output, errors = process.communicate(timeout=300)
            self.assertEqual(process.returncode, 0, errors)
            shares.append(json.loads(output.splitlines()[-1]))
        # 11 batches of 128, a half of each to either worker.
        self.assertEqual([len(share) for share in shares], [704, 704])
        self.assertLen({*shares[0], *shares[1]}, 1408)


if __name__ == "__main__":
    absltest.main()
