"""The dtype policy of Keras, for as long as a model is made."""

import contextlib

import keras


@contextlib.contextmanager
def dtype_policy(policy):
    """Layers that are made within compute as this policy says."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
