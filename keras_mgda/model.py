"""The Keras model that trains several tasks by multi-objective optimization."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.descent.descent import Descent
from keras_mgda.descent.forward import record
from keras_mgda.descent.step import Gradients
from keras_mgda.distribution.replicas import (
    check_replica,
    share_overflow,
    share_statistics,
)
from keras_mgda.functional import (
    Functional,
    MarkedFunctional,
    is_functional,
    make_functional,
    mark,
)
from keras_mgda.training import tasks
from keras_mgda.training.partly_labelled import PartlyLabelledModel


class MGDAModel(PartlyLabelledModel):
    """A `keras.Model` whose encoder moves in a direction for all of its tasks.

    Of each task `t` with loss `L_t` and head variables `theta_t`, and of the
    variables `theta` that several tasks share, one training step updates

        theta_t  along  dL_t/dtheta_t,
        theta    along  sum_t w_t dL_t/dtheta,

    where the weighting chooses `w` from the Gram matrix of the task gradients.
    The rest is Keras: `fit`, `evaluate`, `predict`, `save`, callbacks, metrics.

    Made as `keras.Model` is, with a dict of outputs, one for each task:
    `MGDAModel(inputs, {task: tensor})`, or by a subclass with its own `call`.
    A `SharedRepresentation` has to mark where the tasks part; `from_model`
    places it by itself.

    Example:

    >>> import keras, keras_mgda
    >>> inputs = keras.Input((4,))
    >>> z = keras.layers.Dense(3, activation="relu")(inputs)
    >>> z = keras_mgda.SharedRepresentation()(z)
    >>> model = keras_mgda.MGDAModel(
    ...     inputs, {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
    ... )
    >>> model.compile("sgd", loss={"a": "mse", "b": "mae"}, weighting="mgda")
    >>> x, y = keras.ops.ones((8, 4)), keras.ops.ones((8, 1))
    >>> history = model.fit(x, {"a": y, "b": y}, verbose=0)
    >>> round(sum(model.task_weights.values()), 6)
    1.0

    References:
        Sener & Koltun, 2018, Algorithm 2. https://arxiv.org/abs/1810.04650
    """

    _evaluating = False

    def __new__(cls, *args: Any, **kwargs: Any) -> "MGDAModel":
        if cls is MGDAModel and is_functional(args, kwargs):
            cls = FunctionalMGDAModel
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not is_functional(args, kwargs):
            super().__init__(*args, **kwargs)
            return
        outputs = args[1] if len(args) > 1 else kwargs["outputs"]
        if not isinstance(outputs, Mapping):
            raise ValueError(
                "`outputs` must be a dict, `{task: tensor}`. "
                f"Received: {type(outputs).__name__}. Name each task, as in "
                "`dict(zip(task_names, outputs))`."
            )
        make_functional(type(self), MGDAModel, FunctionalMGDAModel)
        MarkedFunctional.__init__(self, *args, **kwargs)

    @classmethod
    def from_model(
        cls, model: keras.Model, shared: str | Sequence[str] | None = None
    ) -> "MGDAModel":
        """The same layers and variables as a model that trains by MGDA.

        Args:
            model: a functional model whose outputs are a dict,
                `{task: tensor}`. It shares its layers with the new one.
            shared: the name of the layer, or layers, whose output is the shared
                representation. `None` takes the last tensors through which
                the trainable paths of all tasks run, and prints which.

        Raises:
            ValueError: if the model is not functional, its outputs have no
                names, or there is no such layer or tensor.

        Example:

        >>> import keras, keras_mgda
        >>> inputs = keras.Input((4,))
        >>> z = keras.layers.Dense(3, name="encoder")(inputs)
        >>> plain = keras.Model(
        ...     inputs, {task: keras.layers.Dense(1)(z) for task in ("a", "b")}
        ... )
        >>> model = keras_mgda.MGDAModel.from_model(plain)
        Shared representation: the output of 'encoder' (None, 3).
        """
        marked = mark(model, shared)
        if shared is None:
            print(f"Shared representation: the output of {marked.cut}.")
        return cls(marked.inputs, marked.outputs, name=model.name)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *args: Any,
        weighting: Any = "mgda",
        gradients: Gradients = "representation",
        verify: bool = False,
        max_corrections: int = 8,
        update_every: int = 1,
        **kwargs: Any,
    ) -> None:
        """Configures training, as Keras does, and how the tasks weigh in it.

        Args:
            optimizer: as in Keras.
            loss: a dict that gives every output its loss, as Keras takes them;
                `None` for an output that is no task.
            *args: as in Keras.
            weighting: what chooses the task weights: anything that
                `keras_mgda.weightings.get` takes.
            gradients: which task gradients the weighting sees.
                `"representation"`: those with respect to the shared
                representation, which is MGDA-UB. `"parameters"`: those of the
                encoder's variables, exact MGDA. `"last"`, or a list of layers
                or of their names: those of the encoder's last two layers, or
                of these. `"verified"`: the direction is checked against the
                true gradients of all tasks, and mended. What each costs and
                ensures is in docs/directions.md.
            verify: whether to look at each direction, at the price of up to
                one more step, and to log what was found: `conflicts`, the
                tasks whose loss the direction of the weighting would raise;
                `corrections`, how often it was mended; `min_cosine`, the
                smallest cosine with a task gradient that was left (exact
                with `"parameters"` and a weighting that looks at gradients,
                else estimated). Means over the steps. Other than `"verified"`
                itself, this changes nothing in the steps.
            max_corrections: of `"verified"`, in one step.
            update_every: for how many steps the task weights are used. Those in
                between cost as much as with `"representation"`, whatever
                `gradients` is. A task without labels in the batch that is
                weighed has the weight zero until the next one is.
            **kwargs: as in Keras; and `unlabelled`, the value that stands for
                a missing label: `"nan"`, a number such as -1, or a dict that
                gives each task its own, `None` for labels that are missing by
                sample weight zero alone. Losses and metrics of a task then
                count its labelled examples only, and a task without any in
                the batch takes no part in the step.

        Raises:
            ValueError: if the losses do not fit the outputs; if the weighting
                does not fit the tasks or is unknown; if task weights cannot be
                used for so many steps, as on several replicas.
        """
        outputs = self.output if isinstance(self, Functional) else None
        by_output = tasks.task_losses(loss, outputs)
        task_names = list(tasks.of_loss(by_output))
        partly_labelled = kwargs.get("unlabelled") is not None
        with self.distribute_strategy.scope():
            descent = Descent(
                self,
                task_names,
                weighting=weighting,
                gradients=gradients,
                verify=verify,
                max_corrections=max_corrections,
                update_every=update_every,
            )
        super().compile(
            optimizer,
            tasks.record_values(by_output, partly_labelled),
            *args,
            **kwargs,
        )
        self.loss = loss
        self._loss_by_output = by_output
        self._task_names = task_names
        self._descent = descent
        # Saved and loaded with the model as its optimizer is, and as little one
        # of its layers: `get_weights` stays that of the plain Keras model.
        for name, state in descent.states.items():
            object.__setattr__(self, f"_{name}_state", state)

    @property
    def task_names(self) -> list[str]:
        """The tasks, in the order in which `loss` names them."""
        self._require_compiled()
        return list(self._task_names)

    @property
    def task_weights(self) -> dict[str, float]:
        """The task weights of the last training step; NaN before the first."""
        self._require_compiled()
        values = self._descent.task_weights.numpy().tolist()
        return dict(zip(self._task_names, values, strict=True))

    def _require_compiled(self) -> None:
        if not self.compiled:
            raise ValueError(
                "The model must know its tasks. Received: a model that is not "
                "compiled. Call `compile(loss={task: ...})` first."
            )

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if not config:
            return config
        serialize = keras.saving.serialize_keras_object
        return {
            **config,
            "loss": serialize(self.loss),
            "weighting": serialize(self._descent.weighting),
            **self._descent.config,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def _start(self) -> tuple[list[keras.Variable], Any]:
        variables, _ = super()._start()
        for state in self._descent.states.values():
            variables += state.variables if state is not None else []
        return variables, self.get_compile_config()["weighting"]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """With those of `verify`, but for evaluation, which has no steps."""
        found = super().metrics
        if self.compiled and not self._evaluating:
            found = found + self._descent.metrics
        return found

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_evaluation():
            return super().evaluate(*args, **kwargs)

    def test_step(self, data: Any) -> dict[str, Any]:
        with self._in_evaluation():
            return super().test_step(data)

    @contextlib.contextmanager
    def _in_evaluation(self) -> Iterator[None]:
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of Algorithm 2 of Sener & Koltun, 2018."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_replica(self, x)
        with record() as recording:
            y_pred = self(x, **_training(self.call))
            tasks.check_names(self._loss_by_output, y_pred)
            total_loss = self.compute_loss(
                x=x,
                y=y,
                y_pred=y_pred,
                sample_weight=sample_weight,
                **_training(self.compute_loss),
            )
        recording.complete(self._task_names)
        self._track_loss(total_loss, x)

        variables = self.trainable_variables
        if variables:
            direction = self._descent.direction(
                recording,
                variables,
                total_loss,
                loss_scale=self.optimizer.scale_loss(tf.ones([])),
            )
            gradients = direction.gradients
            if self._skips_overflow():
                self._skipped.add_overflow(
                    list(recording.task_losses.values()), direction
                )
                gradients = share_overflow(gradients)
            # Once, and in this order: the optimizer keeps its slots by it.
            self._apply_where_labelled(
                gradients,
                variables,
                direction.readers,
                list(recording.num_labels.values()),
            )
            self._descent.note(direction, skips=self._skips_overflow())
        else:
            warnings.warn("The model has no trainable variables.", stacklevel=2)
        share_statistics(self)
        return self._for_reduction(
            self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        )

    def _skips_overflow(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _track_loss(self, total_loss: tf.Tensor, x: Any) -> None:
        """As the stock step does: the loss of the batch, not of the replica."""
        tracker = next(m for m in self.metrics if m.name == "loss")
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
        tracker.update_state(
            total_loss * replicas, sample_weight=tf.shape(first)[0]
        )


@keras.saving.register_keras_serializable("keras_mgda", name="MGDAModel")
class FunctionalMGDAModel(MGDAModel, MarkedFunctional):
    """What `MGDAModel(inputs, outputs)` returns.

    A class of its own because Keras rewrites the bases of a class that is first
    subclassed and then used functionally, which breaks those that came before.
    """


def _training(function: Callable[..., Any]) -> dict[str, bool]:
    """`training=True` for functions that take it."""
    takes = "training" in inspect.signature(function).parameters
    return {"training": True} if takes else {}
