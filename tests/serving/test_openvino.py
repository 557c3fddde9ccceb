"""A second engine: OpenVINO reads the artifact and answers as Keras does."""

import numpy as np
import openvino
import pytest

from tests.support.serving.served_models import answers_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["mlp", "convolutional", "two_inputs", "subclassed", "tree"]
)
def test_openvino_answers_as_keras(name, published):
    model, rows, written = published(name)
    compiled = openvino.Core().compile_model(
        str(written.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for size in (1, 3, 8):
        some = {key: array[:size] for key, array in rows.items()}
        found = compiled(some)
        for task, expected in answers_of(model, some).items():
            np.testing.assert_allclose(found[task], expected, atol=1e-5)
