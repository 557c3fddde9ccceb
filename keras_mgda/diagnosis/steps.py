"""How the tasks do in a step along a weighted sum of their gradients."""

import statistics
from typing import NamedTuple

import numpy as np

from keras_mgda.descent.verified import TOLERANCE
from keras_mgda.diagnosis.estimates import (
    CONFIDENCE,
    Array,
    Estimate,
    wilson,
)


class StepReport(NamedTuple):
    """How the tasks do in a step, to first order and on the step's own batch.

    Attributes:
        harmful: share of the steps that raise the loss of some task.
        conflicts: mean number of the tasks whose loss a step raises, what
            `verify=True` logs.
    """

    harmful: Estimate
    conflicts: float


def step_report(products: Array, task_weights: Array) -> StepReport:
    """Along `sum_t w_t g_t^i`, in each batch with its own weights `[B, m]`."""
    gram = np.einsum("tsii->its", products)
    p = np.einsum("its,is->it", gram, task_weights)
    squared = np.maximum(np.einsum("it,it->i", p, task_weights), 0.0)
    lengths = np.sqrt(np.einsum("itt->it", gram) * squared[:, None])
    harmed = p < -TOLERANCE * lengths
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return StepReport(
        wilson(float(harmed.any(1).sum()), len(harmed), z),
        float(harmed.sum(1).mean()),
    )
