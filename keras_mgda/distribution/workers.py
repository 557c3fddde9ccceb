"""Training on several workers: processes, each with its part of the data.

They meet in every step, so all of them have to make the same number of steps,
and each keeps the variables on its own, so all of them have to start from the
same ones. Both is checked before the first step. What is checked later is
TensorFlow's: a worker that dies is missed by the others some seconds later, and
they stop with a `tf.errors.UnavailableError`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def has_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether the replicas are in several processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec()
    return sum(map(cluster.num_tasks, cluster.jobs)) > 1


class SameStart(keras.callbacks.Callback):
    """Raises unless all workers start to train alike.

    They need equally many batches, for they meet in every step. And they need
    the same state: gradients are summed over the workers, variables are not. To
    stand behind the callbacks that load them.

    Args:
        start: returns the variables that have to be the same, and a structure
            of settings, as JSON takes it.
        num_batches: how many batches this worker's data fill, as far as that
            is known, even if an epoch takes fewer.
    """

    def __init__(
        self, start: Callable[[], tuple[Any, Any]], num_batches: int | None
    ) -> None:
        super().__init__()
        self._start = start
        self._num_batches = num_batches
        self._trains = False

    def on_train_end(self, logs: Any = None) -> None:
        self._trains = False

    def on_test_begin(self, logs: Any = None) -> None:
        if not self._trains:  # else these are the numbers of the training data
            self._check_batches()

    def on_train_begin(self, logs: Any = None) -> None:
        self._trains = True
        self._check_batches()
        variables, settings = self._start()
        digest = hashlib.sha256(json.dumps(settings).encode())
        for variable in variables:
            digest.update(variable.numpy().tobytes())
        num_steps = int(self.model.optimizer.iterations.numpy())
        of_workers = _gather(
            self.model.distribute_strategy,
            [num_steps, int.from_bytes(digest.digest()[:7], "big")],
        )
        if _differ(of_workers):
            raise ValueError(
                "All workers must start with the same weights, optimizer and "
                "weighting. Received: different ones, after "
                f"{of_workers[:, 0].tolist()} steps. Let every worker load the "
                "same checkpoint, from a directory that all of them read and "
                "the first one writes, and give random weightings a seed."
            )

    def _check_batches(self) -> None:
        numbers = (self.params["steps"], self._num_batches)
        of_workers = _gather(
            self.model.distribute_strategy,
            [-1 if n is None else n for n in numbers],
        )
        if _differ(of_workers):
            batches = [None if n < 0 else n for n in of_workers.min(1).tolist()]
            raise ValueError(
                "All workers must have the same number of batches. Received: "
                f"{batches}, in the order of the workers (`None`: unknown or "
                "endless). Give all of them as many, or `repeat()` the data on "
                "each and set `steps_per_epoch`."
            )


def num_batches(x: Any, batch_size: int | None) -> int | None:
    """How many batches the data of `fit` fill; `None` if that is not known."""
    if hasattr(x, "cardinality"):  # a data set, or one that is distributed
        size = int(
            x.cardinality() if callable(x.cardinality) else x.cardinality
        )
        return size if size >= 0 else None
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    sizes = [len(a) for a in keras.tree.flatten(x) if hasattr(a, "__len__")]
    return -(-sizes[0] // (batch_size or 32)) if sizes else None


def _gather(
    strategy: tf.distribute.Strategy, numbers: Sequence[int]
) -> np.ndarray[Any, Any]:
    """`[r, k]`: the `k` numbers of each replica's worker."""

    def of_replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_gather(tf.constant([numbers], tf.int64), axis=0)

    gathered = tf.function(lambda: strategy.run(of_replica))()
    return strategy.experimental_local_results(gathered)[0].numpy()


def _differ(of_workers: np.ndarray[Any, Any]) -> bool:
    return bool((of_workers != of_workers[0]).any())
