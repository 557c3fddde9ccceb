"""One training, in a process of its own: `train`, and `check` before all."""

import contextlib
import hashlib
import io
import json
import math
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_mgda import pareto
from keras_mgda.comparison import splits
from keras_mgda.comparison.methods import REFERENCE, SINGLE_TASKS
from keras_mgda.comparison.problem import (
    Line,
    Problem,
    Training,
    Values,
    lower_is_better,
)
from keras_mgda.comparison.results_file import versions
from keras_mgda.comparison.settings import described, name_of, new
from keras_mgda.model import MGDAModel

# Keras has one random seed in a process: threads of an executor take turns.
_turn = threading.Lock()


def train(problem: Problem, training: Training) -> Line:
    """Trains, chooses the epoch on validation, then looks at the test split."""
    with _turn:
        return _train(problem, training)


def _train(problem: Problem, training: Training) -> Line:
    started = time.perf_counter()
    tasks = list(problem.losses) if training.task is None else [training.task]
    keras.utils.set_random_seed(training.seed)
    train_split = splits.of_tasks(splits.given(problem.train), tasks)
    validation = splits.of_tasks(splits.given(problem.validation), tasks)
    # Whatever random numbers the data took.
    keras.utils.set_random_seed(training.seed)
    model = _compiled(problem, training)

    only_scale = training.method == REFERENCE
    monitor = _Monitor(problem, tasks, only_scale)
    choose = keras.callbacks.EarlyStopping(
        "score",
        mode="max",
        patience=problem.patience,
        restore_best_weights=not only_scale,
    )
    of_validation = splits.fit_arguments(validation, problem.batch_size)
    model.fit(
        **splits.fit_arguments(train_split, problem.batch_size),
        epochs=problem.epochs,
        validation_data=validation,
        validation_batch_size=of_validation.get("batch_size"),
        callbacks=[monitor, choose],
        verbose=0,
    )
    found: Line = {
        "validation": None,
        "test": None,
        "epoch": None,
        "epochs": len(monitor.seconds),
        "diverged": monitor.diverged,
    }
    if only_scale:
        found["validation"] = monitor.best_of_tasks()
    elif monitor.diverged is None:
        found["validation"] = monitor.values[choose.best_epoch]
        found["epoch"] = choose.best_epoch + 1
        # The epoch is chosen: from here on nothing is.
        test = splits.of_tasks(splits.given(problem.test), tasks)
        values = _evaluated(model, test, problem, tasks)
        if wrong := _not_finite(values):
            found["diverged"] = f"{wrong} on the test split"
        else:
            found["test"] = values
    # The first epoch compiles.
    seconds = monitor.seconds[1:] or monitor.seconds
    return {
        **found,
        "seconds": time.perf_counter() - started,
        "epoch_seconds": float(np.median(seconds)) if seconds else None,
        "versions": versions(),
    }


def check(problem: Problem, trainings: Sequence[Training]) -> dict[str, str]:
    """Whether all methods compile and all metrics are there, before training.

    Returns:
        Digests of the network: not of its variables, but of their shapes, of
        the layers with their settings, and of how these are connected; and of
        the optimizer without its learning rate.

    Raises:
        ValueError: if not.
    """
    with _turn:
        tasks = list(problem.losses)
        network, other = _built(problem), _built(problem)
        if {id(v) for v in network.variables} & {
            id(v) for v in other.variables
        }:
            raise ValueError(
                "`build` must return a new model at each call. Received: "
                "models that share variables, and so would go on from one "
                "training to the next. Make the layers in `build`."
            )
        for training in trainings:
            _compiled(problem, training)
        model = _compiled(problem, trainings[0].of_reference())
        splits.of_tasks(splits.given(problem.train), tasks)
        # Also of the test split: that something is a number chooses nothing.
        for name in ("validation", "test"):
            split = splits.given(getattr(problem, name))
            split = splits.of_tasks(split, tasks)
            if wrong := _not_finite(_evaluated(model, split, problem, tasks)):
                raise ValueError(
                    f"A metric must be finite on the {name} split. Received: "
                    f"{wrong} of a model that was not trained. Look for labels "
                    "that are NaN (`compile_options={'unlabelled': 'nan'}`) or "
                    "of one class only, or take another metric."
                )
        return {
            "network": _digest(network),
            "connections": _connections(network),
            "optimizer_settings": _hashed(
                [
                    [key, described(value)]
                    for key, value in model.optimizer.get_config().items()
                    if key not in ("name", "learning_rate")
                ]
            ),
        }


def _built(problem: Problem) -> keras.Model:
    model = problem.build()
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`build` must return a Keras model with a dict of outputs. "
            f"Received: {type(model).__name__}."
        )
    return model


def _compiled(problem: Problem, training: Training) -> MGDAModel:
    model = _built(problem)
    if not isinstance(model, MGDAModel):
        with contextlib.redirect_stdout(io.StringIO()):
            model = MGDAModel.from_model(model, problem.shared)
    losses, metrics = problem.losses, problem.metrics
    options = {**problem.compile_options, **training.options}
    if training.task is not None:
        task = training.task
        output = getattr(model, "output", None)
        if not isinstance(output, Mapping):
            raise ValueError(
                f"For {SINGLE_TASKS!r} the model must be functional, so that "
                "one output can be cut out of it. Received: "
                f"{type(model).__name__}. Leave them out of `methods`."
            )
        model = MGDAModel(model.input, {task: output[task]})
        losses, metrics = {task: losses[task]}, {task: metrics[task]}
        for name, value in options.items():
            if isinstance(value, Mapping) and task in value:
                options[name] = {task: value[task]}
    model.compile(
        problem.optimizer(training.learning_rate),
        loss=dict(losses),
        metrics=new(metrics),
        **new(options),
    )
    return model


def _digest(network: keras.Model) -> str:
    parts: list[Any] = [list(v.shape) for v in network.weights]

    def visit(layers: Iterable[keras.layers.Layer]) -> None:
        for layer in layers:
            if inner := getattr(layer, "layers", None):
                visit(inner)
                continue
            config: Any = None
            with contextlib.suppress(NotImplementedError):
                config = layer.get_config()
            parts.append([name_of(type(layer)), described(config)])

    visit(network.layers)
    # Keras numbers the names of layers, the further the more were made.
    return _hashed(parts, numbered=re.compile(r'(: "\w+?)(_\d+)?"'))


def _connections(network: keras.Model) -> str:
    """Which layer reads which, of a functional model and those inside."""
    parts: list[Any] = []

    def visit(config: Mapping[str, Any]) -> None:
        if "output_layers" not in config:
            return
        layers = config["layers"]
        text = json.dumps(
            [described(layer["inbound_nodes"]) for layer in layers]
            + [described(config["output_layers"])]
        )
        for k, layer in enumerate(layers):
            text = text.replace(f'"{layer["name"]}"', f'"#{k}"')
            visit(layer["config"])
        parts.append(text)

    with contextlib.suppress(NotImplementedError):
        visit(network.get_config())
    return _hashed(parts)


def _hashed(parts: Any, numbered: re.Pattern[str] | None = None) -> str:
    text = json.dumps(parts)
    if numbered is not None:
        text = numbered.sub(r'\1"', text)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _evaluated(
    model: MGDAModel, split: Any, problem: Problem, tasks: Sequence[str]
) -> Values:
    logs = model.evaluate(
        **splits.fit_arguments(split, problem.batch_size),
        return_dict=True,
        verbose=0,
    )
    return _selected(logs, problem, tasks)


def _selected(
    logs: Mapping[str, float],
    problem: Problem,
    tasks: Sequence[str],
    prefix: str = "",
) -> Values:
    """The metrics that count, by task, from the logs of Keras."""
    values = {}
    for task in tasks:
        name, _ = problem.select[task]
        # Keras names the metrics of a single output without it.
        key = prefix + (name if len(tasks) == 1 else f"{task}_{name}")
        if key not in logs:
            known = sorted(set(logs) - {f"{prefix}loss"})
            raise ValueError(
                "`select` must name a metric of the task, as Keras logs it. "
                f"Received: {name!r} for {task!r}, but the logs hold {known}. "
                "Add it to `metrics`, or take one of these."
            )
        values[task] = float(logs[key])
    return values


def _not_finite(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value}"
        for name, value in values.items()
        if not math.isfinite(value)
    )


class _Monitor(keras.callbacks.Callback):
    """Adds the score to the logs, and ends what diverges.

    Attributes:
        values: `{task: metric}` on the validation split, of each epoch.
        diverged: what was not finite and when; `None` if all was finite.
        seconds: of each epoch, without its validation.
    """

    def __init__(
        self, problem: Problem, tasks: Sequence[str], only_scale: bool
    ) -> None:
        super().__init__()
        self._problem, self._tasks = problem, tasks
        self._only_scale = only_scale
        self._lower = set(lower_is_better(problem.select)) & set(tasks)
        self.values: list[Values] = []
        self.seconds: list[float] = []
        self.diverged: str | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_test_begin(self, logs: Any = None) -> None:
        if len(self.seconds) == len(self.values):  # the epoch's own validation
            self.seconds.append(time.perf_counter() - self._began)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = _selected(logs, self._problem, self._tasks, "val_")
        losses = {name: logs[name] for name in ("loss", "val_loss")}
        if wrong := _not_finite({**losses, **values}):
            self.diverged = f"{wrong} in epoch {epoch + 1}"
            self.model.stop_training = True
            logs["score"] = -math.inf
            return
        self.values.append(values)
        logs["score"] = self._progress() if self._only_scale else self._score()

    def _score(self) -> float:
        reference = self._problem.reference
        assert reference is not None
        of_tasks = {task: reference[task] for task in self._tasks}
        return pareto.delta_m(self.values[-1], of_tasks, self._lower)

    def _progress(self) -> float:
        """Grows as long as some task gets better than it ever was."""
        return max(self._epoch_of_best(task) for task in self._tasks)

    def _epoch_of_best(self, task: str) -> int:
        best = np.argmin if task in self._lower else np.argmax
        return int(best([values[task] for values in self.values]))

    def best_of_tasks(self) -> Values:
        """What each task reached at its best, in whatever epoch.

        Raises:
            ValueError: if there is none, or no change relative to it.
        """
        best = {
            task: self.values[self._epoch_of_best(task)][task]
            for task in self._tasks
            if self.values
        }
        if not best or not all(best.values()):
            raise ValueError(
                "The reference must be finite and not zero in each task. "
                f"Received: {self.diverged or best} from the plain sum with "
                "the first learning rate. Begin with a lower learning rate, "
                "or pass `reference={task: number}`."
            )
        return best
