"""What stands between a trained model and TensorFlow Serving.

`export_saved_model` publishes; here are the parts around it. Nothing here knows
how the model was trained.
"""

from keras_mgda.serving.artifact import Artifact, read
from keras_mgda.serving.batching import batching_parameters
from keras_mgda.serving.checks import problems
from keras_mgda.serving.export import export_saved_model
from keras_mgda.serving.versions import list_versions

__all__ = [
    "Artifact",
    "batching_parameters",
    "export_saved_model",
    "list_versions",
    "problems",
    "read",
]
