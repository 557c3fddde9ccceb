"""Functions as SavedModels, with requests to them."""

import keras
import numpy as np
import tensorflow as tf

from keras_mgda import serving
from keras_mgda.serving import warmup

VECTOR = tf.TensorSpec([None, 4], tf.float32, name="features")


def save(path, spec=VECTOR, name="serving_default", **outputs):
    """Saves functions of one input, with requests at two batch sizes."""

    def signature(tensor):
        return {key: function(tensor) for key, function in outputs.items()}

    module = tf.Module()
    module.kept = [f for f in outputs.values() if isinstance(f, keras.Layer)]
    concrete = tf.function(signature).get_concrete_function(spec)
    tf.saved_model.save(module, str(path), signatures={name: concrete})
    shape = [4 if size is None else size for size in spec.shape[1:]]
    rows = np.ones((3, *shape), spec.dtype.as_numpy_dtype)
    ask(path, *({spec.name: rows[:size]} for size in (1, 3)))
    return path


def ask(path, *inputs, signature="serving_default", answer=None):
    requests = [warmup.Request(signature, i, answer or {}) for i in inputs]
    warmup.write(path / warmup.PATH, "mtl", requests)


def problems(path):
    return "\n".join(serving.problems(serving.read(path)))


def double(x):
    return 2 * x
