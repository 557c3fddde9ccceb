"""The `m x m` mathematics, in TensorFlow alone: no Keras, no state.

`gram` makes the Gram matrix of the task gradients, `min_norm` finds the point
of smallest norm in their convex hull, by the pivots of `quadratic_program`, and
`gram_update` learns a Gram matrix from products with it.
"""
