"""Uses the installed package: every module imports, and a model trains."""

import importlib
import pathlib
import pkgutil
import sys

import keras
import numpy as np

import keras_mgda

folder = pathlib.Path(keras_mgda.__file__).parent
assert folder.is_relative_to(sys.prefix), f"not the wheel: {folder}"
assert (folder / "py.typed").exists()
for name in ("tests", "examples", "benchmarks"):
    assert not (folder.parent / name).exists(), f"{name} was installed, too"
for module in pkgutil.walk_packages([str(folder)], "keras_mgda."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

inputs = keras.Input((4,))
z = keras_mgda.SharedRepresentation()(keras.layers.Dense(3)(inputs))
outputs = {task: keras.layers.Dense(1, name=task)(z) for task in "ab"}
model = keras_mgda.MGDAModel(inputs, outputs)
model.compile("adam", loss="mse")
labels = {"a": np.ones((8, 1)), "b": np.zeros((8, 1))}
model.fit(np.ones((8, 4)), labels, verbose=0)
print("the wheel trains with", model.task_weights)
