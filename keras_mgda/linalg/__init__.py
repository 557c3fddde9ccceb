"""The `m x m` mathematics of `m` tasks, in TensorFlow alone.

- `gram`: the Gram matrix `G_ts = <g_t, g_s>` of the task gradients, and what a
  matrix has to be to pass for one.
- `gram_update`: what products with a Gram matrix tell of it.
- `quadratic_program`: quadratic programs in non-negative unknowns.
- `min_norm`: the min-norm point of the convex hull of the task gradients.

Nothing here knows of Keras, of losses or of weightings.
"""

from keras_mgda.linalg.gram import (
    gram_matrix,
    jacobian_gram,
    square_gram,
    symmetric_gram,
)
from keras_mgda.linalg.min_norm import MinNormPoint, min_norm_point
from keras_mgda.linalg.quadratic_program import non_negative_minimum, solve

__all__ = [
    "MinNormPoint",
    "gram_matrix",
    "jacobian_gram",
    "min_norm_point",
    "non_negative_minimum",
    "solve",
    "square_gram",
    "symmetric_gram",
]
