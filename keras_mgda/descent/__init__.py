"""The paper: from the forward pass of one training step to its direction.

Of `m` tasks with losses `L_t`, an encoder with parameters `theta`, and the
shared representation `Z`, Algorithm 2 of Sener & Koltun (2018) is, file by file
in the order in which it runs:

1. `forward`: one forward pass leaves `Z` and the `L_t`; `readers` tells which
   tasks each part of the model serves.
2. `task_gradients`: one backward pass through the heads for each task gives
   the gradient of its head (line 2), and `dL_t/dZ`.
3. `directions`: the Gram matrix `G` of the task gradients (line 8), at `Z` for
   MGDA-UB (section 3.3), of `theta` for exact MGDA (equation 3), in
   `linalg.gram`.
4. `weightings.mgda`: the task weights `w` (line 4), the min-norm point of
   equation 3 by `linalg.min_norm`. For two tasks that holds Algorithm 1, which
   is equation 4; for more, an exact solver, or the steps of lines 6 to 14.
5. `encoder_products`: one backward pass through the encoder for
   `sum_t w_t dL_t/dtheta` (line 5); with `theta` in step 3, one for each task.
6. `MGDAModel.train_step` applies it, once, with the gradients of the heads
   (lines 2 and 5), by `training.update`.

Where tasks are the columns of one output, `columns` makes step 2 and the Gram
matrix of step 3 a closed form. `encoder_layers` and `verified` hold two more
choices for step 3, `kept_weights` skips steps 3 and 4 in some steps, and
`descent` joins all by the settings of `compile`.

References:
    Sener & Koltun, 2018. https://arxiv.org/abs/1810.04650
"""
