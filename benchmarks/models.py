"""The models that are timed: heads on an encoder, here and in stock Keras."""

import keras
import numpy as np
import tensorflow as tf

import keras_mgda


def build(shape, encoder, head, num_tasks, how, loss=None, momentum=0.9):
    """A compiled model. After each call all variables start alike.

    Args:
        shape: of the input.
        encoder: a function from the input to `Z`.
        head: a function from `Z` to the output of one task.
        num_tasks: how many heads there are.
        how: the arguments of `MGDAModel.compile`; `None` for stock Keras.
        loss: of every task; by default cross-entropy of logits.
        momentum: of SGD.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    z = encoder(inputs)
    if how is not None:
        z = keras_mgda.SharedRepresentation()(z)
    outputs = {f"task{t:03}": head(z) for t in range(num_tasks)}
    model = (keras.Model if how is None else keras_mgda.MGDAModel)(
        inputs, outputs
    )
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.01, momentum),
        dict.fromkeys(outputs, loss),
        **(how or {}),
    )
    return model


def batches(model, batch_size):
    """The same four batches over and over, already in memory."""
    rng = np.random.default_rng(0)
    shape = (4 * batch_size, *model.input_shape[1:])
    x = rng.normal(size=shape).astype("float32")
    y = {
        task: rng.integers(0, out.shape[-1], len(x))
        for task, out in model.output.items()
    }
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return data.cache().repeat().prefetch(2)
