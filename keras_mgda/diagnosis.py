"""Whether tasks are in conflict, told from their gradients over some batches.

Symbols: `m` tasks, `B` batches, `g_t^i` the gradient of the shared variables of
task `t` in batch `i`, `mu_t` its mean over all batches there could be, and `d`
the direction of the plain sum. A conflict of the means, `<mu_t, mu_s> < 0`, is
a property of the tasks; one of the `g_t^i` alone is noise.

The norm of a mean of noisy gradients is too large, so the cosine between two of
them is too small. Gradients of different batches are independent, and

    M_ts = mean of <g_t^i, g_s^j> over i != j

has the mean `<mu_t, mu_s>` exactly, for `t = s` too. All that is said here of
means is a function of such averages (U-statistics), and all intervals come from
the variance of these, which the same `m B x m B` inner products tell.
"""

import contextlib
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_mgda import weightings
from keras_mgda.column_heads import noted_logits
from keras_mgda.descent.directions import (
    gram_of_parameters,
    gram_of_representation,
)
from keras_mgda.descent.forward import (
    by_task,
    losses_by_task,
    record_forward_pass,
)
from keras_mgda.descent.task_gradients import (
    Rows,
    TableRows,
    TaskGradients,
    check_representation,
    check_tasks_are_trained,
    of_total_loss,
    through_heads,
)
from keras_mgda.descent.verified import TOLERANCE
from keras_mgda.internals import Functional
from keras_mgda.linalg.min_norm import min_norm_point
from keras_mgda.model import MGDAModel

Array = npt.NDArray[np.float64]

Kind = Literal[
    "scale", "starves", "conflict", "noise", "same", "done", "unlabelled",
    "no conflict",
]  # fmt: skip

# Of every interval, and of all findings together.
CONFIDENCE = 0.95

# Fewer batches than this leave the variance of a variance to chance.
MIN_BATCHES = 8

# A cosine of at most this size is none. Of two tasks with gradients of equal
# norm, the sum then still brings either 90 % of what it would without a
# conflict, less than a change of the learning rate does.
NEGLIGIBLE = 0.1

# A task holds the direction from this share of it on: all others together
# decide less than a tenth. Two tasks without a conflict reach it where one
# gradient is three times as long as the other.
HOLDS = 0.9

# A task starves if the plain sum brings it less than this part of what it would
# bring to each of `m` independent tasks of equal norm, whose cosine with the
# sum is `1 / sqrt(m)`. For two tasks that is a ratio of norms of 5.6.
STARVES = 0.25

# From this cosine on the gradients of two tasks are the same for the encoder:
# either is 95 % of what the other asks for.
SAME = 0.95

# What happens in less than one step of forty is not worth a word.
FREQUENT = 0.025

# A task is done if its loss is this part of what its own predictions cost when
# each is given to another example,
DONE_LOSS = 0.01
# with a gradient this much shorter than the longest,
DONE_NORM = 0.1
# or if its gradient is noise: at most this share of it is signal,
DONE_SIGNAL = 0.05
# and another task's share is this many times as large. Without the second, a
# small batch would make all tasks look done.
DONE_CONTRAST = 5.0

# Findings that are printed; of many tasks, many pairs can be in conflict.
_MOST_WORDS = 20

# Bytes for the gradients of all batches. What is more is sketched.
MEMORY = 2**28


class Estimate(NamedTuple):
    """A number from some batches, and where the true one lies.

    Attributes:
        value: the estimate; NaN if the batches do not tell.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


class Finding(NamedTuple):
    """Something that the intervals support.

    Attributes:
        kind: `"scale"`: a task holds the direction of the plain sum.
            `"starves"`: the plain sum brings a task next to nothing.
            `"conflict"`: the mean gradients are opposed. `"noise"`: only those
            of single batches are. `"same"`: two tasks ask the same of the
            encoder. `"done"`: a task has nothing left to learn.
            `"unlabelled"`: no batch held a label. `"no conflict"`: the plain
            sum helps every task.
        tasks: whose it is.
        numbers: what it stands on.
        advice: what can be done.
    """

    kind: Kind
    tasks: tuple[str, ...]
    numbers: dict[str, float]
    advice: str


class TaskReport(NamedTuple):
    """What was found of one task.

    Attributes:
        loss: mean over the batches, before loss weights.
        norm: of the mean gradient of the shared variables, without what noise
            adds to it.
        norm_in_batch: root of the mean squared norm in a batch.
        share: of the direction of the plain sum, `<mu_t, d> / |d|^2`. All
            shares sum to one; that of a task which the sum harms is negative.
        signal: `|mu_t|^2 / E |g_t|^2`: one less than it is the trace of the
            covariance of the gradient of a batch, in the same unit.
        progress: the cosine of `mu_t` and `d`: what a step of the plain sum
            brings this task, in parts of what a step of its own would.
        labelled: share of the examples that are labelled.
    """

    loss: float
    norm: float
    norm_in_batch: float
    share: Estimate
    signal: Estimate
    progress: Estimate
    labelled: float


class StepReport(NamedTuple):
    """How the tasks do in a step, to first order and on the step's own batch.

    Attributes:
        harmful: share of the steps that raise the loss of some task.
        conflicts: mean number of the tasks whose loss a step raises, what
            `verify=True` logs.
    """

    harmful: Estimate
    conflicts: float


class Diagnosis:
    """What `diagnose` found. `print` shows it in words.

    Attributes:
        task_names: of the `m` tasks, in order.
        num_batches: that were looked at.
        sketch_size: numbers by which a gradient was represented; `None` if
            all of it was.
        tasks: `{task: TaskReport}`.
        cosines: `[m, m]`, of the mean gradients; NaN if not to be told.
        intervals: `[2, m, m]`, the ends of their 95 % intervals.
        certain: `[m, m]`, bool, whether a cosine differs from zero, all pairs
            considered at once.
        cosines_in_batches: `[m, m]`, the mean cosine within a batch.
        steps: `{method: StepReport}`.
        stationarity: how far the point is from Pareto stationary: the norm of
            the min-norm point of the mean gradients, in parts of the smallest
            of their norms. 1 for one task, 0 at a Pareto stationary point.
        findings: what follows, and what to do.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        num_batches: int,
        sketch_size: int | None,
        tasks: Mapping[str, TaskReport],
        cosines: Array,
        intervals: Array,
        certain: npt.NDArray[np.bool_],
        cosines_in_batches: Array,
        steps: Mapping[str, StepReport],
        stationarity: Estimate,
        findings: Sequence[Finding],
    ) -> None:
        self.task_names = list(task_names)
        self.num_batches = num_batches
        self.sketch_size = sketch_size
        self.tasks = dict(tasks)
        self.cosines = cosines
        self.intervals = intervals
        self.certain = certain
        self.cosines_in_batches = cosines_in_batches
        self.steps = dict(steps)
        self.stationarity = stationarity
        self.findings = list(findings)

    def __str__(self) -> str:
        width = max(len("task"), *map(len, self.task_names))
        lines = [
            f"{len(self.task_names)} tasks, {self.num_batches} batches, "
            f"{CONFIDENCE:.0%} intervals.",
            "",
            f"{'task':{width}}  {'loss':>9}  {'norm':>9}  "
            f"{'share of sum':>22}  {'signal':>22}  {'labelled':>8}",
        ]
        lines += [
            f"{task:{width}}  {found.loss:9.3g}  {found.norm:9.3g}  "
            f"{_words(found.share):>22}  {_words(found.signal):>22}  "
            f"{found.labelled:8.0%}"
            for task, found in self.tasks.items()
        ]
        lines += ["", "Steps that raise some task's loss:"]
        lines += [
            f"  {method}: {_words(found.harmful)}, "
            f"{found.conflicts:.2g} tasks in a step"
            for method, found in self.steps.items()
        ]
        lines += [
            f"Distance from Pareto stationarity: {_words(self.stationarity)}.",
            "",
            "Findings:",
        ]
        lines += [
            f"- {f.kind}: {', '.join(f.tasks)} "
            f"({', '.join(f'{k} {v:.2g}' for k, v in f.numbers.items())}). "
            f"{f.advice}"
            for f in self.findings[:_MOST_WORDS]
        ] or ["- none that the batches support; look at more `steps`."]
        if len(self.findings) > _MOST_WORDS:
            more = len(self.findings) - _MOST_WORDS
            lines.append(f"- and {more} more, in `findings`.")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it, with null for what is not finite."""
        return json.dumps(
            _finite(
                {
                    "task_names": self.task_names,
                    "num_batches": self.num_batches,
                    "sketch_size": self.sketch_size,
                    "tasks": {t: r._asdict() for t, r in self.tasks.items()},
                    "cosines": self.cosines.tolist(),
                    "intervals": self.intervals.tolist(),
                    "certain": self.certain.tolist(),
                    "cosines_in_batches": self.cosines_in_batches.tolist(),
                    "steps": {s: r._asdict() for s, r in self.steps.items()},
                    "stationarity": self.stationarity,
                    "findings": [f._asdict() for f in self.findings],
                }
            )
        )

    def plot(self) -> Any:
        """One figure: cosines, shares, and signal against noise.

        Cosines that could as well be zero are grey. Needs matplotlib.

        Returns:
            A `matplotlib.figure.Figure`, to show or to save.

        Raises:
            ImportError: if there is no matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "`plot` needs matplotlib: pip install matplotlib. `print` and "
                "`to_json` do without."
            ) from error
        m = len(self.task_names)
        size = max(3.0, 0.3 * m)
        figure = Figure(figsize=(3 * size, size), layout="constrained")
        cosines, shares, signals = figure.subplots(1, 3)
        certain = self.certain | np.eye(m, dtype=bool)
        shown = np.ma.masked_where(~certain, self.cosines)
        cosines.set_facecolor("0.85")
        image = cosines.imshow(shown, cmap="RdBu", vmin=-1, vmax=1)
        figure.colorbar(image, ax=cosines)
        cosines.set_title("cosine of the means (grey: may be 0)", fontsize=9)
        cosines.set_xticks(range(m), self.task_names, rotation=90)
        cosines.set_yticks(range(m), self.task_names)
        reports = list(self.tasks.values())
        for axes, title, found in (
            (shares, "share of the plain sum", [r.share for r in reports]),
            (signals, "signal in a batch's gradient",
             [r.signal for r in reports]),
        ):  # fmt: skip
            values = np.array([f.value for f in found])
            low = np.array([f.low for f in found])
            high = np.array([f.high for f in found])
            known = np.isfinite(values) & np.isfinite(low) & np.isfinite(high)
            places = np.arange(m)
            axes.barh(places, np.where(known, values, 0.0), color="0.6")
            errors = np.maximum([values - low, high - values], 0)[:, known]
            axes.errorbar(
                values[known], places[known], xerr=errors, fmt="k.", ms=3
            )
            axes.set_title(title, fontsize=9)
            axes.set_yticks(places, self.task_names)
            axes.invert_yaxis()
        return figure


def diagnose(
    model: keras.Model,
    data: Any,
    steps: int = 32,
    *,
    batch_size: int = 32,
    loss: Any = None,
    loss_weights: Any = None,
) -> Diagnosis:
    """Tells whether the tasks of a model are in conflict, and what to do.

    Takes the exact gradients of the shared variables for each task in `steps`
    batches, in training mode, and trains nothing: variables, optimizer, moving
    statistics and seed generators are afterwards what they were, also when it
    is interrupted. Gradients beyond 256 MiB are represented by sketches
    (Charikar et al., 2002), whose error enters the intervals of the cosines.

    Args:
        model: an `MGDAModel`, or a functional model with a dict of outputs;
            compiled, or given its losses by `loss`.
        data: `(x, y)` or `(x, y, sample_weight)` of arrays, of which batches
            are drawn at random; or batches: a `tf.data.Dataset`, a
            `PyDataset`, or any iterable, whose first `steps` are taken. These
            have to be shuffled, and may be without end.
        steps: how many batches are looked at, at most; 8 at least.
        batch_size: for arrays: examples in a batch. Noise depends on it: give
            the one that trains.
        loss: `{task: loss}`, for a functional model that is not compiled, or
            to be diagnosed with others.
        loss_weights: as in `compile`, with `loss`. What stands for a missing
            label stays what the model was compiled with.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: if there are less than two tasks, no labels, or less than 8
            batches; if nothing that is shared is trained; if a loss or a
            gradient is not finite; if the model is on several replicas.

    Example:

    >>> import keras, keras_mgda
    >>> from keras_mgda.diagnosis import diagnose
    >>> keras.utils.set_random_seed(0)
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, name="encoder")(inputs)
    >>> model = keras.Model(
    ...     inputs, {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
    ... )
    >>> x = keras.random.normal((512, 4))
    >>> y = {"a": x[:, :1], "b": 1000 * x[:, 1:2]}
    >>> found = diagnose(model, (x, y), loss={"a": "mse", "b": "mse"})
    >>> ("scale", ("b",)) in [(f.kind, f.tasks) for f in found.findings]
    True

    References:
        Charikar et al., 2002. Finding frequent items in data streams.
        Hoeffding, 1948. A class of statistics with asymptotically normal
        distribution.
        Fieller, 1954. Some problems in interval estimation.
    """
    if not isinstance(steps, int) or steps < MIN_BATCHES:
        raise ValueError(
            f"`steps` must be a whole number of at least {MIN_BATCHES}: the "
            "intervals come from the spread over batches. "
            f"Received: {steps!r}."
        )
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "The model must be on one replica. Received: one of "
            f"{model.distribute_strategy.num_replicas_in_sync}. Build it again "
            "outside of the scope of the strategy, and load its weights."
        )
    model, trains_by = _model_of_tasks(model, loss, loss_weights)
    tasks = model.task_names
    if len(tasks) < 2:
        raise ValueError(
            "The model must have at least two tasks. "
            f"Received: {tasks}. A single one is in conflict with none."
        )
    batches = _batches(data, steps, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "`data` must hold batches. Received: none. Give arrays, or an "
            "iterable that has not been used up."
        )
    if not model.built:
        model(first[0])
    look = _Look(model, MEMORY // (4 * len(tasks) * steps), trains_by)
    seen: list[dict[str, Any]] = []
    with _unchanged() as keep:
        for batch in itertools.chain([first], batches):
            keep(look.variables(batch), model.variables)
            seen.append(look.at(batch))
            _check_finite(seen[-1], tasks, len(seen))
    if len(seen) < MIN_BATCHES:
        raise ValueError(
            f"`data` must hold at least {MIN_BATCHES} batches: the intervals "
            f"come from their spread. Received: {len(seen)}. Make the batches "
            "smaller, or repeat shuffled data."
        )
    together = {
        name: np.stack([of_batch[name] for of_batch in seen])
        for name in seen[0]
        if name != "rows"
    }
    products = _products([of_batch["rows"] for of_batch in seen])
    # Those of one batch are known without a sketch.
    i = np.arange(len(seen))
    products[:, :, i, i] = np.moveaxis(together["gram"], 0, -1)
    weights = {"plain sum": np.ones([len(seen), len(tasks)])}
    if "gram_at_z" in together:
        mgda = weightings.get("mgda")
        weights["MGDA-UB"] = np.stack(
            [mgda(gram).numpy() for gram in together["gram_at_z"]]
        )
    if trains_by:
        weights[trains_by] = together["task_weights"]
    return diagnosis_of(
        products,
        tasks,
        losses=together["losses"],
        other_losses=together["other_losses"],
        num_labels=together["num_labels"],
        num_examples=together["num_examples"],
        task_weights=weights,
        sketch_size=look.sketch_size,
    )


# The gradients.


def _model_of_tasks(
    model: keras.Model, loss: Any, loss_weights: Any
) -> tuple[MGDAModel, str]:
    """A compiled `MGDAModel`, and what to call the way in which it trains.

    The second is empty for a model that is trained by the plain sum.
    """
    if loss is None and loss_weights is not None:
        raise ValueError(
            "`loss_weights` must come with `loss`. Received: loss_weights="
            f"{loss_weights!r} alone. Give `loss={{task: ...}}`, too, or "
            "compile the model with these weights."
        )
    if isinstance(model, MGDAModel) and loss is None and model.compiled:
        return model, _name_of_mode(model)
    unlabelled = None
    if isinstance(model, MGDAModel) and model.compiled:
        unlabelled = model._given["unlabelled"]
    if loss is None:
        if not getattr(model, "compiled", False):
            raise ValueError(
                "The model must know its tasks. Received: one that is not "
                "compiled. Compile it, or give `loss={task: ...}`."
            )
        loss = model.loss
        loss_weights = model.get_compile_config().get("loss_weights")
    if isinstance(model, Functional) and isinstance(model.output, Mapping):
        # Not compiled, or `from_model` would warn of what it leaves behind.
        own = MGDAModel(model.input, model.output)
        if not isinstance(model, MGDAModel):
            # Where nothing parts the tasks exact gradients do without.
            with contextlib.suppress(ValueError):
                own = MGDAModel.from_model(own)
    elif isinstance(model, Functional):
        own = MGDAModel.from_model(model)  # says what is wrong with it
    else:
        raise ValueError(
            "The model must be a compiled `MGDAModel`, or functional. "
            f"Received: {type(model).__name__}. Derive it from `MGDAModel`, "
            "or call `compile` before."
        )
    own.compile(
        "sgd",
        loss,
        loss_weights,
        weighting="uniform",
        unlabelled=unlabelled,
    )
    return own, ""


def _name_of_mode(model: MGDAModel) -> str:
    weighting = type(model._descent.weighting).__name__
    if not model._descent.weighting.uses_gram:
        return weighting
    return f"{weighting}, gradients={model._descent.config['gradients']!r}"


def _batches(data: Any, steps: int, batch_size: int) -> Iterator[Any]:
    """`(x, y, sample_weight)`, `steps` of them at most."""
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches
        length = steps if length is None else min(steps, length)
        found: Any = (data[i] for i in range(length))
    elif isinstance(data, tuple) and len(data) in (2, 3):
        found = _drawn(data, steps, batch_size)
    elif isinstance(data, (Mapping, np.ndarray, tf.Tensor, tuple)):
        raise ValueError(
            "`data` must hold labels: `(x, y)`, `(x, y, sample_weight)`, or "
            f"batches of these. Received: {type(data).__name__}."
        )
    else:
        found = itertools.islice(iter(data), steps)
    for batch in found:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise ValueError(
                "`data` must hold labels, as pairs `(x, y)`. Received: a batch "
                "of inputs alone."
            )
        yield tuple(
            None if part is None else keras.tree.map_structure(_tensor, part)
            for part in (x, y, sample_weight)
        )


def _tensor(leaf: Any) -> tf.Tensor | None:
    return None if leaf is None else keras.ops.convert_to_tensor(leaf)


def _drawn(data: Any, steps: int, batch_size: int) -> Iterator[Any]:
    """Batches of arrays, without an example in two of them."""
    arrays = keras.tree.map_structure(
        lambda leaf: None if leaf is None else np.asarray(leaf), data
    )
    sizes = {
        len(leaf) for leaf in keras.tree.flatten(arrays) if leaf is not None
    }
    if len(sizes) != 1:
        raise ValueError(
            "All arrays of `data` must have the same number of examples. "
            f"Received: {sorted(sizes)}."
        )
    (size,) = sizes
    if size // batch_size < MIN_BATCHES:
        raise ValueError(
            f"`data` must hold at least {MIN_BATCHES} batches: the intervals "
            f"come from their spread. Received: {size} examples for batches of "
            f"{batch_size}. Make `batch_size` smaller."
        )
    # Its own generator: the state of all others stays as it is.
    order = np.random.default_rng(0).permutation(size)
    for i in range(min(steps, size // batch_size)):
        chosen = order[i * batch_size : (i + 1) * batch_size]
        yield keras.tree.map_structure(
            lambda leaf, chosen=chosen: None if leaf is None else leaf[chosen],
            arrays,
        )


@contextlib.contextmanager
def _unchanged() -> Iterator[Any]:
    """Puts back the variables it was told of, however this block ends."""
    before: dict[Any, tuple[tf.Variable, tf.Tensor]] = {}

    def keep(*several: Sequence[Any]) -> None:
        for variable in itertools.chain(*several):
            if isinstance(variable, keras.Variable):
                variable = variable.value
            if isinstance(variable, tf.Variable):
                kept = (variable, variable.read_value())
                before.setdefault(variable.ref(), kept)

    try:
        yield keep
    finally:
        for variable, value in before.values():
            variable.assign(value)


class _Look:
    """Looks at one batch: the gradients of all tasks, in training mode.

    Args:
        model: compiled.
        limit: how many numbers there may be for a gradient.
        trains_by: whether the task weights of its own mode are wanted, too.
    """

    def __init__(self, model: MGDAModel, limit: int, trains_by: str) -> None:
        self.sketch_size: int | None = None
        self._model = model
        self._limit = limit
        self._trains_by = trains_by
        self._function = tf.function(self._of_batch, autograph=False)
        self._scale = model.optimizer.scale_loss(tf.ones([]))

    def variables(self, batch: Any) -> Sequence[tf.Variable]:
        """Those that a look at such a batch reads, or writes."""
        function = self._function.get_concrete_function(*batch, self._scale)
        return function.graph.variables

    def at(self, batch: Any) -> dict[str, Any]:
        """What is found, at a loss scale that the gradients fit.

        As in training an overflow halves it; it does not grow again.
        """
        while True:
            found = {
                name: value.numpy()
                for name, value in self._function(*batch, self._scale).items()
            }
            overflow = np.isfinite(found["losses"]).all() and not (
                np.isfinite(np.diag(found["gram"])).all()
            )
            if not overflow or self._scale <= 1:
                return found
            self._scale /= 2

    def _of_batch(
        self, x: Any, y: Any, sample_weight: Any, scale: tf.Tensor
    ) -> Any:
        model = self._model
        with (
            record_forward_pass() as forward,
            noted_logits(forward, model._last_layers),
        ):
            y_pred = model(x, training=True)
            total_loss = model.compute_loss(x, y, y_pred, sample_weight)
        with record_forward_pass() as others:
            rolled = keras.tree.map_structure(
                lambda leaf: tf.roll(leaf, 1, axis=0), y_pred
            )
            model.compute_loss(x, y, rolled, sample_weight)
        forward.complete(model._descent.output_names)
        others.complete(model._descent.output_names)
        variables = model.trainable_variables
        seeds, _ = of_total_loss(forward, variables, total_loss, scale)
        gradients = through_heads(forward, variables, seeds)
        check_tasks_are_trained(gradients)
        gram, rows = gram_of_parameters(gradients)
        if not rows:
            raise ValueError(
                "Some trainable variable must be shared by two tasks, or "
                "nothing can be in conflict. Received: a model without one. "
                "Unfreeze the encoder (`layer.trainable = True`)."
            )
        num_labels, num_examples = _num_labels(model, y, y_pred, sample_weight)
        found = {
            "gram": tf.cast(gram, tf.float64) / tf.cast(scale, tf.float64) ** 2,
            "rows": self._represented(rows) / scale,
            "losses": losses_by_task(forward, tf.float32),
            "other_losses": losses_by_task(others, tf.float32),
            "num_labels": num_labels,
            "num_examples": num_examples,
        }
        at_z = _gram_at_z(gradients)
        if at_z is not None:
            found["gram_at_z"] = at_z
        if self._trains_by:
            direction = model._descent.direction(
                forward, variables, total_loss, loss_scale=scale
            )
            found["task_weights"] = direction.task_weights
        return found

    def _represented(self, rows: Mapping[int, Rows]) -> tf.Tensor:
        """`[m, k]`: the gradients of all tasks, or sketches of them."""
        sizes = {i: math.prod(_shape(of_i)) for i, of_i in rows.items()}
        if sum(sizes.values()) <= self._limit:
            return tf.concat([_flat(_dense(r)) for r in rows.values()], axis=1)
        self.sketch_size = self._limit
        # One after another into the same place, or each takes as much again.
        num_tasks = len(self._model.task_names)
        sketch, offset = tf.zeros([self._limit, num_tasks]), 0
        for i, of_i in rows.items():
            places, signed = _signed(of_i, offset, self._limit)
            sketch = tf.tensor_scatter_nd_add(sketch, places[:, None], signed)
            offset += sizes[i]
        return tf.transpose(sketch)


def _num_labels(
    model: MGDAModel, y: Any, y_pred: Any, sample_weight: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """`[m]`: how many labels each task has, and would have without gaps."""
    tasks = model.task_names
    if model._labels is None:
        return tf.ones([len(tasks)]), tf.ones([len(tasks)])

    found = model._labels.find(y, y_pred, sample_weight)
    counts = model._labels.counts(found, y_pred)
    whole = {
        output: tf.ones_like(counts[output])
        * tf.cast(tf.size(of_output.mask) / tf.size(counts[output]), tf.float32)
        for output, of_output in found.items()
    }
    return (
        by_task(list(counts.values())),
        by_task([whole.get(t, n) for t, n in counts.items()]),
    )


def _gram_at_z(gradients: TaskGradients) -> tf.Tensor | None:
    try:
        check_representation(gradients)
    except ValueError:
        return None  # nothing marks where the tasks part
    return gram_of_representation(gradients)


def _shape(rows: Rows) -> tuple[int, ...]:
    return tuple(rows.shape if isinstance(rows, TableRows) else rows.shape[1:])


def _dense(rows: Rows) -> tf.Tensor:
    return rows.dense() if isinstance(rows, TableRows) else rows


def _flat(rows: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.reshape(rows, [rows.shape[0], -1]), tf.float32)


# A prime, below which the product of two numbers fits int64.
_PRIME = 2**31 - 1


def _signed(rows: Rows, offset: int, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The places of entries in a sketch, `[n]`, and what to add, `[n, m]`.

    Inner products of such sketches have the right mean and the variance
    `(|x|^2 |y|^2 + <x, y>^2) / size` at most (Charikar et al., 2002): signs and
    places are polynomials of degree 3 of an entry's number, any four of which
    are independent. So nothing has to be stored, and of a table the rows that
    were read alone are looked at.
    """
    if isinstance(rows, TableRows):
        width = math.prod(rows.shape[1:])
        numbers = rows.indices[:, None] * width + tf.range(
            width, dtype=tf.int64
        )
        numbers = tf.reshape(numbers, [-1])
        entries = _flat(rows.values)
    else:
        numbers = tf.range(math.prod(rows.shape[1:]), dtype=tf.int64)
        entries = _flat(rows)
    places = _hash(numbers + offset, 0) % size
    signs = 1 - 2 * (_hash(numbers + offset, 1) % 2)
    return places, tf.transpose(entries * tf.cast(signs, tf.float32))


def _hash(numbers: tf.Tensor, seed: int) -> tf.Tensor:
    coefficients = np.random.default_rng(seed).integers(1, _PRIME, 4)
    value = tf.zeros_like(numbers)
    for c in coefficients:
        value = (value * (numbers % _PRIME) + int(c)) % _PRIME
    return value


def _check_finite(
    seen: Mapping[str, Any], tasks: Sequence[str], number: int
) -> None:
    """Raises a `ValueError` if a loss or a gradient is not finite."""
    for what, values in (
        ("loss", seen["losses"]),
        ("gradient", np.diag(seen["gram"])),
    ):
        bad = [t for t, v in zip(tasks, values, strict=True) if not
               np.isfinite(v)]  # fmt: skip
        if bad:
            raise ValueError(
                "Losses and gradients must be finite. Received: in batch "
                f"{number} the {what} of {bad} is not. Look for NaN in the "
                "data and labels (`compile(unlabelled='nan')` takes them for "
                "missing ones), or diagnose before training diverges."
            )


def _products(rows: Sequence[npt.NDArray[np.float32]]) -> Array:
    """`[m, m, B, B]`: `<g_t^i, g_s^j>`."""
    m, size = rows[0].shape
    total = np.zeros([len(rows) * m] * 2)
    for start in range(0, size, 8192):  # a copy of a part at a time
        part = np.concatenate([of_i[:, start : start + 8192] for of_i in rows])
        total += part @ part.T
    by_batch = total.reshape(len(rows), m, len(rows), m)
    return by_batch.transpose(1, 3, 0, 2).copy()


# The statistics.


def diagnosis_of(
    products: Array,
    task_names: Sequence[str],
    *,
    losses: Any = None,
    other_losses: Any = None,
    num_labels: Any = None,
    num_examples: Any = None,
    task_weights: Mapping[str, Any] | None = None,
    sketch_size: int | None = None,
) -> Diagnosis:
    """The diagnosis from inner products alone, without any model.

    Args:
        products: `[m, m, B, B]`, `<g_t^i, g_s^j>` at `[t, s, i, j]`.
        task_names: of the `m` tasks.
        losses: `[B, m]`; unknown by default.
        other_losses: `[B, m]`, the losses if predictions are those for other
            examples; unknown by default.
        num_labels: `[B, m]`, how many labels the tasks have in each batch;
            all by default.
        num_examples: `[B, m]`, how many there could be.
        task_weights: `{method: [B, m]}`, its steps to look at; the plain sum
            by default.
        sketch_size: of the gradients that were multiplied, if sketched.
    """
    products = np.asarray(products, float)
    m, B = products.shape[1:3]
    unknown = np.full([B, m], np.nan)
    losses = unknown if losses is None else np.asarray(losses, float)
    others = unknown if other_losses is None else np.asarray(other_losses)
    examples = np.ones([B, m]) if num_examples is None else num_examples
    labels = examples if num_labels is None else num_labels
    labels, examples = np.asarray(labels, float), np.asarray(examples, float)
    means = _Means(products, sketch_size)
    steps = {
        method: _step_report(products, np.asarray(w, float))
        for method, w in (
            task_weights or {"plain sum": np.ones([B, m])}
        ).items()
    }
    share_of_labels = labels.sum(0) / examples.sum(0)
    # A batch without labels has no loss to count.
    counts = np.maximum(labels.sum(0), 1e-12)
    mean_losses = np.where(labels > 0, losses * labels, 0.0).sum(0) / counts
    q = _student((1 + CONFIDENCE) / 2, B - 1)
    cosines, low, high = means.cosines(q)
    shares, signals = means.shares(q), means.signals(q)
    reports = {
        task: TaskReport(
            loss=float(mean_losses[t]),
            norm=math.sqrt(max(means.inner[t, t], 0.0)),
            norm_in_batch=math.sqrt(means.squared[t]),
            share=_estimate(shares, t),
            signal=_estimate(signals, t),
            progress=_estimate((cosines, low, high), (t, m)),
            labelled=float(share_of_labels[t]),
        )
        for t, task in enumerate(task_names)
    }
    # Sample weights of zero: whatever is predicted, the loss is zero.
    counts_nothing = (
        (losses == 0).all(axis=0)
        & (others == 0).all(axis=0)
        & (means.squared[:m] == 0)
    )
    # All that could be found is at most at this level, together.
    num_statements = 2 * m * (m - 1) + 5 * m
    level = (1 - CONFIDENCE) / num_statements
    together = _student(1 - level, B - 1)
    findings = _findings(
        means,
        list(task_names),
        together,
        labelled=(share_of_labels > 0) & ~counts_nothing,
        losses=losses,
        other_losses=others,
        harmful=_step_report(products, np.ones([B, m])).harmful.value,
    )
    _, certain_low, certain_high = means.cosines(together)
    return Diagnosis(
        task_names,
        B,
        sketch_size,
        reports,
        cosines[:m, :m],
        np.stack([low, high])[:, :m, :m],
        ((certain_low > 0) | (certain_high < 0))[:m, :m],
        means.cosines_in_batches(),
        steps,
        means.stationarity(share_of_labels > 0, q),
        findings,
    )


class _Means:
    """Estimates of what the mean gradients are, `t = m` standing for the sum.

    Args:
        products: `[m, m, B, B]`.
        sketch_size: of the gradients, if they were sketched.

    Attributes:
        inner: `[m + 1, m + 1]`, `<mu_t, mu_s>`.
        squared: `[m + 1]`, `E |g_t|^2`.
        in_batches: `[m, m, B]`, the cosines within each batch; NaN where a
            gradient is zero.
    """

    def __init__(self, products: Array, sketch_size: int | None) -> None:
        m, B = products.shape[1:3]
        self.num_tasks, self.num_batches = m, B
        self._sketch_size = sketch_size
        # The sum is a task like the others.
        with_sum = np.concatenate([products, products.sum(0)[None]], axis=0)
        with_sum = np.concatenate([with_sum, with_sum.sum(1)[:, None]], axis=1)
        self._squares = np.einsum("ttii->ti", with_sum)
        self.squared = self._squares.mean(-1)
        within = np.einsum("tsii->tsi", products)
        norms = np.sqrt(self._squares[:m])
        lengths = norms[:, None] * norms[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.in_batches = np.where(lengths > 0, within / lengths, np.nan)
        self._kernels = (with_sum + with_sum.swapaxes(-1, -2)) / 2
        i = np.arange(B)
        self._kernels[:, :, i, i] = 0.0
        self.inner = self._kernels.sum((-1, -2)) / (B * (B - 1))

    def cosines_in_batches(self) -> Array:
        known = np.isfinite(self.in_batches)
        total = np.where(known, self.in_batches, 0.0).sum(-1)
        counts = known.sum(-1)
        return np.where(counts, total / np.maximum(counts, 1), np.nan)

    def cosines(self, q: float) -> tuple[Array, Array, Array]:
        """`[m + 1, m + 1]`: cosines of the means, and the ends of intervals.

        Nothing is said of a gradient that is not longer than its error.
        """
        n = self.num_tasks + 1
        norms = np.diag(self.inner)
        own = self._kernels[np.arange(n), np.arange(n)]
        _, covariance = _means_and_covariance(own, own)
        known = norms > q * np.sqrt(covariance[:, 0, 0])
        safe = np.where(known, norms, 1.0)
        value, low, high = np.full([3, n, n], np.nan)
        for t in range(n):
            ratio = np.sqrt(safe / safe[t])[:, None, None]
            # The derivative of `|mu_t| |mu_s|`, whose value it has, too.
            lengths = (ratio * own[t] + own / ratio) / 2
            found = _ratio(
                self._kernels[t], lengths, q, self._sketch_error(t, safe)
            )
            both = known & known[t]
            value[t] = np.where(both, np.clip(found[0], -1, 1), np.nan)
            low[t] = np.where(both, np.clip(found[1], -1, 1), -1.0)
            high[t] = np.where(both, np.clip(found[2], -1, 1), 1.0)
        return value, low, high

    def _sketch_error(self, t: int, norms: Array) -> Any:
        """The variance that sketches add to `<mu_t, mu_s>` at its cosine."""
        if self._sketch_size is None:
            return 0.0
        lengths = norms * norms[t]
        cosine2 = np.minimum(self.inner[t] ** 2 / lengths, 1.0)
        return lengths * (1 - cosine2) ** 2 / self._sketch_size

    def shares(self, q: float) -> tuple[Array, Array, Array]:
        """`[m]`: `<mu_t, d> / |d|^2`."""
        m = self.num_tasks
        return _ratio(self._kernels[:m, m], self._kernels[m, m][None], q)

    def shares_of_norms(self, q: float) -> tuple[Array, Array, Array]:
        """`[m]`: `|mu_t|^2 / sum_s |mu_s|^2`."""
        t = np.arange(self.num_tasks)
        own = self._kernels[t, t]
        return _ratio(own, own.sum(0)[None], q)

    def signals(self, q: float) -> tuple[Array, Array, Array]:
        """`[m]`: `|mu_t|^2 / E |g_t|^2`."""
        t = np.arange(self.num_tasks)
        own, squares = self._kernels[t, t], _of_each(self._squares[t])
        value, low, high = _ratio(own, squares, q)
        return np.clip(value, 0, 1), np.clip(low, 0, 1), np.clip(high, 0, 1)

    def contributions(self, q: float) -> Array:
        """`[m, m]`: lower ends of what the means add to a batch's cosine."""
        m = self.num_tasks
        squares = _of_each(self._squares[:m])
        safe = np.where(self.squared[:m] > 0, self.squared[:m], 1.0)
        low = np.empty([m, m])
        for t in range(m):
            ratio = np.sqrt(safe / safe[t])[:, None, None]
            lengths = (ratio * squares[t] + squares / ratio) / 2
            low[t] = _ratio(self._kernels[t, :m], lengths, q)[1]
        return low

    def stationarity(self, active: npt.NDArray[np.bool_], q: float) -> Estimate:
        """Norm of the min-norm point, in parts of the smallest gradient's."""
        B, m = self.num_batches, self.num_tasks
        # Of the gradients as they are, whose Gram matrix is semidefinite; but
        # the norm at these weights is that of the means.
        between = self.inner[:m, :m] * (B - 1) / B
        lengths = np.sqrt(self.squared[:m, None] * self.squared[:m])
        within = np.nan_to_num(self.in_batches.mean(-1)) * lengths / B
        gram = between + (within + within.T) / 2
        w = min_norm_point(gram, active=active).task_weights.numpy()
        norms = np.where(active, np.diag(self.inner)[:m], np.inf)
        smallest = int(np.argmin(norms))
        combined = np.einsum("t,s,tsij->ij", w, w, self._kernels[:m, :m])
        found = _ratio(
            combined[None], self._kernels[smallest, smallest][None], q
        )
        return _estimate(tuple(np.sqrt(np.clip(end, 0, 1)) for end in found), 0)


def _of_each(values: Array) -> Array:
    """`[..., B, B]`: the kernel whose average over `i != j` is the mean."""
    kernels = (values[..., :, None] + values[..., None, :]) / 2
    return kernels * (1 - np.eye(values.shape[-1]))


def _means_and_covariance(x: Array, y: Array) -> tuple[Array, Array]:
    """Averages of two kernels over `i != j`, and the covariance of these.

    With `p = E h(1, 2) h(1, 3)` and `s = E h(1, 2)^2`, less the squared mean,
    the variance of the average is

        2 / (B (B - 1)) * (2 (B - 2) p + s)

    (Hoeffding, 1948). All three have unbiased estimates; that of `p`, which
    noise may make negative, is cut at zero. To draw batches with replacement
    would take the sampling error of the projection for signal, and triple the
    variance where noise prevails.

    Args:
        x: `[n, B, B]`, symmetric, with a zero diagonal.
        y: alike; or `[1, B, B]`, one for all.

    Returns:
        `[n, 2]` and `[n, 2, 2]`.
    """
    B = x.shape[-1]
    pairs = B * (B - 1)
    triples, quadruples = pairs * (B - 2), pairs * (B - 2) * (B - 3)
    of_two = np.stack(np.broadcast_arrays(x, y), axis=-3)
    rows = of_two.sum(-1)
    total = rows.sum(-1)
    flat = of_two.reshape(*of_two.shape[:-2], -1)
    squares = flat @ flat.swapaxes(-1, -2)
    chains = rows @ rows.swapaxes(-1, -2) - squares
    product = total[..., :, None] * total[..., None, :]
    apart = (product - 4 * chains - 2 * squares) / quadruples
    projected = _semidefinite(chains / triples - apart)
    whole = _semidefinite(squares / pairs - apart)
    return total / pairs, 2 / pairs * (2 * (B - 2) * projected + whole)


def _semidefinite(matrices: Array) -> Array:
    values, vectors = np.linalg.eigh(matrices)
    scaled = vectors * np.maximum(values, 0.0)[..., None, :]
    return scaled @ vectors.swapaxes(-1, -2)


def _ratio(
    x: Array, y: Array, q: float, more: Any = 0.0
) -> tuple[Array, Array, Array]:
    """The ratio of two averages, and the interval of Fieller (1954).

    It holds the `r` with `(x - r y)^2 <= q^2 Var(x - r y)`, and is not bounded
    if the denominator may as well be zero.

    Args:
        x: `[n, B, B]`, kernels, as in `_means_and_covariance`.
        y: alike, of the denominators.
        q: half the interval, in standard errors.
        more: added to the variance of `x`.
    """
    means, covariance = _means_and_covariance(x, y)
    mean_x, mean_y = means[..., 0], means[..., 1]
    a = mean_y**2 - q**2 * covariance[..., 1, 1]
    b = mean_x * mean_y - q**2 * covariance[..., 0, 1]
    c = mean_x**2 - q**2 * (covariance[..., 0, 0] + more)
    # Rounding is no signal.
    bounded = (mean_y > 0) & (a > 1e-12 * mean_y**2)
    safe = np.where(bounded, a, 1.0)
    root = np.sqrt(np.maximum(b * b - a * c, 0.0))
    value = np.where(bounded, mean_x / np.where(bounded, mean_y, 1.0), np.nan)
    return (
        value,
        np.where(bounded, np.minimum((b - root) / safe, value), -np.inf),
        np.where(bounded, np.maximum((b + root) / safe, value), np.inf),
    )


def _student(p: float, degrees: int) -> float:
    """A quantile of Student's distribution, by its expansion at the normal.

    Hill, 1970. To 1 % where it is used here; without SciPy.
    """
    z = statistics.NormalDist().inv_cdf(p)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _wilson(count: float, number: int, z: float) -> Estimate:
    """The interval of Wilson (1927) for a share."""
    share = count / number
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = (
        z
        * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
        / (1 + z**2 / number)
    )
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))


def _step_report(products: Array, task_weights: Array) -> StepReport:
    """Along `sum_t w_t g_t^i`, in each batch with its own weights `[B, m]`."""
    gram = np.einsum("tsii->its", products)
    p = np.einsum("its,is->it", gram, task_weights)
    squared = np.maximum(np.einsum("it,it->i", p, task_weights), 0.0)
    lengths = np.sqrt(np.einsum("itt->it", gram) * squared[:, None])
    harmed = p < -TOLERANCE * lengths
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return StepReport(
        _wilson(float(harmed.any(1).sum()), len(harmed), z),
        float(harmed.sum(1).mean()),
    )


# The findings.


def _findings(
    means: _Means,
    names: list[str],
    q: float,
    *,
    labelled: npt.NDArray[np.bool_],
    losses: Array,
    other_losses: Array,
    harmful: float,
) -> list[Finding]:
    """What holds at the ends of intervals of `q` standard errors."""
    m = means.num_tasks
    found: list[Finding] = []

    def add(kind: Kind, tasks: Any, advice: str, **numbers: Any) -> None:
        found.append(
            Finding(
                kind,
                tuple(names[t] for t in tasks),
                {name: float(value) for name, value in numbers.items()},
                advice,
            )
        )

    for t in np.flatnonzero(~labelled).tolist():
        add(
            "unlabelled",
            [t],
            "No batch holds a label of it that counts: it trains nothing. Look "
            "for its labels and sample weights, or give its output the loss "
            "`None`.",
            labelled=0,
        )
    done = _done(means, q, labelled, losses, other_losses)
    signal, _, signal_high = means.signals(q)
    for t in np.flatnonzero(done).tolist():
        add(
            "done",
            [t],
            "Its gradient holds nothing that is left to learn. Leave it, or "
            "give it less weight; if its metrics are poor, look whether its "
            "head is stuck.",
            norm=math.sqrt(means.squared[t]),
            signal=signal[t],
            signal_high=signal_high[t],
        )
    active: list[int] = np.flatnonzero(labelled & ~done).tolist()
    cosines, low, high = means.cosines(q)
    shares, share_low, _ = means.shares(q)
    _, norm_low, _ = means.shares_of_norms(q)
    starves = STARVES / math.sqrt(m)
    in_conflict: set[int] = set()
    for t, s in itertools.combinations(active, 2):
        if high[t, s] < -NEGLIGIBLE:
            in_conflict |= {t, s}
            add(
                "conflict",
                [t, s],
                "Their mean gradients are opposed, and larger batches will not "
                "change it: choose a weighting that looks at gradients "
                "(`weighting='mgda'`), or give them layers of their own.",
                cosine=cosines[t, s],
                low=low[t, s],
                high=high[t, s],
            )
    if len(active) > 1:
        for t in active:
            if high[t, m] < -NEGLIGIBLE and t not in in_conflict:
                add(
                    "conflict",
                    [t],
                    "The plain sum of all tasks raises its loss: choose a "
                    "weighting that looks at gradients (`weighting='mgda'`).",
                    cosine=cosines[t, m],
                    low=low[t, m],
                    high=high[t, m],
                )
            # Of tasks opposed to it, a share of one is soon exceeded.
            if share_low[t] > HOLDS and norm_low[t] > HOLDS:
                add(
                    "scale",
                    [t],
                    "It decides where the plain sum goes, by the length of "
                    "its gradient. Lower its loss weight, or choose a "
                    "weighting that knows no scale, such as "
                    "`MGDA(normalization='l2')`.",
                    share=shares[t],
                    low=share_low[t],
                )
            if -NEGLIGIBLE < high[t, m] < starves and t not in in_conflict:
                add(
                    "starves",
                    [t],
                    "A step of the plain sum brings it next to nothing. Raise "
                    "its loss weight, or choose a weighting that looks at "
                    "gradients (`weighting='mgda'`).",
                    progress=cosines[t, m],
                    high=high[t, m],
                    share=shares[t],
                )
    contributions = means.contributions(q)
    noisy: dict[tuple[int, int], float] = {}
    for t, s in itertools.combinations(active, 2):
        of_batches = means.in_batches[t, s]
        of_batches = of_batches[np.isfinite(of_batches)]
        if len(of_batches) < MIN_BATCHES:
            continue
        mean, spread = of_batches.mean(), of_batches.std(ddof=1)
        error = spread / math.sqrt(len(of_batches))
        if max(low[t, s], mean - q * error) > SAME:
            add(
                "same",
                [t, s],
                "They ask the same of the encoder: one of them may do, or one "
                "head for both; together they weigh twice.",
                cosine=cosines[t, s],
                low=low[t, s],
                cosine_in_batches=mean,
            )
        # Where the most adverse batches are. To count them would take more.
        tail = statistics.NormalDist().inv_cdf(FREQUENT)
        adverse = mean + tail * spread
        error *= math.sqrt(1 + tail**2 / 2)
        if (
            adverse + q * error < -NEGLIGIBLE
            and contributions[t, s] > -NEGLIGIBLE
            and high[t, s] >= -NEGLIGIBLE
        ):
            noisy[t, s] = float((of_batches < -NEGLIGIBLE).mean())
    if noisy:
        add(
            "noise",
            sorted({t for pair in noisy for t in pair}),
            "Single batches are in conflict, but not by what the tasks have in "
            "common over all of them. A larger batch will help, another "
            "method will not.",
            pairs=len(noisy),
            batches_in_conflict=np.mean(list(noisy.values())),
            signal=np.mean(signal[active]),
        )
    kinds = {finding.kind for finding in found}
    if (
        len(active) > 1
        and not kinds & {"conflict", "noise", "scale", "starves"}
        and (low[active, m] > 0).all()
        and harmful <= FREQUENT
    ):
        add(
            "no conflict",
            active,
            "The plain sum helps every task: keep it (`weighting='uniform'`).",
            least_progress=cosines[active, m].min(),
            low=low[active, m].min(),
            harmful=harmful,
        )
    return found


def _done(
    means: _Means,
    q: float,
    labelled: npt.NDArray[np.bool_],
    losses: Array,
    other_losses: Array,
) -> npt.NDArray[np.bool_]:
    """Which tasks have nothing left to learn."""
    m = means.num_tasks
    squared = np.where(labelled, means.squared[:m], 0.0)
    nothing = squared == 0
    _, _, ratio = _ratio(
        _of_each(np.nan_to_num(losses.T)),
        _of_each(np.nan_to_num(other_losses.T)),
        q,
    )
    # A loss that goes below zero does not end there.
    ends_at_zero = ~((losses < 0) | (other_losses < 0)).any(axis=0)
    solved = ends_at_zero & (ratio < DONE_LOSS)
    solved &= squared <= DONE_NORM**2 * squared.max()
    _, low, high = means.signals(q)
    contrast = low.max(initial=0.0, where=labelled)
    noise = (high < DONE_SIGNAL) & (DONE_CONTRAST * high < contrast)
    return labelled & (nothing | solved | noise)


def _estimate(found: Any, index: Any) -> Estimate:
    return Estimate(*(float(part[index]) for part in found))


def _words(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "not to be told"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _finite(structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return {name: _finite(value) for name, value in structure.items()}
    if isinstance(structure, Estimate):
        return _finite(structure._asdict())
    if isinstance(structure, (list, tuple)):
        return [_finite(value) for value in structure]
    if isinstance(structure, float) and not math.isfinite(structure):
        return None
    return structure
