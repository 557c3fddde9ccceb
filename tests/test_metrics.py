"""Metrics of columns, beside their definitions in NumPy."""

import keras
import numpy as np
import pytest

from keras_mgda import metrics

METRICS = [metrics.ColumnROCAUC, metrics.ColumnAveragePrecision]


def roc_auc(y, score, weight):
    pairs = weight[:, None] * weight[None]
    pairs = pairs * (y[:, None] == 1) * (y[None] == 0)
    higher = score[:, None] > score[None]
    equal = score[:, None] == score[None]
    return (pairs * (higher + equal / 2)).sum() / pairs.sum()


def average_precision(y, score, weight):
    total, before = 0.0, 0.0
    for threshold in sorted(set(score[weight > 0]), reverse=True):
        taken = weight * (score >= threshold)
        recall = (taken * y).sum() / (weight * y).sum()
        total += (recall - before) * (taken * y).sum() / taken.sum()
        before = recall
    return total


ORACLES = dict(zip(METRICS, [roc_auc, average_precision], strict=True))


def examples(b=40, m=4, seed=0):
    """Probabilities of which many are equal, none in one bin with another."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-8, 9, size=(b, m)).astype("float32")
    y = (rng.uniform(size=(b, m)) < 0.3).astype("float32")
    y[0], y[1] = 0, 1
    return y, 1 / (1 + np.exp(-logits)), logits


def expected(metric, y, score, weight):
    columns = range(y.shape[1])
    return np.mean([ORACLES[metric](y[:, k], score[:, k], weight[:, k])
                    for k in columns])  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("from_logits", [False, True])
def test_the_mean_over_columns(metric, from_logits):
    y, p, logits = examples()
    ours = metric(4, from_logits=from_logits)
    for part in np.array_split(np.arange(40), 3):
        ours.update_state(y[part], (logits if from_logits else p)[part])
    want = expected(metric, y, logits, np.ones_like(y))
    assert float(ours.result()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("how", ["examples", "labels", "nan", "behind"])
def test_labels_count_by_their_weight(metric, how):
    y, p, _ = examples()
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2, size=(40, 1)) * np.ones((1, 4))
    if how != "examples":
        weight = weight * (rng.uniform(size=y.shape) < 0.7)
        weight[:2] = 1.0
    want = expected(metric, y, p, weight)
    ours = metric(4)
    if how == "examples":
        ours.update_state(y, p, weight[:, 0])
    elif how == "nan":
        given = np.where(weight > 0, y, np.nan)
        ours.update_state(given, p, weight.max(1))
        want = expected(metric, y, p, (weight > 0) * weight.max(1)[:, None])
    elif how == "behind":  # as an `MGDAModel` hands them on
        ours.update_state(y[..., None], p[..., None], weight)
    else:
        ours.update_state(y, p, weight)
    assert float(ours.result()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_task_of_one_class_is_left_out(metric):
    y, p, _ = examples()
    y[:, 1], y[:, 2] = 0, 1
    rest = [0, 3]
    want = expected(metric, y[:, rest], p[:, rest], np.ones((40, 2)))
    ours = metric(4)
    ours.update_state(y, p)
    assert float(ours.result()) == pytest.approx(want, rel=1e-5)
    found = np.isnan(ours.of_columns())
    np.testing.assert_array_equal(found, [False, True, True, False])
    none = metric(1)
    none.update_state(y[:, 1:2], p[:, 1:2])
    assert np.isnan(none.result())


@pytest.mark.parametrize("metric", METRICS)
def test_a_prediction_that_is_not_finite_shows(metric):
    y, p, _ = examples()
    p[5, 2] = np.nan
    ours = metric(4)
    ours.update_state(y, p)
    assert np.isnan(ours.result())
    assert np.isnan(ours.of_columns()).tolist() == [False, False, True, False]


@pytest.mark.parametrize("metric", METRICS)
def test_saved_as_keras_metrics_are(metric):
    config = metric(3, from_logits=True, num_bins=64, name="m").get_config()
    again = metric.from_config(config)
    assert again.get_config() == config
    serialized = keras.saving.serialize_keras_object(again)
    assert isinstance(keras.saving.deserialize_keras_object(serialized), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input(metric):
    with pytest.raises(ValueError, match="must be a positive integer"):
        metric(0)
    with pytest.raises(ValueError, match="one column for each task, here 3"):
        metric(3).update_state(np.zeros((5, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="must have its shape"):
        metric(3).update_state(np.zeros((5, 3)), np.zeros((4, 3)))
    metric(2).update_state(np.zeros((5, 2)), np.zeros((5, 2)))
