"""One data set for each task, as one that a model with all tasks trains on."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

Sampling = Literal["proportional", "uniform", "annealed"]
_SAMPLINGS = ("proportional", "uniform", "annealed")


def join_tasks(
    datasets: Mapping[str, tf.data.Dataset],
    batch_size: int,
    *,
    sampling: Sampling = "proportional",
    epochs: int = 1,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Fills each batch with examples from the data sets of several tasks.

    Task `t` of `N_t` examples gives each example of a batch with probability

        p_t ~ N_t        ("proportional")
        p_t ~ 1          ("uniform")
        p_t ~ N_t^a      ("annealed"; `a` falls from 1 in the first epoch to
                          0.2 in the last),

    and starts over when it is through. An epoch has as many batches as all data
    sets together fill. Every example comes with labels for all tasks, zeros
    where it has none, and sample weights that tell which are its own: compile
    with `unlabelled={task: None, ...}`, so that the loss of a task is the mean
    over its own examples.

    Args:
        datasets: `{task: data set}`, unbatched, of pairs `(x, y)`, and of known
            size. `x` is alike in all, or a dict of named inputs; those that a
            task lacks are filled with zeros.
        batch_size: the number of examples in a batch.
        sampling: how the tasks share the batches.
        epochs: how many epochs the data set shall hold, one after another. Only
            `"annealed"` differs between them.
        seed: of the order and of the sampling.

    Returns:
        A data set of `epochs` times `sum_t N_t // batch_size` batches
        `(x, {task: y}, {task: sample_weight})`. To `fit` with several `epochs`
        pass `steps_per_epoch=len(joined) // epochs`.

    Raises:
        ValueError: if the size of a data set is not known, its elements are no
            pairs, a batch is larger than all of them, or for an unknown
            sampling or a number of epochs below 1.

    Example:

    >>> import tensorflow as tf
    >>> from keras_mgda import datasets
    >>> x = tf.ones((6, 3))
    >>> few = tf.data.Dataset.from_tensor_slices((x[:2], [1.0, 2.0]))
    >>> many = tf.data.Dataset.from_tensor_slices((x, [0, 1, 2, 0, 1, 2]))
    >>> joined = datasets.join_tasks({"a": few, "b": many}, batch_size=4)
    >>> x, y, sample_weight = next(iter(joined))
    >>> len(joined), x.shape.as_list(), sorted(y), sorted(sample_weight)
    (2, [4, 3], ['a', 'b'], ['a', 'b'])

    References:
        Stickland & Murray, 2019, section 4.2, for annealed sampling.
        https://arxiv.org/abs/1902.02671
    """
    sizes = _sizes(datasets)
    if sampling not in _SAMPLINGS or epochs < 1:
        raise ValueError(
            f"`sampling` must be one of {_SAMPLINGS}, and `epochs` at least 1. "
            f"Received: sampling={sampling!r}, epochs={epochs}."
        )
    if not 1 <= batch_size <= sum(sizes):
        raise ValueError(
            "`batch_size` must be at least 1, and no more than all data sets "
            f"hold. Received: {batch_size} for {sum(sizes)} examples."
        )
    steps = sum(sizes) // batch_size
    specs = [dataset.element_spec for dataset in datasets.values()]
    labels = dict(zip(datasets, [y for _, y in specs], strict=True))
    inputs = _all_inputs([x for x, _ in specs])
    examples = [
        dataset.shuffle(min(size, 10_000), seed=seed)
        .map(_with_all_tasks(task, inputs, labels))
        .repeat()
        for size, (task, dataset) in zip(sizes, datasets.items(), strict=True)
    ]
    joined = tf.data.Dataset.sample_from_datasets(
        examples,
        weights=_probabilities(sizes, sampling, epochs, steps * batch_size),
        seed=seed,
    ).batch(batch_size, drop_remainder=True)
    size = tf.data.experimental.assert_cardinality(steps * epochs)
    return joined.take(steps * epochs).apply(size).prefetch(tf.data.AUTOTUNE)


def _sizes(datasets: Mapping[str, tf.data.Dataset]) -> list[int]:
    sizes = []
    for task, dataset in datasets.items():
        size = int(dataset.cardinality())
        spec = dataset.element_spec
        if size < 1 or not isinstance(spec, tuple) or len(spec) != 2:
            raise ValueError(
                "Each data set must hold pairs `(x, y)` and know how many. "
                f"Received: {spec} with cardinality {size} for task '{task}'. "
                "Leave out `repeat`, and set a size that got lost with "
                "`tf.data.experimental.assert_cardinality`."
            )
        sizes.append(size)
    return sizes


def _probabilities(
    sizes: Sequence[int], sampling: Sampling, epochs: int, examples: int
) -> tf.data.Dataset:
    """The `p_t` of every example, in order."""
    weights = None
    for epoch in range(epochs):
        power = {
            "proportional": 1.0,
            "uniform": 0.0,
            "annealed": 1.0 - 0.8 * epoch / max(epochs - 1, 1),
        }[sampling]
        p = tf.constant([size**power for size in sizes], tf.float64)
        of_epoch = tf.data.Dataset.from_tensors(p / tf.reduce_sum(p))
        of_epoch = of_epoch.repeat(examples)
        weights = of_epoch if weights is None else weights.concatenate(of_epoch)
    return weights


def _all_inputs(specs: Sequence[Any]) -> Any:
    """The inputs of all tasks together."""
    if all(isinstance(spec, Mapping) for spec in specs):
        return {name: x for spec in specs for name, x in spec.items()}
    if any(spec != specs[0] for spec in specs):
        raise ValueError(
            "The inputs must be alike in all data sets, or dicts of named "
            f"inputs. Received: {list(specs)}. Map each `x` to `{{name: x}}`."
        )
    return specs[0]


def _with_all_tasks(task: str, inputs: Any, labels: Mapping[str, Any]) -> Any:
    """Fills in the inputs and the labels that the examples of a task lack."""

    def fill(x: Any, y: Any) -> tuple[Any, Any, Any]:
        if isinstance(inputs, Mapping):
            x = {n: x[n] if n in x else _zeros(s) for n, s in inputs.items()}
        ys = {t: y if t == task else _zeros(s) for t, s in labels.items()}
        return x, ys, {t: float(t == task) for t in labels}

    return fill


def _zeros(spec: Any) -> Any:
    return keras.tree.map_structure(lambda s: tf.zeros(s.shape, s.dtype), spec)
