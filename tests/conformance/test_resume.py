"""A process that is killed goes on, in another, as if nothing had happened."""

import pytest

from tests.support.processes import alone
from tests.support.resume_job import BATCHES, SAVE_FREQ
from tests.support.weighting_cases import STATEFUL

JOB = "tests.support.resume_job"
KILLED_AFTER = 14


@pytest.mark.slow
@pytest.mark.parametrize("weighting", STATEFUL)
def test_killed_in_an_epoch_and_resumed_ends_with_the_same_bits(
    weighting, tmp_path
):
    killed = alone(tmp_path, weighting, KILLED_AFTER, module=JOB)
    assert killed.code == -9, killed.output
    result = alone(tmp_path, weighting, 0, module=JOB).result
    assert KILLED_AFTER - SAVE_FREQ < result["start"] < KILLED_AFTER
    assert result["resumed"]["steps"] == BATCHES
    assert result["resumed"] == result["whole"]
