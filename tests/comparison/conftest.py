import pytest

from keras_mgda.comparison import InProcess, compare
from tests.support.comparison_job import arguments


@pytest.fixture(scope="session")
def studied(tmp_path_factory):
    """A comparison in this process: its arguments, and what it returned."""
    path = tmp_path_factory.mktemp("comparison") / "runs.jsonl"
    given = arguments(
        path, methods=["single tasks"], epochs=2, executor=InProcess()
    )
    return given, compare(**given)
