import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What XLA compiles here runs once or twice: code that is not optimized is there
# sooner. What it computes is decided before that.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
).strip()

import keras
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[1]

# For the strategies to have devices to run on; only possible this early.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(scope="session")
def strategy():
    """One for all: a second one in a process numbers its sums from the start.

    TensorFlow takes those of the same number for one sum, and aborts both.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def _same_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def count_compilations(tmp_path):
    """Counts the programs that XLA compiles while a script runs.

    Tracing counts do not show a recompilation, and XLA has no counter of its
    own: it writes each program it compiles to a file, in a new process
    because it reads its flags once.
    """

    def count(script):
        dump = tmp_path / "xla"
        flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            check=True,
        )
        return len(list(dump.glob("*before_optimizations.txt")))

    return count


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of a test that is marked `sample(n)`, `n` are not slow.

    They are spread evenly over the cases that are not slow by themselves.
    """
    cases = {}
    for item in items:
        if item.get_closest_marker("sample") and not item.get_closest_marker(
            "slow"
        ):
            cases.setdefault((item.path, item.originalname), []).append(item)
    for of_test in cases.values():
        (number,) = of_test[0].get_closest_marker("sample").args
        chosen = {k * len(of_test) // number for k in range(number)}
        for k, item in enumerate(of_test):
            if k not in chosen:
                item.add_marker(pytest.mark.slow)


def pytest_make_parametrize_id(config, val, argname):
    if isinstance(val, bool | int | float | str):
        return f"{argname}={val}"
    return None
