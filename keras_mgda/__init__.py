"""Multi-task learning as multi-objective optimization, for Keras 3.

Letters: `m` tasks, `b` examples in a batch, `d` the size of the shared
representation `Z [b, d]`, `n` shared parameters, `G [m, m]` the Gram matrix of
the task gradients, `w [m]` the task weights.
"""

import importlib.util as _importlib_util

if _importlib_util.find_spec("tensorflow") is None:
    raise ImportError(
        "keras_mgda needs TensorFlow: pip install 'keras_mgda[cpu]', or [gpu] "
        "or [tpu] for these devices."
    )

try:
    import keras as _keras
except ModuleNotFoundError as _error:
    raise ImportError(
        f"keras_mgda needs Keras on TensorFlow, but importing it failed with "
        f"'{_error}': install keras, or set KERAS_BACKEND=tensorflow before "
        "keras is imported."
    ) from _error

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_mgda needs Keras on TensorFlow, but the backend is "
        f"'{_keras.backend.backend()}': set KERAS_BACKEND=tensorflow before "
        "keras is imported."
    )

from keras_mgda import (
    callbacks,
    datasets,
    losses,
    metrics,
    pareto,
    serving,
    weightings,
)
from keras_mgda.layers import GradientFork, SharedRepresentation
from keras_mgda.linalg.gram import gram_matrix
from keras_mgda.linalg.min_norm import MinNormPoint, min_norm_point
from keras_mgda.model import MGDAModel
from keras_mgda.serving.export import export_saved_model

__all__ = [
    "GradientFork",
    "MGDAModel",
    "MinNormPoint",
    "SharedRepresentation",
    "callbacks",
    "datasets",
    "export_saved_model",
    "gram_matrix",
    "losses",
    "metrics",
    "min_norm_point",
    "pareto",
    "serving",
    "weightings",
]
