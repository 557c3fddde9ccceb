"""A process that is killed goes on, in another, as if nothing had happened."""

import pytest

from tests.support.processes import alone
from tests.support.resume_job import BATCHES, SAVE_FREQ

JOB = "tests.support.resume_job"
KILLED_AFTER = 14
# A state that comes from losses, one from gradients, a number of steps, and one
# inside of another. Files and epochs of all are in weightings/test_state.py.
STATES = ("famo", "gradnorm", "pcgrad", "cr_mogm of famo")


@pytest.mark.slow
@pytest.mark.parametrize("weighting", STATES)
def test_killed_in_an_epoch_and_resumed_ends_with_the_same_bits(
    weighting, tmp_path
):
    killed = alone(tmp_path, weighting, KILLED_AFTER, module=JOB)
    assert killed.code == -9, killed.output
    result = alone(tmp_path, weighting, 0, module=JOB).result
    assert KILLED_AFTER - SAVE_FREQ < result["start"] < KILLED_AFTER
    assert result["resumed"]["steps"] == BATCHES
    assert result["resumed"] == result["whole"]
