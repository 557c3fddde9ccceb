"""The paper: from the forward pass of one training step to its direction.

Of `m` tasks with losses `L_t`, an encoder with parameters `theta`, and the
shared representation `Z`, Algorithm 2 of Sener & Koltun (2018) is, file by file
in the order in which it runs:

1. `forward.record_forward_pass`: one forward pass leaves `Z` and the `L_t`;
   `readers` tells which tasks each part of the model serves.
2. `task_gradients.through_heads`: one backward pass through the heads for each
   task gives the gradient of its head (line 2), and `dL_t/dZ`.
3. `directions.along_representation` is MGDA-UB (section 3.3): the Gram matrix
   `G` of the task gradients at `Z` (line 8), in `linalg.gram`;
   `directions.along_parameters` is exact MGDA: the one of `theta`.
4. `weightings.mgda`: the task weights `w` (line 4), the min-norm point of
   equation 3 by `linalg.min_norm.min_norm_point`, with its duality gap. For two
   tasks that holds Algorithm 1, which is equation 4; for more, an exact active
   set. The paper's Frank-Wolfe steps (lines 6 to 14) stand there, too, to be
   compared with: no training step takes them.
5. `encoder_products.pull_back`: one backward pass through the encoder for
   `sum_t w_t dL_t/dtheta` (line 5). Exact MGDA made its passes, one for each
   task, in item 3.
6. `MGDAModel.train_step` applies it, once, with the gradients of the heads
   (lines 2 and 5), by `training.update`.

Where tasks are the columns of one output, `columns` makes item 2 and the Gram
matrix of item 3 a closed form. `encoder_layers` and `verified` hold two more
choices for item 3, `kept_weights` leaves out items 3 and 4 in some training
steps, and `descent` joins all by the settings of `compile`.

References:
    Sener & Koltun, 2018. https://arxiv.org/abs/1810.04650
"""
