"""Multi-task learning as multi-objective optimization, for Keras 3.

Letters: `m` tasks, `b` examples in a batch, `Z` the shared representation,
`theta` the shared parameters, `L_t` the loss of task `t`, `G [m, m]` the Gram
matrix of the task gradients, `w [m]` the task weights.
"""

import importlib as _importlib
import importlib.metadata as _metadata
import importlib.util as _importlib_util
import typing as _typing

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
    problems,
    weightings,
)
from keras_mgda.layers import GradientFork, SharedRepresentation
from keras_mgda.linalg.gram import gram_matrix
from keras_mgda.linalg.min_norm import MinNormPoint, min_norm_point
from keras_mgda.model import MGDAModel

if _typing.TYPE_CHECKING:
    from keras_mgda import comparison, serving
    from keras_mgda.comparison import Comparison, compare
    from keras_mgda.diagnosis import Diagnosis, diagnose
    from keras_mgda.serving.export import export_saved_model

__version__ = _metadata.version("keras_mgda")

__all__ = [
    "Comparison",
    "Diagnosis",
    "GradientFork",
    "MGDAModel",
    "MinNormPoint",
    "SharedRepresentation",
    "callbacks",
    "compare",
    "comparison",
    "datasets",
    "diagnose",
    "export_saved_model",
    "gram_matrix",
    "losses",
    "metrics",
    "min_norm_point",
    "pareto",
    "problems",
    "serving",
    "weightings",
]

# Loaded when they are asked for: neither training nor loading needs them.
_LAZY = {
    "comparison": "keras_mgda.comparison",
    "compare": "keras_mgda.comparison",
    "Comparison": "keras_mgda.comparison",
    "diagnose": "keras_mgda.diagnosis",
    "Diagnosis": "keras_mgda.diagnosis",
    "serving": "keras_mgda.serving",
    "export_saved_model": "keras_mgda.serving.export",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'keras_mgda' has no attribute {name!r}")
    module = _importlib.import_module(_LAZY[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
