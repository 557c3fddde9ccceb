"""`examples/tpu.py` on CPUs: one, several replicas, several workers."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import processes

pytestmark = pytest.mark.slow

EXAMPLE = "examples.tpu"
FEW = ("--epochs", 3, "--images", 256)


@pytest.fixture(scope="module")
def printed_on_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ended = processes.alone(
        *("--batch-size", 64, "--saved-models", folder, *FEW), module=EXAMPLE
    )
    return numbers_of(ended, replicas=1)


def numbers_of(ended, replicas):
    """Test loss, task weights and percentages that the example printed."""
    assert ended.code == 0, ended.output
    (found,) = re.findall(
        rf"(?s)^{replicas} replicas, (.*?)^(?:Published|\Z)", ended.output, re.M
    )
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", found)]
    assert len(numbers) == 5
    return numbers


@pytest.mark.parametrize(
    ("strategy", "replicas"),
    [
        ("mirrored", 2),
        ("mirrored", 4),
        ("multiworker", 2),
    ],
)
def test_example_trains_on_replicas_as_on_one(
    tmp_path, printed_on_one, strategy, replicas
):
    """The same global batch; one of the workers writes."""
    start = processes.workers if strategy == "multiworker" else processes.alone
    ended = start(
        *("--strategy", strategy, "--devices", replicas),
        *("--batch-size", 64 // replicas, "--saved-models", tmp_path),
        *("--backup", tmp_path / "backup", *FEW),
        module=EXAMPLE,
    )
    ended = ended if strategy == "multiworker" else [ended]
    for worker in ended:
        assert numbers_of(worker, replicas) == pytest.approx(
            printed_on_one, rel=1e-5
        )
    published = ["Published:" in worker.output for worker in ended]
    assert published == [True, False][: len(ended)]
    folder = tmp_path / "tpu"
    assert {path.name for path in folder.iterdir()} == {"1", "model.keras"}
    assert not (tmp_path / "backup").exists()  # it is of no use any more

    x = np.random.default_rng(0).random((3, 28, 28, 1), "float32")
    expected = keras.saving.load_model(folder / "model.keras")(x)
    served = tf.saved_model.load(str(folder / "1")).signatures
    for task, logits in served["serving_default"](image=x).items():
        np.testing.assert_allclose(logits, expected[task], atol=1e-6)


def test_example_with_what_a_tpu_is_given(tmp_path, printed_on_one):
    """In bfloat16, and with all steps of an epoch in one call."""
    ended = processes.alone(
        *("--batch-size", 64, "--saved-models", tmp_path, *FEW),
        *("--mixed-bfloat16", "--steps-per-execution", 4),
        module=EXAMPLE,
    )
    loss, *_ = numbers_of(ended, replicas=1)
    assert loss == pytest.approx(printed_on_one[0], rel=0.01)
    assert loss != printed_on_one[0]


def test_example_with_a_batch_of_more_images_than_there_are(tmp_path):
    ended = processes.alone(
        "--images", 8, "--saved-models", tmp_path, module=EXAMPLE
    )
    assert ended.code == 1
    assert "32 images in a batch are more than there are." in ended.output


def test_example_says_that_it_was_not_run_on_a_tpu():
    assert (
        "IT WAS NOT RUN ON A TPU"
        in (processes.ROOT / "examples" / "tpu.py").read_text()[:200]
    )
