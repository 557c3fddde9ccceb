"""What stands between a trained model and TensorFlow Serving.

`keras_mgda.export_saved_model` publishes; here are the parts around it.
"""

from keras_mgda.serving.artifact import Artifact, read
from keras_mgda.serving.checks import problems
from keras_mgda.serving.config import (
    ServedModel,
    batching_parameters,
    curl_command,
    docker_command,
    write_models_config,
)
from keras_mgda.serving.images import encoded_images
from keras_mgda.serving.versions import list_versions

__all__ = [
    "Artifact",
    "ServedModel",
    "batching_parameters",
    "curl_command",
    "docker_command",
    "encoded_images",
    "list_versions",
    "problems",
    "read",
    "write_models_config",
]
