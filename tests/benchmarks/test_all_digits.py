"""Table 3 on all digits: its masks, its digits, and what its table says."""

import json

import keras
import numpy as np
import pytest

from benchmarks import all_digits, tables
from examples import two_digits


@pytest.fixture
def digits(monkeypatch):
    """A few images for the script in place of MNIST's."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = {t: rng.integers(10, size=count) for t in ("left", "right")}
        return rng.random((count, 28, 28, 1), dtype="float32"), labels

    splits = {"train": split(50), "validation": split(10), "test": split(20)}
    monkeypatch.setattr(two_digits, "load", lambda *_: splits)
    return splits


def test_masks_keep_the_size_of_what_they_keep():
    """The authors' multiply by zeros and ones; predictions see everything."""
    x = keras.random.uniform([64, 5, 5, 8], 1.0, 2.0, seed=0)
    for layer in (all_digits.Mask(0.5), all_digits.ChannelMask(0.5)):
        masked = np.asarray(layer(x, training=True))
        kept = masked != 0
        np.testing.assert_array_equal(masked[kept], np.asarray(x)[kept])
        assert 0.2 < kept.mean() < 0.8
        np.testing.assert_array_equal(layer(x), x)


def test_channel_mask_is_the_same_for_the_whole_batch():
    x = np.ones([16, 4, 4, 32], "float32")
    kept = np.asarray(all_digits.ChannelMask(0.5)(x, training=True))
    np.testing.assert_array_equal(
        kept, np.broadcast_to(kept[:1, :1, :1], x.shape)
    )
    assert 0 < kept.mean() < 1


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.sample(1)
def test_trains_on_all_digits_and_tells_every_epoch(digits, masks):
    x, y = all_digits.all_digits(digits)
    assert len(x) == len(y["left"]) == 60
    np.testing.assert_array_equal(x[50:], digits["validation"][0])
    run = all_digits.train("MGDA-UB", 0.05, 0, 2, masks, None)
    assert {t: len(v) for t, v in run["test_of_epochs"].items()} == {
        "left": 2,
        "right": 2,
    }


def test_table_tells_the_honest_epoch_from_the_best_one(tmp_path):
    """By hand: validation chose the second epoch, the third is best on test."""
    validated = {
        "method": "uniform",
        "learning_rate": 0.05,
        "seed": 0,
        "epochs": 3,
        "search": False,
        "best_epoch": 2,
        "validation": {"left": 90.0, "right": 80.0},
        "test": {"left": 90.0, "right": 80.0},
    }
    run = {
        "method": "uniform",
        "learning_rate": 0.05,
        "seed": 0,
        "epochs": 3,
        "masks": False,
        "test_of_epochs": {
            "left": [10.0, 95.0, 93.0],
            "right": [20.0, 81.0, 86.0],
        },
    }
    of_other = run | {"method": "UPGrad"}  # which validation has not seen
    for name, lines in {
        "accuracy.jsonl": [validated],
        "all_digits.jsonl": [run, of_other],
    }.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name).write_text(text)
    rows = tables.all_digits(tmp_path).splitlines()[2:]
    assert rows == [
        "| uniform | 95.00 | 81.00 | 93.00 | 86.00 | 1 | 96.46 / 94.99 |",
        "| UPGrad | 93.00 | 86.00 | 93.00 | 86.00 | 1 |  |",
    ]
    assert tables.chosen_rates(tmp_path) == {"uniform": 0.05}
