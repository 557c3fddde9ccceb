"""The data sets of several tasks, as one that a model with all trains on."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

Sampling = Literal["proportional", "uniform", "annealed", "once"]
_SAMPLINGS = ("proportional", "uniform", "annealed", "once")


def join_tasks(
    datasets: Mapping[str, tf.data.Dataset],
    batch_size: int,
    *,
    sampling: Sampling = "proportional",
    epochs: int = 1,
    seed: int | None = None,
    pad: float | str | Mapping[str, float | str] | None = None,
    bucket_boundaries: Sequence[int] = (),
) -> tf.data.Dataset:
    """Fills each batch with examples from the data sets of several tasks.

    The data set `t` of `N_t` examples gives each example with probability

        p_t ~ N_t        ("proportional")
        p_t ~ 1          ("uniform")
        p_t ~ N_t^a      ("annealed"; `a` falls from 1 in the first epoch to
                          0.2 in the last),

    and starts over when it is through. An epoch has as many batches as all data
    sets together fill. `"once"`, for evaluation, goes through one data set
    after the other, once and in order; its last batch may be smaller.

    Every example comes with labels for all tasks, zeros where it has none, and
    sample weights that tell which are its own: compile with
    `unlabelled={task: None, ...}`, so that the loss of a task is the mean over
    its own examples.

    Where the first axis of an input or a label has no fixed size, it is a
    sequence. All sequences of a batch are padded to one length: the longest
    among them, or the least boundary of `bucket_boundaries` that is no less. A
    label that is a sequence is taken as one label for each position, and its
    sample weights as one for each, zero where it is padded.

    Args:
        datasets: `{task: data set}`, unbatched, of `(x, y)` or
            `(x, y, sample_weight)`, and of known size. `x` is alike in all, or
            a dict of named inputs; those that a data set lacks are filled with
            zeros, or sequences with padding. `y` may be a dict
            `{task: label}` for tasks that share these examples, and
            `sample_weight` a dict, too; the data set's own name is no task
            then. Several data sets may have labels for one task.
        batch_size: the number of examples in a batch.
        sampling: how the data sets share the batches.
        epochs: how many epochs the data set shall hold, one after another. Only
            `"annealed"` differs between them.
        seed: of the order and of the sampling. With it all epochs are the
            same in each run. (So that they are, a `map` of a data set runs in
            parallel only where its `num_parallel_calls` says so.)
        pad: what sequences among the inputs are padded with: one value for
            all, or a dict by the names of inputs. `None` is zero, or the empty
            string.
        bucket_boundaries: lengths, ascending. The examples of a batch are then
            alike in length: no boundary lies between them (the longest
            sequence among the inputs of each counts). Fewer tokens are padded,
            and batches have few shapes.

    Returns:
        A data set of `epochs` times `sum_t N_t // batch_size` batches
        `(x, {task: y}, {task: sample_weight})`. To `fit` with several `epochs`
        pass `steps_per_epoch=len(joined) // epochs`.

    Raises:
        ValueError: if the size of a data set is not known, or its elements are
            neither pairs nor triples; if an input or a label has two dtypes,
            numbers of axes or sizes, is ragged or sparse, or has an axis of
            unknown size where none can be; if a batch is larger than all data
            sets; for an unknown sampling, a number of epochs below 1, a `pad`
            without its input, or boundaries that do not ascend.

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
    once = sampling == "once"
    if once and epochs > 1:
        raise ValueError(
            "`sampling='once'` must have one epoch. Received: "
            f"epochs={epochs}. Call `repeat` on what is returned."
        )
    if batch_size < 1 or (not once and batch_size > sum(sizes)):
        raise ValueError(
            "`batch_size` must be at least 1, and no more than all data sets "
            f"hold. Received: {batch_size} for {sum(sizes)} examples."
        )
    form = _form({n: d.element_spec for n, d in datasets.items()})
    padding = _padding(form.inputs, pad)
    boundaries = list(bucket_boundaries)
    _check_boundaries(boundaries, form.inputs)
    complete = {n: d.map(_completed(n, form)) for n, d in datasets.items()}
    if once:
        examples, *others = complete.values()
        for other in others:
            examples = examples.concatenate(other)
    else:
        steps = sum(sizes) // batch_size
        examples = tf.data.Dataset.sample_from_datasets(
            [
                of_task.shuffle(min(size, 10_000), seed=seed).repeat()
                for size, of_task in zip(sizes, complete.values(), strict=True)
            ],
            weights=_probabilities(sizes, sampling, epochs, steps * batch_size),
            seed=seed,
        )
    joined = _batched(examples, batch_size, boundaries, form, not once)
    joined = joined.map(_padded(form, padding, boundaries))
    if not once:
        size = tf.data.experimental.assert_cardinality(steps * epochs)
        joined = joined.take(steps * epochs).apply(size)
    # TensorFlow's rewrites read ahead of what `take` lets through, and how far
    # they came would decide on the order of the next epoch.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return joined.with_options(options).prefetch(tf.data.AUTOTUNE)


def _sizes(datasets: Mapping[str, tf.data.Dataset]) -> list[int]:
    sizes = []
    for task, dataset in datasets.items():
        size = int(dataset.cardinality())
        spec = dataset.element_spec
        if size < 1 or not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise ValueError(
                "Each data set must hold pairs `(x, y)`, or triples "
                "`(x, y, sample_weight)`, and know how many. "
                f"Received: {spec} with cardinality {size} for task '{task}'. "
                "Leave out `repeat`, and set a size that got lost with "
                "`tf.data.experimental.assert_cardinality`."
            )
        sizes.append(size)
    return sizes


def _probabilities(
    sizes: Sequence[int], sampling: Sampling, epochs: int, examples: int
) -> tf.data.Dataset:
    """The `p_t` of every example, in order; those of the last epoch go on.

    (Batches by length leave some examples behind, so that more are drawn.)
    """
    weights = None
    for epoch in range(epochs):
        power = {
            "proportional": 1.0,
            "uniform": 0.0,
            "annealed": 1.0 - 0.8 * epoch / max(epochs - 1, 1),
        }[sampling]
        p = tf.constant([size**power for size in sizes], tf.float64)
        of_epoch = tf.data.Dataset.from_tensors(p / tf.reduce_sum(p))
        of_epoch = of_epoch.repeat(examples if epoch < epochs - 1 else None)
        weights = of_epoch if weights is None else weights.concatenate(of_epoch)
    return weights


class _Form(NamedTuple):
    """What every example has, whichever data set it comes from.

    Attributes:
        inputs: the specs of all inputs; `{name: spec}` if they have names.
        labels: `{task: spec}`.
        weights: `{task: spec}`.
        named: whether the inputs have names.
    """

    inputs: Any
    labels: dict[str, tf.TensorSpec]
    weights: dict[str, tf.TensorSpec]
    named: bool


def _form(specs: Mapping[str, Any]) -> _Form:
    """The common form of examples with these specs."""
    inputs = {name: spec[0] for name, spec in specs.items()}
    named = all(isinstance(x, Mapping) for x in inputs.values())
    labels: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for name, (_, y, *sample_weight) in specs.items():
        of_tasks = _by_task(name, y)
        for task, label in of_tasks.items():
            where = f"the labels of task '{task}'"
            labels[task] = _merged(labels.get(task), label, where)
        given = _weights_by_task(of_tasks, *sample_weight)
        if unknown := set(given) - set(of_tasks):
            raise ValueError(
                "Sample weights must be of tasks that have labels. "
                f"Received: {sorted(unknown)} in the data set '{name}' with "
                f"labels for {list(of_tasks)}. Leave them out."
            )
        for task, weight in given.items():
            where = f"the sample weights of task '{task}'"
            spec = tf.TensorSpec(weight.shape, tf.float32)
            weights[task] = _merged(weights.get(task), spec, where)
    for task, label in labels.items():
        if None in label.shape[1:]:
            raise ValueError(
                "A label must have a known size, but for its first axis, which "
                f"may be a sequence. Received: {label.shape} for task "
                f"'{task}'. Pad the other axes, or set their size with "
                "`tf.ensure_shape`."
            )
        if _is_sequence(label) and not weights.get(task, label).shape.rank:
            del weights[task]  # one for all positions
        default = [None] if _is_sequence(label) else []
        weights.setdefault(task, tf.TensorSpec(default, tf.float32))
    weights = {task: weights[task] for task in labels}
    return _Form(_all_inputs(inputs, named), labels, weights, named)


def _by_task(name: str, value: Any) -> Mapping[str, Any]:
    """What a data set has for each task; all of it, if it is for one."""
    return value if isinstance(value, Mapping) else {name: value}


def _weights_by_task(tasks: Iterable[str], *sample_weight: Any) -> Any:
    """Those of each task; one that is no dict is that of all of them."""
    if sample_weight and not isinstance(sample_weight[0], Mapping):
        return dict.fromkeys(tasks, sample_weight[0])
    return dict(*sample_weight)


def _all_inputs(specs: Mapping[str, Any], named: bool) -> Any:
    """The inputs of all data sets together."""
    if named:
        found: dict[str, Any] = {}
        for of_dataset in specs.values():
            for name, spec in of_dataset.items():
                where = f"the input '{name}'"
                found[name] = keras.tree.map_structure(
                    lambda old, new, where=where: _merged(old, new, where),
                    found.get(name, spec),
                    spec,
                )
        return found
    first, *others = specs.values()
    found = first
    for other in others:
        try:
            keras.tree.assert_same_structure(found, other)
            found = keras.tree.map_structure(
                lambda old, new: _merged(old, new, "the inputs"), found, other
            )
        except ValueError as error:
            raise ValueError(
                "The inputs must be alike in all data sets, or dicts of named "
                f"inputs. Received: {list(specs.values())}. Map each `x` to "
                "`{name: x}`."
            ) from error
    return keras.tree.map_structure(
        lambda spec: _merged(None, spec, "the inputs"), found
    )


def _merged(
    known: tf.TensorSpec | None, spec: Any, where: str
) -> tf.TensorSpec:
    """The spec of what comes from two data sets."""
    if not isinstance(spec, tf.TensorSpec):
        raise ValueError(
            f"Data sets must hold dense tensors. Received: {spec} for {where}. "
            "Map it with `to_tensor()` or `tf.sparse.to_dense`; one ragged "
            "element is a dense sequence then, and is padded with the others."
        )
    if spec.shape.rank is None:
        raise ValueError(
            "The number of axes of an input or a label must be known. "
            f"Received: {spec} for {where}. Set it with `tf.ensure_shape`, "
            "with `None` for a sequence."
        )
    known = spec if known is None else known
    pairs = list(zip(known.shape, spec.shape, strict=False))
    if (
        known.dtype != spec.dtype
        or known.shape.rank != spec.shape.rank
        or any(a != b and None not in (a, b) for a, b in pairs)
    ):
        raise ValueError(
            "One name must have one dtype, one number of axes and one size in "
            f"all data sets. Received: {known} and {spec} for {where}. Convert "
            "one with `tf.cast` or `tf.reshape`, give it another name, or, if "
            "it is a sequence, set `None` as its size with `tf.ensure_shape` "
            "in a data set that is not batched."
        )
    shape = [a if a == b else None for a, b in pairs]
    return tf.TensorSpec(shape, spec.dtype)


def _padding(inputs: Any, pad: Any) -> Any:
    """What each input is padded with, in the structure of the inputs."""
    by_name = pad if isinstance(pad, Mapping) else None
    names = list(inputs) if isinstance(inputs, Mapping) else []
    if by_name is not None and (unknown := set(by_name) - set(names)):
        raise ValueError(
            "`pad` must name inputs. Received: "
            f"{sorted(unknown)} for the inputs {names}. Name the inputs in the "
            "data sets, as `{name: x}`, or give one value for all."
        )

    def value(spec: tf.TensorSpec, given: Any) -> tf.Tensor:
        if given is None:
            return tf.zeros([], spec.dtype)
        try:
            return tf.constant(given, spec.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                "`pad` must be a value of the input's dtype. Received: "
                f"{given!r} for {spec}. Give each input its own, as "
                "`{name: value}`."
            ) from error

    if by_name is None:
        # A number pads no strings, nor a string numbers.
        return keras.tree.map_structure(
            lambda s: value(s, pad if _is_sequence(s) else None), inputs
        )
    return {
        name: keras.tree.map_structure(
            lambda s, name=name: value(s, by_name.get(name)), spec
        )
        for name, spec in inputs.items()
    }


def _check_boundaries(boundaries: list[int], inputs: Any) -> None:
    if not boundaries:
        return
    ascend = all(a < b for a, b in itertools.pairwise([0, *boundaries]))
    if not ascend or not any(map(_is_sequence, keras.tree.flatten(inputs))):
        raise ValueError(
            "`bucket_boundaries` must be positive, ascend, and some input must "
            f"be a sequence, of the shape [None, ...]. Received: {boundaries} "
            f"for the inputs {inputs}. Leave the boundaries out, or set the "
            "first axis to `None` with `tf.ensure_shape`."
        )


def _is_sequence(spec: tf.TensorSpec) -> bool:
    return bool(spec.shape.rank) and spec.shape[0] is None


def _completed(name: str, form: _Form) -> Any:
    """Fills in the inputs and the labels that the examples of one lack."""

    def complete(x: Any, y: Any, *sample_weight: Any) -> tuple[Any, Any, Any]:
        if form.named:
            x = {
                n: x[n] if n in x else _empty(s) for n, s in form.inputs.items()
            }
        own = _by_task(name, y)
        given = _weights_by_task(own, *sample_weight)
        ys = {
            task: own[task] if task in own else _empty(spec)
            for task, spec in form.labels.items()
        }
        weights = {
            task: _weight(ys[task], given.get(task, 1.0), spec)
            if task in own
            else _empty(spec)
            for task, spec in form.weights.items()
        }
        return x, ys, weights

    return complete


def _empty(spec: Any) -> Any:
    """Zeros; no entries where the size is not known."""
    return keras.tree.map_structure(
        lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), spec
    )


def _weight(label: tf.Tensor, given: Any, spec: tf.TensorSpec) -> tf.Tensor:
    """The sample weight of a label, or those of its positions."""
    given = tf.cast(given, tf.float32)
    if given.shape.rank == spec.shape.rank:
        return given
    return given * tf.ones(tf.shape(label)[: spec.shape.rank])


def _batched(
    examples: tf.data.Dataset,
    batch_size: int,
    boundaries: list[int],
    form: _Form,
    drop_remainder: bool,
) -> tf.data.Dataset:
    """Batches, in which what differs in size is ragged."""
    if not boundaries:
        return examples.ragged_batch(batch_size, drop_remainder)

    def bucket(x: Any, *_: Any) -> tf.Tensor:
        lengths = [
            tf.shape(value)[0]
            for value, spec in zip(
                keras.tree.flatten(x),
                keras.tree.flatten(form.inputs),
                strict=True,
            )
            if _is_sequence(spec)
        ]
        longest = tf.reduce_max(tf.stack(lengths))
        return tf.reduce_sum(tf.cast(longest > boundaries, tf.int64))

    return examples.group_by_window(
        bucket,
        lambda _, window: window.ragged_batch(batch_size, drop_remainder),
        window_size=batch_size,
    )


def _padded(form: _Form, padding: Any, boundaries: list[int]) -> Any:
    """From ragged batches to dense ones, all sequences of one length."""

    def pad(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        batch = x, y, sample_weight
        specs = form.inputs, form.labels, form.weights
        values = (
            padding,
            *(
                {n: tf.zeros([], s.dtype) for n, s in f.items()}
                for f in specs[1:]
            ),
        )
        leaves, flat_specs, flat_values = (
            keras.tree.flatten(part) for part in (batch, specs, values)
        )
        lengths = [
            tf.reduce_max(leaf.row_lengths())
            for leaf, spec in zip(leaves, flat_specs, strict=True)
            if _is_sequence(spec) and isinstance(leaf, tf.RaggedTensor)
        ]
        if not lengths:
            return batch
        # An encoder has to read something, if all sequences are empty.
        longest = tf.maximum(tf.reduce_max(tf.stack(lengths)), 1)
        length = longest
        for boundary in reversed(boundaries):
            size = tf.constant(boundary, length.dtype)
            length = tf.where(longest <= size, size, length)
        dense = [
            _dense(leaf, spec, value, length)
            for leaf, spec, value in zip(
                leaves, flat_specs, flat_values, strict=True
            )
        ]
        return keras.tree.pack_sequence_as(batch, dense)

    return pad


def _dense(
    leaf: Any, spec: tf.TensorSpec, value: tf.Tensor, length: tf.Tensor
) -> tf.Tensor:
    if not isinstance(leaf, tf.RaggedTensor):
        return leaf
    shape: list[Any] = [-1 if n is None else n for n in spec.shape]
    if _is_sequence(spec):
        shape[0] = length
    shape = [tf.cast(n, tf.int64) for n in [-1, *shape]]
    dense = leaf.to_tensor(value, shape=tf.stack(shape))
    return tf.ensure_shape(dense, [leaf.shape[0], *spec.shape])
