"""The Keras model that trains several tasks by multi-objective optimization."""

import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mgda.column_heads import find_last_layers, noted_logits
from keras_mgda.descent.descent import Descent, Gradients
from keras_mgda.descent.forward import (
    Asks,
    current_forward_pass,
    record_forward_pass,
)
from keras_mgda.descent.looks import Verify
from keras_mgda.description import describe
from keras_mgda.distribution.replicas import (
    check_replica,
    num_replicas,
    share_statistics,
)
from keras_mgda.distribution.strategies import check_scope, check_strategy
from keras_mgda.distribution.workers import (
    SameStart,
    has_workers,
    num_batches,
)
from keras_mgda.functional.marked_functional import (
    MarkedFunctional,
    is_functional,
)
from keras_mgda.functional.marks import mark
from keras_mgda.internals import (
    Functional,
    flatten_logs,
    loss_tracker,
    own_part_of_first_batch,
    put_functional_bases,
)
from keras_mgda.training import tasks
from keras_mgda.training.labels import (
    Labels,
    each_a_task,
    in_structure,
    markers_by_output,
    with_zeros,
)
from keras_mgda.training.loss_logs import LossLogs, loss_weights_by_output
from keras_mgda.training.taken_step import TakenStep
from keras_mgda.training.task_losses import check_reduction, collected_losses
from keras_mgda.training.update import Update, skips_overflow
from keras_mgda.weightings import Weighting

_logger = logging.getLogger(__name__)
_FEW = 16  # outputs


class MGDAModel(keras.Model):
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
                "`dict(zip(task_names, outputs))`, or `{name: output}` of one."
            )
        put_functional_bases(type(self), MGDAModel, FunctionalMGDAModel)
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
                the trainable paths of all tasks run.

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
        """
        marked = mark(model, shared)
        _logger.info("Shared representation: %s.", marked.cut)
        return cls(marked.inputs, marked.outputs, name=model.name)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
        auto_scale_loss: bool = True,
        *,
        weighting: Any = "mgda",
        gradients: Gradients = "representation",
        verify: Verify = False,
        verify_every: int = 1,
        max_corrections: int = 8,
        update_every: int = 1,
        unlabelled: Any = None,
    ) -> None:
        """Configures training, as Keras does, and how the tasks weigh in it.

        Args:
            optimizer: as in Keras.
            loss: a dict that gives every output its loss, as Keras takes them;
                `None` for an output that is no task, and a
                `keras_mgda.losses.PerColumn` for one whose columns are tasks.
            loss_weights: as in Keras.
            metrics: as in Keras.
            weighted_metrics: as in Keras; not with `unlabelled`.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: as in Keras.
            auto_scale_loss: as in Keras.
            weighting: what chooses the task weights: anything that
                `keras_mgda.weightings.get` takes.
            gradients: which task gradients the weighting sees.
                `"representation"`: those with respect to the shared
                representation, which is MGDA-UB. `"parameters"`: those of the
                shared variables, exact MGDA. `"last"`, or a list of layers
                or of their names: those of the encoder's last two layers, or
                of these. `"verified"`: the direction is checked against the
                true gradients of all tasks, and mended. What each costs and
                ensures is in docs/directions.md.
            verify: what to look at, and to log as means over the steps. Unlike
                `gradients="verified"`, it changes nothing in the steps.

                `True`: each direction, at the price of up to one more step:
                `conflicts`, the number of tasks whose loss the direction of
                the weighting would raise; `corrections`, how often it was
                mended; `min_cosine`, the smallest cosine with a task gradient
                that was left (exact with `"parameters"` and a weighting that
                looks at gradients, else estimated).

                `"step"`: what the optimizer made of it, at the price of one
                more forward pass, and of one through the heads. The losses of
                the batch, in training mode and with the same dropout masks,
                before and after the update: `harmed`, the number of tasks
                whose loss rose, by more than 1e-6 of it, which may be
                rounding; `worst_change`, the largest change of a task's
                loss, relative to what it was (to what it became, if it was
                zero); `encoder_part`, the change of the same loss if only
                what is shared had moved, and no head. Losses are those
                before `loss_weights`, of the global batch, without what
                belongs to no task. A task without labels in the batch does
                not count. An update of several batches' gradients is one step,
                and looked at on the last of them.
            verify_every: look at the first of every so many steps. The means
                are over these; NaN if there was none in an epoch.
                `gradients="verified"` looks at each of its directions anyway.
            max_corrections: of `"verified"`, in one step.
            update_every: for how many steps the task weights are used. Those in
                between cost as much as with `"representation"`, whatever
                `gradients` is. A task without labels in the batch that is
                weighed has the weight zero until weights are chosen again.
            unlabelled: the value that stands for a missing label: `"nan"`, a
                number such as -1, or a dict that gives each output its own.
                `None` there stands for labels that are missing by sample
                weight zero alone; without sample weights all are there.
                Losses and metrics of a task then count its labelled examples
                only, and a task without any in the batch takes no part in the
                step. `None`: every example is labelled for every task.

        Raises:
            ValueError: if the losses do not fit the outputs; if `verify` or
                `verify_every` is none of these; if the weighting does not fit
                the tasks or is unknown; if task weights cannot be used for so
                many steps, as on several replicas.
        """
        outputs = self.output if isinstance(self, Functional) else None
        by_output = tasks.task_losses(loss, outputs)
        losses = tasks.of_loss(by_output)
        task_names = tasks.names(by_output)
        columns = tasks.columns(by_output)
        markers = markers_by_output(unlabelled, list(losses))
        last_layers = find_last_layers(
            self,
            {name: len(loss.known_names) for name, loss in columns.items()},
        )
        # Keras would track it, and take the metrics in it once more.
        given = {"loss": loss, "metrics": metrics, "unlabelled": unlabelled}
        object.__setattr__(self, "_given", given)
        if markers is not None:
            if weighted_metrics:
                raise ValueError(
                    "With `unlabelled`, metrics must be given as `metrics`: "
                    "they count the labelled examples, each with weight 1. "
                    f"Received: weighted_metrics={weighted_metrics!r}."
                )
            for output, of_output in losses.items():
                if markers[output] is not None:
                    check_reduction(output, of_output)
            metrics, weighted_metrics = None, metrics
        with self.distribute_strategy.scope():
            descent = Descent(
                self,
                task_names,
                list(losses),
                weighting=weighting,
                gradients=gradients,
                verify=verify,
                verify_every=verify_every,
                max_corrections=max_corrections,
                update_every=update_every,
            )
            super().compile(
                optimizer=optimizer,
                loss=tasks.with_notes(by_output, markers is not None),
                loss_weights=loss_weights,
                metrics=metrics,
                weighted_metrics=weighted_metrics,
                run_eagerly=run_eagerly,
                steps_per_execution=steps_per_execution,
                jit_compile=jit_compile,
                auto_scale_loss=auto_scale_loss,
            )
            update = Update(task_names)
            loss_logs = LossLogs(
                loss_weights_by_output(
                    loss_weights, list(by_output), list(losses)
                ),
                columns,
            )
        check_strategy(self)
        check_scope(self)
        self.loss = loss
        self._loss_by_output = by_output
        self._task_names = task_names
        self._descent = descent
        self._labels = None if markers is None else Labels(markers, columns)
        # None of these is a part of the model's state.
        object.__setattr__(self, "_update", update)
        object.__setattr__(self, "_loss_logs", loss_logs)
        object.__setattr__(self, "_columns", columns)
        object.__setattr__(self, "_last_layers", last_layers)
        # Saved and loaded with the model as its optimizer is, and as little one
        # of its layers: `get_weights` stays that of the plain Keras model.
        for name, state in descent.states.items():
            object.__setattr__(self, f"_{name}_state", state)

    @property
    def task_names(self) -> list[str]:
        """The tasks, in the order in which `loss` names them, and columns."""
        self._require_compiled()
        return list(self._task_names)

    @property
    def column_names(self) -> dict[str, list[str]]:
        """`{output: tasks}` of outputs whose columns are tasks, if compiled."""
        columns = self._columns if self.compiled else {}
        return {o: list(loss.known_names) for o, loss in columns.items()}

    @property
    def weighting(self) -> Weighting:
        """The weighting of this model, of its own state."""
        self._require_compiled()
        return self._descent.weighting

    @property
    def task_weights(self) -> dict[str, float]:
        """The task weights of the last training step; NaN before the first."""
        self._require_compiled()
        values = self._descent.task_weights.numpy().tolist()
        return dict(zip(self._task_names, values, strict=True))

    def describe(self, print_fn: Callable[[str], Any] = print) -> None:
        """Prints which layers the tasks share, and what a step looks at.

        For each part of a functional model: its role, its variables, and the
        tasks that read it; then the tensors of the shared representation, and
        for a compiled model how many backward passes a step takes.

        Args:
            print_fn: takes the text.

        Raises:
            ValueError: for a subclassed model, which has no graph to read.
        """
        lines = [str(describe(self))]
        if self.compiled:
            lines.append(self._descent.cost)
        print_fn("\n".join(lines))

    def _require_compiled(self) -> None:
        if not self.compiled:
            raise ValueError(
                "The model must know its tasks. Received: a model that is not "
                "compiled. Call `compile(loss={task: ...})` first."
            )

    # Training.

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of Algorithm 2 of Sener & Koltun, 2018.

        `keras_mgda.descent` names the file of each of its lines.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_replica(self, x)
        looks_back = self._descent.config["verify"] == "step"
        taken = TakenStep(self) if looks_back else None
        with (
            record_forward_pass(self._asks) as forward,
            noted_logits(forward, self._last_layers),
        ):
            y_pred, total_loss = self._forward(x, y, sample_weight)
        # The loss of the batch, not of the replica, as in the stock step.
        loss_tracker(self).update_state(
            total_loss * num_replicas(), sample_weight=_batch_size(x)
        )
        if self.trainable_variables:
            loss_scale = self.optimizer.scale_loss(tf.ones([]))
            direction = self._descent.direction(
                forward, self.trainable_variables, total_loss, loss_scale
            )
            self._update.apply(
                self.optimizer, forward, direction, self.trainable_variables
            )
            skips = skips_overflow(self.optimizer)
            self._descent.note(direction, skips, loss_scale)
            if taken is not None:
                taken.note(
                    self._descent.looks,
                    forward,
                    direction,
                    lambda: self._forward(x, y, sample_weight),
                    skips=skips,
                )
        else:
            warnings.warn("The model has no trainable variables.", stacklevel=2)
        share_statistics(self)
        return self._for_workers(
            self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        )

    @property
    def _asks(self) -> Asks:
        """How a step asks for gradients of its forward pass."""
        if (
            self._descent.is_plain_sum
            and self._labels is None
            and not skips_overflow(self.optimizer)
        ):
            return "once"  # that of the total loss
        # Those of columns may be taken in a loop. A graph that is asked walks
        # all of itself for each task: too much for hundreds of outputs.
        if (
            self._descent.nests_gradients
            or self._columns
            or len(tasks.of_loss(self._loss_by_output)) > _FEW
        ):
            return "nested"
        return "often"

    def _forward(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
        """The predictions in training mode, and the total loss."""
        y_pred = self(x, **_training(self.call))
        tasks.check_names(self._loss_by_output, y_pred)
        total_loss = self.compute_loss(
            x=x,
            y=y,
            y_pred=y_pred,
            sample_weight=sample_weight,
            **_training(self.compute_loss),
        )
        return y_pred, total_loss

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        if self._labels is None and not self._columns:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        num_labels: Mapping[str, tf.Tensor] = {}
        if self._labels is not None:
            labels = self._labels.find(y, y_pred, sample_weight)
            num_labels = self._labels.counts(labels, y_pred)
            forward = current_forward_pass()
            if forward is not None:
                forward.num_labels = dict(num_labels)
            y = with_zeros(y, labels)
            weights = {o: found.sample_weight for o, found in labels.items()}
            sample_weight = in_structure(y_pred, weights)
        with collected_losses() as task_losses:
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self._loss_logs.update(
            task_losses, num_labels, _batch_size(y_pred if x is None else x)
        )
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        if self._columns and not isinstance(y, Mapping):
            y = dict(zip(y_pred, keras.tree.flatten(y), strict=True))
        if self._labels is not None:
            labels = self._labels.find(y, y_pred, sample_weight)
            y = with_zeros(y, labels)
            masks = {o: found.mask for o, found in labels.items()}
            sample_weight = in_structure(y_pred, masks)
        if self._columns:
            y, y_pred = (
                each_a_task(given, self._columns) for given in (y, y_pred)
            )
        if self._labels is not None:
            self._labels.check_metrics(self._given["metrics"], y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            looks = keras.callbacks.LambdaCallback(
                on_epoch_end=self._look_at_weights
            )
            callbacks = [*_listed(callbacks), looks]
        if has_workers(self.distribute_strategy):
            # The last one, when the others have loaded their checkpoints.
            same_start = SameStart(self._start, num_batches(x, batch_size))
            callbacks = [*_listed(callbacks), same_start]
        if self._descent.may_refuse_losses:
            refused = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda *args, **kwargs: (
                    self._descent.check_losses()
                )
            )
            callbacks = [refused, *_listed(callbacks)]
        history = super().fit(
            x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
        )
        for message in self._update.skipped.report():
            warnings.warn(message, stacklevel=2)
        return history

    def _look_at_weights(self, epoch: int, logs: Any = None) -> None:
        if message := self._descent.warning():
            warnings.warn(message, stacklevel=2)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras. A list holds none of the metrics of `verify`."""
        as_dict = kwargs.pop("return_dict", len(args) > 4 and args[4])
        logs = super().train_on_batch(*args[:4], return_dict=True, **kwargs)
        self._descent.check_losses()
        if as_dict:
            return logs
        for metric in self._descent.looks.metrics:
            logs.pop(metric.name, None)
        with self._in_evaluation():
            return flatten_logs(self, logs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        callbacks = kwargs.get("callbacks")
        if has_workers(self.distribute_strategy) and not isinstance(
            callbacks, keras.callbacks.CallbackList
        ):
            x = args[0] if args else kwargs.get("x")
            batches = num_batches(x, kwargs.get("batch_size"))
            same = SameStart(self._start, batches)
            kwargs["callbacks"] = [*_listed(callbacks), same]
        with self._in_evaluation():
            logs = super().evaluate(*args, **kwargs)
        without = self._labels and self._loss_logs.without_labels()
        if without:
            warnings.warn(
                f"The data of this evaluation hold no label of "
                f"{tasks.listed(without)}: the losses and metrics are NaN, and "
                "no part of `loss`. Give labels, or monitor other metrics.",
                stacklevel=2,
            )
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        with self._in_evaluation():
            return self._for_workers(super().test_step(data))

    # Logs.

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """With those of `verify`, but for evaluation, which has no steps."""
        found = super().metrics
        if self.compiled and not self._evaluating:
            found = found + self._descent.looks.metrics
        return found

    def get_metrics_result(self) -> dict[str, Any]:
        logs = super().get_metrics_result()
        if self._labels is None and not self._columns:
            return logs
        return self._loss_logs.correct(logs, self._outputs_of_metrics(logs))

    def reset_metrics(self) -> None:
        super().reset_metrics()
        if self.compiled:
            self._loss_logs.reset()

    def _outputs_of_metrics(self, logs: Mapping[str, Any]) -> dict[str, str]:
        """The output of each metric that `compile` was given, by its name."""
        # Keras keeps these in one metric that returns a dict, and puts the name
        # of the output before theirs where there are several.
        results = [metric.result() for metric in self.metrics]
        given = [r for r in results if isinstance(r, Mapping)]
        names = logs.keys() & {name for result in given for name in result}
        outputs = list(tasks.of_loss(self._loss_by_output))
        if len(outputs) == 1:
            return dict.fromkeys(names, outputs[0])
        by_name = {}
        for output in sorted(outputs, key=len):  # "a_b" after "a"
            for name in names:
                if name.startswith(f"{output}_"):
                    by_name[name] = output
        return by_name

    @contextlib.contextmanager
    def _in_evaluation(self) -> Iterator[None]:
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    # Saving.

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As in Keras; an `.h5` file holds the model alone, with a warning."""
        if self.compiled and os.fspath(filepath).endswith((".h5", ".hdf5")):
            warnings.warn(
                "An '.h5' file cannot hold how the tasks are weighed: the "
                "model was saved without its compile configuration and "
                "optimizer. Save it as '.keras' to keep them.",
                stacklevel=2,
            )
            kwargs["include_optimizer"] = False
        super().save(filepath, *args, **kwargs)

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if not config:
            return config
        serialize = keras.saving.serialize_keras_object
        given = {"loss": self._given["loss"]}
        if self._labels is not None:
            given |= self._given
            config = {**config, "weighted_metrics": None}
        return {
            **config,
            **serialize(given),
            "weighting": serialize(self._descent.weighting),
            **self._descent.config,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    # Replicas and workers.

    def _start(self) -> tuple[list[keras.Variable], Any]:
        """What all workers must have in common: variables, and settings."""
        variables = [*self.weights, *self.optimizer.variables]
        for state in self._descent.states.values():
            variables += state.variables if state is not None else []
        return variables, self.get_compile_config()["weighting"]

    def _for_workers(self, logs: dict[str, Any]) -> dict[str, Any]:
        """The logs of one replica, as `fit` can reduce them over the workers.

        It takes the mean over the first axis there, which a scalar lacks.
        """
        if not has_workers(self.distribute_strategy):
            return logs
        return {name: tf.reshape(value, [1]) for name, value in logs.items()}

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None, **kwargs: Any
    ) -> None:
        """Overrides a private method: see `own_part_of_first_batch`."""
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync > 1 and iterator is not None:
            data_batch = own_part_of_first_batch(strategy, iterator)
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch, **kwargs)


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


def _batch_size(x: Any) -> tf.Tensor:
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    return tf.shape(first)[0]


def _listed(callbacks: Any) -> list[keras.callbacks.Callback]:
    return keras.tree.flatten([callbacks] if callbacks else [])
