"""Weightings that alter each task gradient by the others, one after another.

The altered gradients `g'_i = sum_t C_it e_t` live as their coefficients of the
unit gradients `e_t = g_t / n_t`, whose cosines are `K`.
"""

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mgda.weightings.normalized_gram import (
    NormalizedGram,
    normalized_gram,
)
from keras_mgda.weightings.state import StatefulWeighting, Values
from keras_mgda.weightings.weighting import check_fraction


@keras.saving.register_keras_serializable(package="keras_mgda")
class PCGrad(StatefulWeighting):
    """The sum of the task gradients without what conflicts in each.

    ```
    for i:  g'_i = g_i;  for j != i, in a random order:
        g'_i -= min(<g'_i, g_j>, 0) g_j / ||g_j||^2;
    d = sum_i g'_i
    ```

    Every step and every `i` has an order of its own, a function of the seed and
    the number of the step: runs repeat, and go on where they were interrupted.

    Scale-invariant; linear under scaling; for two tasks also non-conflicting
    and permutation-equivariant, and then twice `UPGrad`. Not on the simplex:
    where no tasks conflict it is their plain sum.

    Args:
        seed: of the orders; `None` draws one.

    References:
        Yu et al., 2020. Gradient Surgery for Multi-Task Learning, algorithm 1.
        https://arxiv.org/abs/2001.06782
    """

    scale_invariant = True

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = random.getrandbits(31) if seed is None else seed

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        return {"num_steps": np.int64(0)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        steps = state["num_steps"]
        task_weights = _pcgrad(gram, tf.stack([self.seed, steps]))
        return task_weights, {"num_steps": steps + 1}

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_mgda")
class GradVac(StatefulWeighting):
    """The sum of the task gradients, each turned toward the others.

    As PCGrad, but the aim for the cosine of `g'_i` and `g_j` is not zero: it is
    its moving average `f_ij`. Where `c = cos(g'_i, g_j) < f_ij`,

    ```
    g'_i += ||g'_i|| (f_ij sqrt(1 - c^2) - c sqrt(1 - f_ij^2))
            / (||g_j|| sqrt(1 - f_ij^2)) g_j,
    ```

    and then, in any case, `f_ij <- (1 - beta) f_ij + beta c`. From `f = 0`, the
    first step is one of PCGrad.

    Scale-invariant. Not non-conflicting, not on the simplex, not linear under
    scaling, and permutation-equivariant but for the order.

    Args:
        beta: of the moving average, from 0 to 1; the paper's 0.01.
        seed: of the orders; `None` draws one.

    Raises:
        ValueError: for another `beta`.

    References:
        Wang et al., 2021. Gradient Vaccine, algorithm 1.
        https://arxiv.org/abs/2010.05874
    """

    scale_invariant = True

    def __init__(self, beta: float = 0.01, seed: int | None = None) -> None:
        super().__init__()
        self.beta = check_fraction(beta, "beta")
        self.seed = random.getrandbits(31) if seed is None else seed

    def initial_state(self, num_tasks: int) -> dict[str, Any]:
        aims = np.zeros([num_tasks, num_tasks], np.float32)
        return {"aims": aims, "num_steps": np.int64(0)}

    def step(
        self, state: Values, gram: tf.Tensor, task_losses: Any
    ) -> tuple[tf.Tensor, Values]:
        steps = state["num_steps"]
        task_weights, aims = _gradvac(
            gram, tf.stack([self.seed, steps]), state["aims"], float(self.beta)
        )
        return task_weights, {"aims": aims, "num_steps": steps + 1}

    def get_config(self) -> dict[str, Any]:
        return {"beta": self.beta, "seed": self.seed}


@tf.function(jit_compile=True, autograph=False)
def _pcgrad(gram: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    normalized = normalized_gram(gram)
    C, _ = _operate(normalized, tf.zeros_like(normalized.cosines), seed)
    return normalized.task_weights(tf.reduce_sum(C, axis=0) / normalized.norms)


@tf.function(jit_compile=True, autograph=False)
def _gradvac(
    gram: tf.Tensor, seed: tf.Tensor, aims: tf.Tensor, beta: float
) -> tuple[tf.Tensor, tf.Tensor]:
    normalized = normalized_gram(gram)
    aims = tf.cast(aims, tf.float64)
    C, met = _operate(normalized, aims, seed)
    both = normalized.active[:, None] & normalized.active
    aims = tf.where(both, (1 - beta) * aims + beta * met, aims)
    task_weights = normalized.task_weights(
        tf.reduce_sum(C, axis=0) / normalized.norms
    )
    return task_weights, tf.cast(aims, tf.float32)


def _operate(
    normalized: NormalizedGram, aims: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """All task gradients are operated on at once, each in its own order.

    Returns:
        `C [m, m]`, and the cosines `[m, m]` that were met.
    """
    n, K, active = normalized
    m = n.shape[0]
    draws = tf.random.stateless_uniform([m, m], seed, alg="philox")
    order = tf.argsort(draws, axis=1)
    tasks = tf.range(m)
    pairs = active[:, None] & active & (tasks[:, None] != tasks)
    aim_sine = tf.maximum(tf.sqrt(tf.maximum(1 - aims**2, 0)), 1e-3)

    def with_next(step: Any, C: Any, CK: Any, squares: Any, met: Any) -> Any:
        others = tf.gather(order, step, axis=1)
        pick = tf.cast(pairs & (tasks == others[:, None]), K.dtype)
        product, aim, sine = (
            tf.reduce_sum(pick * values, axis=1)
            for values in (CK, aims, aim_sine)
        )
        length = tf.sqrt(tf.maximum(squares, 0))
        cosine = tf.math.divide_no_nan(product, length)
        own_sine = tf.sqrt(tf.maximum(1 - cosine**2, 0))
        more = length * tf.math.divide_no_nan(aim * own_sine, sine) - product
        more = tf.where(cosine < aim, more, 0)
        C += more[:, None] * pick
        CK += more[:, None] * tf.gather(K, others)
        squares += more * (2 * product + more)
        return step + 1, C, CK, squares, met + cosine[:, None] * pick

    start = (0, tf.linalg.diag(n), n[:, None] * K, n**2, tf.zeros_like(K))
    _, C, _, _, met = tf.while_loop(lambda step, *_: step < m, with_next, start)
    return C, met
