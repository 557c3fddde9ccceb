"""`MultiWorkerMirroredStrategy` on processes of this machine."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import processes, runs

pytestmark = pytest.mark.slow

ALWAYS = [("mgda l2", "representation"), ("mgda loss+", "parameters")]
# That of the tests which are about something else.
PLAIN = ("mgda", "representation")


def numbers(cases):
    return [runs.CASES.index(case) for case in cases]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """What each of two workers found, one process pair for all tests."""
    ended = processes.workers(
        "worker_suite", tmp_path_factory.mktemp("saved"), *numbers(ALWAYS)
    )
    assert [worker.code for worker in ended] == [0, 0], ended
    return [worker.result for worker in ended]


@pytest.mark.parametrize("case", ALWAYS, ids=" by ".join)
def test_two_workers_train_as_one_process(two_workers, case):
    (number,) = numbers([case])
    for worker in two_workers:
        run = runs.from_json(worker["cases"][str(number)])
        runs.assert_same(run, runs.of_case_on_one(case))


@pytest.mark.parametrize("number", [2, 3])
def test_workers_train_as_one_process(number):
    for worker in processes.workers(
        "worker_cases", *numbers(runs.PLAIN_CASES), number=number, seconds=1200
    ):
        for case in runs.PLAIN_CASES:
            (n,) = numbers([case])
            run = runs.from_json(worker.result[str(n)])
            runs.assert_same(run, runs.of_case_on_one(case))


def test_workers_hold_the_same(two_workers):
    """Bit by bit, and with it all that the other tests look at."""
    first, second = (dict(worker) for worker in two_workers)
    assert first.pop("stock") != second.pop("stock")  # errors, with the data
    assert first == second


def test_evaluation_and_prediction(two_workers):
    """Of 97 examples, so that the last batch has none for a worker."""
    model = runs.compiled()
    x, y = runs.data(97)
    metrics, outputs = two_workers[0]["evaluation"]
    # The losses of single tasks are means over batches, in stock Keras, too.
    expected = model.evaluate(x, y, batch_size=24, verbose=0)
    assert metrics["loss"] == pytest.approx(expected[0], rel=1e-5)
    for task, output in model.predict(x, batch_size=24, verbose=0).items():
        np.testing.assert_allclose(outputs[task], output, rtol=1e-5, atol=1e-6)


def test_batch_normalization_and_dropout(two_workers):
    loss, variables = two_workers[0]["normalized"]
    assert loss[-1] < loss[0]
    assert all(np.isfinite(variable).all() for variable in variables)


def test_overflow_on_the_last_worker_skips_the_step_on_all(two_workers):
    before, skipped, trained, scale = two_workers[0]["overflow"]
    assert skipped == before
    assert trained[: len(before)] != before
    assert scale == 2.0**14  # of 2^15 to begin with
    assert all(np.isfinite(variable).all() for variable in trained)


def test_stock_keras_fails(two_workers):
    """If it does not, Keras has learnt it, and what mends it can go."""
    assert "PerReplica" in two_workers[0]["stock"]


def test_workers_with_different_amounts_of_data(two_workers):
    """They end together: the one with four batches waits for that with ten."""
    steps, loss, variables = two_workers[0]["uneven"]
    assert steps == 2 * 10
    assert np.isfinite(loss).all()
    assert all(np.isfinite(variable).all() for variable in variables)


def test_different_numbers_of_batches_are_refused(two_workers):
    in_fit, with_steps, in_evaluate, steps = two_workers[1][
        "different_numbers_of_batches"
    ]
    assert "same number of batches. Received: [10, 6]" in in_fit
    assert "same number of batches. Received: [8, 6]" in with_steps
    assert "same number of batches. Received: [10, 6]" in in_evaluate
    assert steps == 0


def test_different_starts_are_refused(two_workers):
    messages = two_workers[0]["different_starts"]
    assert len(messages) == 4
    for message in messages:
        assert "must start with the same weights, optimizer and w" in message
        assert "Received: different ones, after [0, 0] steps" in message


def test_saved_and_loaded_as_if_not_interrupted(two_workers):
    uninterrupted = runs.of_case_on_one(PLAIN)
    for worker in two_workers:
        runs.assert_same(
            runs.from_json(worker["saved"]), uninterrupted, first_epoch=1
        )


def interrupted(directory, victim):
    """How the survivor of two workers ended, killed in the second epoch."""
    ended = processes.workers("resumable", directory, victim, 1, 4)
    assert ended[victim].code == -9
    survivor = ended[1 - victim]
    assert survivor.code == 0, survivor.output
    return survivor.result


@pytest.mark.parametrize("victim", [1, 0])
def test_killed_worker_stops_the_others_and_all_can_resume(tmp_path, victim):
    survivor = interrupted(tmp_path, victim)
    assert survivor["error"] == "UnavailableError"
    assert f"task:{victim}" in survivor["message"]

    checkpoint = runs.compiled()
    checkpoint.optimizer.build(checkpoint.trainable_variables)
    checkpoint.load_weights(tmp_path / "latest.weights.h5")
    assert checkpoint.optimizer.iterations.numpy() == runs.BATCHES

    uninterrupted = runs.of_case_on_one(PLAIN)
    for worker in processes.workers("resumable", tmp_path, -1, 0, 0):
        assert worker.result["steps"] == runs.EPOCHS * runs.BATCHES
        runs.assert_same(
            runs.from_json(worker.result), uninterrupted, first_epoch=1
        )


def test_worker_that_stops_to_answer_ends_the_others_by_the_timeout(tmp_path):
    """It lives, so that only the timeout of the collectives can tell."""
    first, _ = processes.workers("unresponsive", tmp_path / "over", 20)
    assert first.result["error"] == "DeadlineExceededError"


def test_one_worker_is_as_no_strategy():
    """A strategy of several workers that finds no cluster."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    model = runs.compiled(strategy, metrics={"a": "accuracy"})
    logged = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: logged.extend(logs.values())
    )
    run = runs.fit(model, callbacks=callback)
    runs.assert_same(run, runs.of_case_on_one(PLAIN))
    assert {np.ndim(value) for value in logged} == {0}
