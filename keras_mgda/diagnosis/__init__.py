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

`batches` are cut from the data, `batch_gradients` are taken in each, as
`sketches` if they are long. Their products make the `means` and the `steps`;
`estimates` say how far these can be relied on, `findings` what follows, and
`report` tells it.
"""

import contextlib
import itertools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_mgda import weightings
from keras_mgda.diagnosis.batch_gradients import (
    BatchGradients,
    Gatherer,
    check_finite,
    products_of,
    unchanged,
)
from keras_mgda.diagnosis.batches import batches_of
from keras_mgda.diagnosis.estimates import MIN_BATCHES, Estimate
from keras_mgda.diagnosis.findings import Finding
from keras_mgda.diagnosis.report import Diagnosis, TaskReport, diagnosis_of
from keras_mgda.diagnosis.steps import StepReport
from keras_mgda.internals import Functional
from keras_mgda.model import MGDAModel

__all__ = [
    "Diagnosis",
    "Estimate",
    "Finding",
    "StepReport",
    "TaskReport",
    "diagnose",
    "diagnosis_of",
]

# Bytes for the gradients of all batches. What is more is sketched.
MEMORY = 2**28


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
    batches = batches_of(data, steps, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "`data` must hold batches. Received: none. Give arrays, or an "
            "iterable that has not been used up."
        )
    if not model.built:
        model(first[0])
    limit = MEMORY // (4 * len(tasks) * steps)
    gatherer = Gatherer(model, limit, weighs=bool(trains_by))
    seen: list[BatchGradients] = []
    with unchanged() as keep:
        for batch in itertools.chain([first], batches):
            keep(gatherer.variables(batch), model.variables)
            seen.append(gatherer.at(batch))
            check_finite(seen[-1], tasks, len(seen))
    if len(seen) < MIN_BATCHES:
        raise ValueError(
            f"`data` must hold at least {MIN_BATCHES} batches: the intervals "
            f"come from their spread. Received: {len(seen)}. Make the batches "
            "smaller, or repeat shuffled data."
        )
    weights = {"plain sum": np.ones([len(seen), len(tasks)])}
    if seen[0].gram_at_z is not None:
        mgda = weightings.get("mgda")
        weights["MGDA-UB"] = np.stack([mgda(s.gram_at_z) for s in seen])
    if trains_by:
        weights[trains_by] = np.stack([s.task_weights for s in seen])
    return diagnosis_of(
        products_of(seen),
        tasks,
        losses=np.stack([s.losses for s in seen]),
        other_losses=np.stack([s.other_losses for s in seen]),
        num_labels=np.stack([s.num_labels for s in seen]),
        num_examples=np.stack([s.num_examples for s in seen]),
        task_weights=weights,
        sketch_size=gatherer.sketch_size,
    )


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
