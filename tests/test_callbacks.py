import contextlib
import csv
import itertools
import pathlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import MGDAModel, SharedRepresentation, weightings
from keras_mgda.callbacks import LogTaskWeights, TaskMonitor
from tests.support.networks import plain, three_tasks


def model(**compile_args):
    keras.utils.set_random_seed(0)
    built = MGDAModel(*plain(SharedRepresentation))
    built.compile("sgd", {"a": "mse", "b": "mae"}, **compile_args)
    return built


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 8)).astype("float32")
    return x, {task: rng.normal(size=(24, 1)) for task in "ab"}


class EachBatch(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.task_weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.task_weights.append(self.model.task_weights)


@pytest.mark.parametrize("executions", [6, 3], ids=["steps", "executions"])
def test_history_and_later_callbacks_see_the_means(tmp_path, executions):
    path, each = tmp_path / "log.csv", EachBatch()
    history = (
        model(
            steps_per_execution=6 // executions,
            run_eagerly=executions == 6,
        )
        .fit(
            *data(),
            batch_size=4,
            epochs=2,
            verbose=0,
            validation_data=data(),
            callbacks=[LogTaskWeights(), keras.callbacks.CSVLogger(path), each],
        )
        .history
    )
    assert len(each.task_weights) == 2 * executions
    rows = list(csv.DictReader(path.open()))
    for epoch, row in enumerate(rows):
        batches = each.task_weights[epoch * executions :][:executions]
        for task in "ab":
            mean = np.mean([of_batch[task] for of_batch in batches])
            assert history[f"{task}_weight"][epoch] == pytest.approx(mean)
            assert float(row[f"{task}_weight"]) == pytest.approx(mean)
    assert not any(name.startswith("val_a_w") for name in history)


def test_a_step_that_is_not_finite_is_seen():
    x, y = data()
    y["a"][5] = np.nan
    history = model(run_eagerly=True).fit(
        x, y, batch_size=4, verbose=0, callbacks=[LogTaskWeights()]
    )
    assert np.isnan(history.history["a_weight"]).all()


def test_another_model_is_refused():
    plain_model = keras.Model(*plain(keras.layers.Identity))
    plain_model.compile("sgd", {"a": "mse", "b": "mae"})
    with pytest.raises(ValueError, match=r"of an `MGDAModel`.*Received: Func"):
        plain_model.fit(*data(), verbose=0, callbacks=[LogTaskWeights()])


def test_a_metric_is_not_overwritten():
    taken = keras.metrics.MeanAbsoluteError(name="weight")
    with pytest.raises(ValueError, match=r"Received: .*\['a_weight'\]"):
        model(metrics={"a": taken}).fit(
            *data(), verbose=0, callbacks=[LogTaskWeights()]
        )


def monitored(tmp_path, monitor, steps=6, epochs=2, structure=None, **options):
    keras.utils.set_random_seed(0)
    built = MGDAModel(*(structure or plain)(SharedRepresentation))
    built.compile("sgd", "mse", run_eagerly=True, **options)
    each = EachStep()
    rng = np.random.default_rng(0)
    y = {task: rng.normal(size=(4 * steps, 1)) for task in built.task_names}
    history = built.fit(
        rng.normal(size=(4 * steps, 8)),
        y,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[monitor, each],
    ).history
    return history, each


class EachStep(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights, self.grams = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(list(self.model.task_weights.values()))
        self.grams.append(self.model._descent.gram.numpy())


def events(log_dir):
    """`{tag: [(step, value)]}`, as TensorBoard reads them."""
    found = {}
    for path in pathlib.Path(log_dir).glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, tensor))
    return found


@pytest.mark.parametrize("gradients", ["representation", "parameters"])
def test_monitor_tells_tensorboard_and_logs_the_same(tmp_path, gradients):
    history, each = monitored(
        tmp_path,
        TaskMonitor(tmp_path, every=4),
        structure=three_tasks,
        gradients=gradients,
    )
    seen = events(tmp_path)
    grams = np.array(each.grams)
    norms = np.sqrt(np.einsum("itt->it", grams))
    cosines = grams / norms[:, :, None] / norms[:, None]
    pairs = list(itertools.combinations(range(3), 2))
    steps = [4, 8, 12]  # of twelve: two epochs of six
    for t, task in enumerate("abc"):
        weights = np.array(each.weights)[:, t]
        for name, values in (
            ("weight", weights),
            ("gradient_norm", norms[:, t]),
        ):
            shown = seen[f"tasks/{name}/{task}"]
            assert [step for step, _ in shown] == steps
            np.testing.assert_allclose(
                [value for _, value in shown], values[[3, 7, 11]], rtol=1e-6
            )
            np.testing.assert_allclose(
                history[f"{task}_{name}"],
                [values[3], values[[7, 11]].mean()],
                rtol=1e-6,
            )
    for t, s in pairs:
        shown = seen[f"tasks/cosines/{'abc'[t]}, {'abc'[s]}"]
        np.testing.assert_allclose(
            [value for _, value in shown],
            cosines[[3, 7, 11], t, s],
            rtol=1e-4,
            atol=1e-6,
        )
    negative = [sum(cosines[i, t, s] < 0 for t, s in pairs) for i in (3, 7, 11)]
    assert [value for _, value in seen["tasks/conflicts"]] == negative
    (_, first), (_, second) = seen["tasks/cosines"]
    for encoded, of_epoch in (
        (first, cosines[3]),
        (second, cosines[[7, 11]].mean(0)),
    ):
        width, height, png = encoded
        image = tf.io.decode_png(png).numpy()
        assert image.shape == (int(height), int(width), 3)
        step = len(image) // 3
        centers = image[step // 2 :: step, step // 2 :: step].astype(int)
        # Blue where gradients agree, red where they do not.
        excess = centers[..., 2] - centers[..., 0]
        clear = np.abs(of_epoch) > 0.02
        assert (np.sign(excess) == np.sign(of_epoch))[clear].all()
        assert (np.diag(excess) >= excess.max() - 1).all()


def test_monitor_sees_the_gram_matrix_of_the_step(tmp_path):
    """Against gradients taken by hand, with a loss scale in between."""
    keras.utils.set_random_seed(0)
    built = MGDAModel(*plain(SharedRepresentation))
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.0), initial_scale=64.0
    )
    built.compile(optimizer, "mse", run_eagerly=True, gradients="parameters")
    x, y = data()
    kernel = [v for v in built.trainable_variables if v.shape == (8, 4)]
    bias = [v for v in built.trainable_variables if v.shape == (4,)]
    with tf.GradientTape(persistent=True) as tape:
        losses = {
            task: tf.reduce_mean((tf.cast(y[task], tf.float32) - of_task) ** 2)
            for task, of_task in built(x).items()
        }
    by_task = [
        np.concatenate(
            [
                g.numpy().ravel()
                for g in tape.gradient(
                    losses[t], [kernel[0].value, bias[0].value]
                )
            ]
        )
        for t in "ab"
    ]
    monitor = TaskMonitor(every=1)
    history = built.fit(
        x, y, batch_size=24, verbose=0, callbacks=[monitor]
    ).history
    for task, gradient in zip("ab", by_task, strict=True):
        assert history[f"{task}_gradient_norm"][0] == pytest.approx(
            np.linalg.norm(gradient), rel=1e-5
        )
    assert history["task_conflicts"] == [float(by_task[0] @ by_task[1] < 0)]


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_monitor_sees_what_weights_that_are_kept_were_chosen_by(run_eagerly):
    """In the step that chose them, and in the one that went on with them."""

    def norms(**options):
        built = model(
            gradients="parameters", run_eagerly=run_eagerly, **options
        )
        history = built.fit(
            *data(),
            batch_size=12,
            shuffle=False,
            verbose=0,
            epochs=2,
            steps_per_epoch=1,
            callbacks=[TaskMonitor(every=1)],
        ).history
        return np.array([history[f"{t}_gradient_norm"] for t in "ab"])

    kept = norms(update_every=2)
    np.testing.assert_allclose(kept[:, 0], norms()[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(kept[:, 1], kept[:, 0])


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.01),
        keras.optimizers.SGD(0.01, gradient_accumulation_steps=2),
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.01, gradient_accumulation_steps=2),
            initial_scale=2.0**127,  # skips
        ),
    ],
    ids=["plain", "accumulated", "skipped"],
)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.sample(3)
def test_monitor_counts_on(tmp_path, optimizer, same):
    """Batches, whatever the optimizer makes of them; images too."""
    if optimizer.name == "loss_scale_optimizer" and not same:
        pytest.skip("nothing tells another monitor of steps that were skipped")
    built = MGDAModel(*plain(SharedRepresentation))
    built.compile(type(optimizer).from_config(optimizer.get_config()), "mse")
    monitor = TaskMonitor(tmp_path, every=2)
    for _ in range(2):
        built.fit(*data(), batch_size=4, verbose=0, callbacks=[monitor])
        monitor = monitor if same else TaskMonitor(tmp_path, every=2)
    seen = events(tmp_path)
    shown = sorted(step for step, _ in seen["tasks/weight/a"])
    assert shown == [2, 4, 6, 8, 10, 12]
    assert sorted(step for step, _ in seen["tasks/cosines"]) == [6, 12]


def test_monitor_on_two_replicas_is_that_of_one(strategy, tmp_path):
    def history(scope):
        with scope:
            built = model()
        return built.fit(
            *data(),
            batch_size=8,
            shuffle=False,
            verbose=0,
            callbacks=[TaskMonitor(tmp_path, every=1)],
        ).history

    two, one = history(strategy.scope()), history(contextlib.nullcontext())
    for name in ("a_weight", "b_gradient_norm", "task_conflicts"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4)


def test_monitor_logs_tasks_of_any_name():
    x = keras.Input((8,))
    z = SharedRepresentation()(keras.layers.Dense(4)(x))
    tasks = ("nr/ar", "sr/p53")
    built = MGDAModel(x, {task: keras.layers.Dense(1)(z) for task in tasks})
    built.compile("sgd", "mse")
    given = data()
    history = built.fit(
        given[0],
        dict(zip(tasks, given[1].values(), strict=True)),
        verbose=0,
        callbacks=[TaskMonitor()],
    ).history
    assert {"nr/ar_weight", "sr/p53_gradient_norm"} <= set(history)


def test_monitor_of_a_short_epoch_shows_its_last_step(tmp_path):
    history, each = monitored(tmp_path, TaskMonitor())
    np.testing.assert_allclose(
        history["a_weight"], np.array(each.weights)[[5, 11], 0]
    )


def test_monitor_waits_for_the_end_of_an_execution(tmp_path):
    built = model(steps_per_execution=3)
    built.fit(
        *data(),
        batch_size=4,
        verbose=0,
        callbacks=[TaskMonitor(tmp_path, every=2)],
    )
    shown = events(tmp_path)["tasks/weight/a"]
    assert [step for step, _ in shown] == [3, 6]


def test_monitor_of_the_plain_sum_shows_weights_alone(tmp_path):
    history, _ = monitored(tmp_path, TaskMonitor(), weighting="uniform")
    assert history["a_weight"] == [1.0, 1.0]
    assert "a_gradient_norm" not in history
    assert "task_conflicts" not in history


def test_monitor_shows_a_step_that_is_not_finite(tmp_path):
    x, y = data()
    y["a"][5] = np.nan
    history = model(run_eagerly=True).fit(
        x, y, batch_size=4, verbose=0, callbacks=[TaskMonitor(tmp_path)]
    )
    assert np.isnan(history.history["a_gradient_norm"]).all()
    assert np.isnan(history.history["task_conflicts"]).all()


@pytest.mark.parametrize("every", [0, -1, 2.0, "50"])
def test_monitor_refuses_no_number_of_steps(every):
    with pytest.raises(ValueError, match=r"positive whole.*Received:"):
        TaskMonitor(every=every)


def test_monitor_and_task_weights_say_who_has_the_name():
    with pytest.raises(ValueError, match=r"a_weight.*leave out the other"):
        model(run_eagerly=True).fit(
            *data(), verbose=0, callbacks=[TaskMonitor(), LogTaskWeights()]
        )


def train(scale, epochs=1, seed=0, **options):
    """Task 'b' has labels, and so a gradient, this many times as large."""
    keras.utils.set_random_seed(seed)
    built = MGDAModel(*plain(SharedRepresentation))
    built.compile(
        keras.optimizers.SGD(1e-6), "mse", run_eagerly=True, **options
    )
    x, y = data()
    y["b"] = y["b"] * scale
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built.fit(x, y, batch_size=8, epochs=epochs, verbose=0)
        built.fit(x, y, batch_size=8, verbose=0)
    return [str(w.message) for w in caught if "of the weight" in str(w.message)]


def test_fit_warns_once_where_one_task_has_nearly_all_the_weight():
    (message,) = train(1e3, epochs=2)
    assert message.startswith("Task 'a' had 100% of the weight")
    # Each way out, taken.
    ways_out = re.findall(r"`weighting='(\w+)'`", message)
    assert ways_out == ["imtl_g", "uniform"]
    for weighting in ways_out:
        assert not train(1e3, weighting=weighting)
    assert not train(1e3, weighting=weightings.MGDA(normalization="l2"))


def test_fit_is_silent_where_both_tasks_steer():
    assert not train(1.0)
