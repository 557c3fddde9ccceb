"""Published models, loaded by the code that TensorFlow Serving loads with."""

import numpy as np
import pytest
from served_models import MODELS, answers_of

BATCH_SIZES = (1, 3, 8)


@pytest.mark.parametrize("name", MODELS)
def test_every_signature_answers_as_keras(name, published, ask_c_library):
    model, rows, written = published(name)
    requests, expected = [], []
    for size in BATCH_SIZES:
        some = {key: array[:size] for key, array in rows.items()}
        answers = answers_of(model, some)
        for signature, declared in written.signatures.items():
            requests.append((signature, served(some, declared.inputs)))
            expected.append(served(answers, declared.outputs))
    found = ask_c_library(written.path, requests)
    for request, answer, right in zip(requests, found, expected, strict=True):
        assert isinstance(answer, dict), (request[0], answer)
        assert answer.keys() == right.keys()
        for key, array in right.items():
            assert answer[key].dtype == np.float32
            np.testing.assert_allclose(
                answer[key], array, rtol=1e-6, atol=1e-6, err_msg=key
            )


def served(arrays, declared):
    """Those of the arrays that a signature declares, by its names."""
    letters = str.maketrans("-./' ", "_____")
    renamed = {key.translate(letters): array for key, array in arrays.items()}
    renamed["input_lambda"] = renamed.get("lambda")
    return {name: renamed[name] for name in declared}
