"""The `m x m` mathematics, in TensorFlow alone: no Keras, no state.

`gram` makes the Gram matrix of the task gradients and says what can pass for
one, `min_norm` finds the point of smallest norm in their convex hull, by the
pivots of `quadratic_program`, and `gram_update` learns a Gram matrix from
products with it.
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
