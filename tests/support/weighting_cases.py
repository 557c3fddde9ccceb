"""The family of weightings: what each promises, and those that remember."""

import functools

import keras

from keras_mgda import weightings
from keras_mgda.weightings import (
    CRMOGM,
    DWA,
    FAMO,
    IMTLL,
    MGDA,
    CAGrad,
    FairGrad,
    Fixed,
    GradNorm,
    GradVac,
    NashMTL,
    Normalized,
    PCGrad,
    Random,
    Uncertainty,
    UPGrad,
)

IDENTIFIERS = weightings.names()
TASKS = ("a", "b", "c")


def _schedule():
    return keras.optimizers.schedules.PolynomialDecay(0.5, 30, 2.0)


STATEFUL = {
    "cr_mogm": CRMOGM,
    "cr_mogm of famo": lambda: CRMOGM(FAMO()),
    "dwa": lambda: DWA(period=3),
    "famo": FAMO,
    "gradnorm": GradNorm,
    "fixed by schedule": lambda: Fixed([0.5, _schedule(), 2.0]),
    "gradvac": lambda: GradVac(seed=1),
    "imtl_l": IMTLL,
    "normalized pcgrad": lambda: Normalized(PCGrad(seed=1), "loss"),
    "pcgrad": lambda: PCGrad(seed=1),
    "random": lambda: Random(seed=1),
    "uncertainty": Uncertainty,
}
PROMISES = {
    "aligned_mtl": "scale permutation",
    "cagrad": "scale permutation",
    "config": "scale permutation linear",
    "cosmos": "scale permutation",
    "cr_mogm": "simplex scale permutation",
    "db_mtl": "scale permutation",
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
    "imtl_l": "scale permutation",
    "mgda": "non_conflicting simplex scale permutation",
    "nash_mtl": "non_conflicting permutation",
    "pbi": "scale permutation",
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
    "mgda l2": (functools.partial(MGDA, "l2"), "non_conflicting permutation"),
    "mgda loss": (
        functools.partial(MGDA, "loss"),
        "non_conflicting scale permutation",
    ),
    "nash_mtl unlimited": (
        functools.partial(NashMTL, None),
        "non_conflicting scale permutation",
    ),
    "normalized upgrad": (
        lambda: Normalized(UPGrad()),
        "non_conflicting permutation",
    ),
    "normalized upgrad loss": (
        lambda: Normalized(UPGrad(), "loss"),
        "non_conflicting scale permutation",
    ),
    "normalized nash_mtl loss+": (
        lambda: Normalized(NashMTL(), "loss+"),
        "non_conflicting permutation",
    ),
    "cr_mogm of fairgrad": (lambda: CRMOGM(FairGrad()), "permutation"),
    "normalized pcgrad": (
        lambda: Normalized(PCGrad(seed=1), "loss"),
        "scale",
    ),
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
