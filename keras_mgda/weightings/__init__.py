"""Weightings: from the Gram matrix of the task gradients to task weights.

The encoder moves by `sum_t w_t g_t`. A weighting chooses `w [m]` from the Gram
matrix `G [m, m]`, `G_ts = <g_t, g_s>`, and, where it says so, from the task
losses `L [m]` and from what it remembers. All of them run eagerly, in a graph
and under XLA. What they promise, each in its docstring:

- Non-conflicting: `<g_t, d> >= 0` for every task, up to the rounding of `G`.
- On the simplex: `w >= 0`, `sum(w) = 1`.
- Scale-invariant: `c G` gives the same weights as `G`; each weighting says by
  its property `scale_invariant` whether it is.
- Permutation-equivariant: the order of the tasks does not matter.
- Linear under scaling: `d` is a linear function of positive scales `c` of the
  task gradients `c_t g_t`.
"""

from collections.abc import Mapping
from typing import Any

import keras

from keras_mgda.weightings.alignment import IMTLG, AlignedMTL, ConFIG
from keras_mgda.weightings.balancing import DWA, FAMO, GradNorm
from keras_mgda.weightings.bargaining import FairGrad, NashMTL
from keras_mgda.weightings.linear import Fixed, Random, Uniform
from keras_mgda.weightings.mgda import EDM, MGDA
from keras_mgda.weightings.projection import CAGrad, DualProj, UPGrad
from keras_mgda.weightings.scalarization import (
    COSMOS,
    IMTLL,
    PBI,
    STCH,
    GeometricMean,
    Uncertainty,
)
from keras_mgda.weightings.smoothing import CRMOGM
from keras_mgda.weightings.state import StatefulWeighting
from keras_mgda.weightings.surgery import GradVac, PCGrad
from keras_mgda.weightings.units import DBMTL, Normalized
from keras_mgda.weightings.weighting import GramWeighting, Weighting

__all__ = [
    "COSMOS",
    "CRMOGM",
    "DBMTL",
    "DWA",
    "EDM",
    "FAMO",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "PBI",
    "STCH",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "FairGrad",
    "Fixed",
    "GeometricMean",
    "GradNorm",
    "GradVac",
    "GramWeighting",
    "NashMTL",
    "Normalized",
    "PCGrad",
    "Random",
    "StatefulWeighting",
    "UPGrad",
    "Uncertainty",
    "Uniform",
    "Weighting",
    "get",
    "names",
]

_BY_NAME: dict[str, type[Weighting]] = {
    "aligned_mtl": AlignedMTL,
    "cagrad": CAGrad,
    "config": ConFIG,
    "cosmos": COSMOS,
    "cr_mogm": CRMOGM,
    "db_mtl": DBMTL,
    "dualproj": DualProj,
    "dwa": DWA,
    "edm": EDM,
    "fairgrad": FairGrad,
    "famo": FAMO,
    "fixed": Fixed,
    "geometric_mean": GeometricMean,
    "gradnorm": GradNorm,
    "gradvac": GradVac,
    "imtl_g": IMTLG,
    "imtl_l": IMTLL,
    "mgda": MGDA,
    "nash_mtl": NashMTL,
    "pbi": PBI,
    "pcgrad": PCGrad,
    "random": Random,
    "stch": STCH,
    "uncertainty": Uncertainty,
    "uniform": Uniform,
    "upgrad": UPGrad,
}


def names() -> list[str]:
    """The names that `get` takes, sorted.

    >>> from keras_mgda import weightings
    >>> weightings.names()[:3]
    ['aligned_mtl', 'cagrad', 'config']
    """
    return sorted(_BY_NAME)


def get(identifier: Any) -> Weighting:
    """The weighting that `compile(weighting=identifier)` means.

    Args:
        identifier: a `Weighting`; the name of one, with its defaults; the
            config of one; or fixed task weights, as `Fixed` takes them.

    Raises:
        ValueError: if it is none of these.

    Example:

    >>> from keras_mgda import weightings
    >>> weightings.get("mgda").get_config()
    {'normalization': 'none', 'total': 1.0}
    >>> weightings.get({"left": 0.3, "right": 0.7}).get_config()
    {'task_weights': {'left': 0.3, 'right': 0.7}}
    """
    if isinstance(identifier, Weighting):
        return identifier
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    if isinstance(identifier, Mapping) and "class_name" in identifier:
        weighting = keras.saving.deserialize_keras_object(dict(identifier))
        if isinstance(weighting, Weighting):
            return weighting
    elif isinstance(identifier, (Mapping, list, tuple)) and identifier:
        return Fixed(identifier)
    raise ValueError(
        f"`weighting` must be one of {names()}, fixed task weights, "
        f"a `Weighting` or its config. Received: {identifier!r}."
    )
