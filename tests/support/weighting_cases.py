"""The family of weightings: what each promises, and those that remember."""

import functools

from keras_mgda import weightings
from keras_mgda.weightings import (
    CRMOGM,
    DWA,
    FAMO,
    CAGrad,
    FairGrad,
    GradNorm,
    GradVac,
    NashMTL,
    PCGrad,
    Random,
    Uncertainty,
)

IDENTIFIERS = sorted(weightings._BY_NAME)
TASKS = ("a", "b", "c")
STATEFUL = {
    "cr_mogm": CRMOGM,
    "cr_mogm of famo": lambda: CRMOGM(FAMO()),
    "dwa": lambda: DWA(period=3),
    "famo": FAMO,
    "gradnorm": GradNorm,
    "gradvac": lambda: GradVac(seed=1),
    "pcgrad": lambda: PCGrad(seed=1),
    "random": lambda: Random(seed=1),
    "uncertainty": Uncertainty,
}
PROMISES = {
    "aligned_mtl": "scale permutation",
    "cagrad": "scale permutation",
    "config": "scale permutation linear",
    "cr_mogm": "simplex scale permutation",
    "dualproj": "non_conflicting scale permutation",
    "dwa": "scale permutation",
    "edm": "non_conflicting simplex scale permutation_of_line",
    "fairgrad": "non_conflicting permutation",
    "famo": "simplex scale permutation",
    "fixed": "scale permutation linear",
    "geometric_mean": "scale permutation",
    "gradnorm": "scale permutation",
    "gradvac": "scale",
    "imtl_g": "scale permutation",
    "mgda": "non_conflicting simplex scale permutation",
    "nash_mtl": "non_conflicting permutation",
    "pcgrad": "scale linear",
    "random": "simplex scale linear",
    "stch": "scale permutation",
    "uncertainty": "scale permutation",
    "uniform": "scale permutation linear",
    "upgrad": "non_conflicting scale permutation linear",
}
SEEDED = {"gradvac": GradVac, "pcgrad": PCGrad, "random": Random}
OTHERS = {
    "cagrad c=1": (functools.partial(CAGrad, 1.0), "non_conflicting"),
    "cr_mogm of nash_mtl": (lambda: CRMOGM(NashMTL()), "non_conflicting"),
    "fairgrad alpha=2": (functools.partial(FairGrad, 2.0), "non_conflicting"),
    "nash_mtl unlimited": (functools.partial(NashMTL, None), "scale"),
}


def state(model):
    """`{name: array}`, with what a wrapped weighting remembers."""
    layer, values = model._descent.weighting.state, {}
    while layer is not None:
        values |= {
            variable.path: variable.numpy() for variable in layer.weights
        }
        layer = getattr(layer, "inner", None)
    return list(values.values())
