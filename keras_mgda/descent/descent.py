"""The settings of `compile`, and what they make of one step: its direction."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_mgda import weightings
from keras_mgda.descent.directions import (
    Direction,
    Weigh,
    along,
    along_layers,
    along_losses,
    along_parameters,
    along_representation,
    along_sum,
    gram_of_representation,
)
from keras_mgda.descent.encoder_layers import (
    chosen_layers,
    last_two_layers,
    layer_names,
)
from keras_mgda.descent.forward import ForwardPass, by_task
from keras_mgda.descent.kept_weights import KeptWeights, check_update_every
from keras_mgda.descent.looks import Looks, Verify
from keras_mgda.descent.readers import losses
from keras_mgda.descent.task_gradients import (
    TaskGradients,
    add,
    of_total_loss,
    through_heads,
)
from keras_mgda.descent.verified import along_verified, verify
from keras_mgda.distribution.replicas import (
    num_replicas,
    replica_shares,
    sum_over_replicas,
)
from keras_mgda.weightings import Weighting

# What `compile(gradients=...)` takes.
Gradients = (
    Literal["representation", "parameters", "last", "verified"] | Sequence[Any]
)
_NEARLY_ALL = 0.95  # of the weight: what is left to the others changes little
# A large weight on a short gradient does not rule the direction.
_MOST = 0.55  # of the direction
_NAMES = ("last", "parameters", "representation", "verified")


class Descent:
    """Makes directions by the settings of `compile`; keeps the last weights.

    To be made in the scope of the strategy that trains.

    Args:
        model: that is trained.
        task_names: of the `m` tasks, in order.
        output_names: of the outputs that these are, or are columns of.
        weighting: as in `MGDAModel.compile`, as the others are.
        gradients: which task gradients the weighting sees.
        verify: what is looked at.
        verify_every: at the first of how many steps.
        max_corrections: of a verified direction.
        update_every: for how many steps task weights are used.

    Attributes:
        weighting: the one that was given, built for these tasks.
        output_names: as given.
        config: the rest, as `compile` takes it again.
        task_weights: `[m]`, a variable: those of the last step.
        gram: `[m, m]`, a variable: what these were chosen by, or the one at
            `Z` with `gradients="verified"`; NaN if no Gram matrix chose them.
        looks: at which steps `verify` looks, and what it found.

    Raises:
        ValueError: if `gradients` is none of the names, nor a list of layers;
            if the weighting cannot be asked again in the same step, where
            that is needed, or its weights cannot be kept for several; if
            `verify` or `verify_every` is none that there is.
    """

    def __init__(
        self,
        model: keras.Model,
        task_names: Sequence[str],
        output_names: Sequence[str],
        *,
        weighting: Any,
        gradients: Gradients,
        verify: Verify,
        verify_every: int,
        max_corrections: int,
        update_every: int,
    ) -> None:
        self.looks = Looks(verify, verify_every)
        # A copy, for `build` must not change that of another model.
        self.weighting: Weighting = copy.copy(weightings.get(weighting))
        if gradients == "verified":
            _check_verified(self.weighting, max_corrections)
        replicas = model.distribute_strategy.num_replicas_in_sync
        check_update_every(update_every, gradients, replicas)
        self.weighting.build(task_names)
        along_gradients = _along_gradients(gradients, model, max_corrections)
        self._along_gradients = (
            along_gradients
            if self.weighting.uses_gram
            else along_representation  # to look at, not to choose by
        )
        self._task_names = list(task_names)
        self.output_names = list(output_names)
        self._kept = (
            KeptWeights(update_every, len(task_names))
            if update_every > 1
            else None
        )
        self.config = {
            "gradients": layer_names(gradients),
            "verify": verify,
            "verify_every": verify_every,
            "max_corrections": max_corrections,
            "update_every": update_every,
        }
        # Not a part of the model's state.
        self.task_weights = tf.Variable(
            tf.fill([len(task_names)], float("nan")),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self.gram = tf.Variable(
            tf.fill([len(task_names)] * 2, float("nan")),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        # Sums over steps, see `_share_of_weight`.
        self._shares = tf.Variable(
            tf.zeros([3, len(task_names)]),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self._has_warned = False
        # Of the first step whose losses the weighting is not defined for.
        self._refused_losses = tf.Variable(
            tf.fill([len(task_names)], float("nan")),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    @property
    def states(self) -> dict[str, keras.layers.Layer | None]:
        """What is remembered from step to step: `{name: layer}`."""
        return {
            "weighting": self.weighting.state,
            "reuse": self._kept and self._kept.state,
            "looks": self.looks.state,
        }

    @property
    def is_plain_sum(self) -> bool:
        """Whether steps are those of stock Keras, and nobody looks at tasks."""
        return (
            isinstance(self.weighting, weightings.Uniform)
            and self._kept is None
            and not self.config["verify"]
        )

    @property
    def nests_gradients(self) -> bool:
        """Whether steps differentiate gradients, or take some in a branch."""
        return (
            self.config["verify"] is True
            or self._kept is not None
            or (
                self.weighting.uses_gram
                and self.config["gradients"] != "representation"
            )
        )

    @property
    def cost(self) -> str:
        """What a step looks at, and its backward passes, in a sentence."""
        m, gradients = len(self._task_names), self.config["gradients"]
        if not self.weighting.uses_gram:
            looks = (
                f"Task gradients: none, for {type(self.weighting).__name__} "
                "does not look at them. A step takes one backward pass, as "
                "that of the plain sum"
            )
        elif gradients == "representation":
            looks = (
                "Task gradients: at the shared representation (MGDA-UB). A "
                "step takes one backward pass through the encoder"
            )
        elif gradients == "parameters":
            looks = (
                "Task gradients: of all shared variables. A step takes "
                f"{m} backward passes through the encoder"
            )
        elif gradients == "verified":
            looks = (
                "Task gradients: at the shared representation and of the "
                "encoder's last layer, and products with all others. A step "
                "takes one backward pass through the encoder and its "
                "derivative, and as much again for each correction"
            )
        else:
            layers = gradients if gradients != "last" else "the last two layers"
            looks = (
                f"Task gradients: of {layers}. A step takes one backward pass "
                f"through the encoder, and {m} through these layers"
            )
        if self._kept is not None:
            every = self.config["update_every"]
            looks += f"; {every - 1} of {every} steps take one"
        return f"{looks}."

    def direction(
        self,
        forward: ForwardPass,
        variables: Sequence[keras.Variable],
        total_loss: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> Direction:
        """What the variables move along in one step.

        With labels counted, the loss of a task that has `N` on this replica and
        `N'` on all of the `r` replicas weighs `r N / N'` here, so that the sum
        over replicas is the mean over all labelled examples.

        Args:
            forward: the forward pass.
            variables: the trainable variables of the model.
            total_loss: `[]`, what `compute_loss` returned: the task losses
                times their loss weights, and what belongs to no task.
            loss_scale: `[]`, what the gradients are to be multiplied by. The
                weighting sees them without.
        """
        forward.complete(self.output_names)
        if forward.asked == "once":
            return along_sum(forward, variables, total_loss, loss_scale)
        # Seeds are `d total_loss / dL_t`: loss weights, and the loss scale.
        seeds, rest = of_total_loss(forward, variables, total_loss, loss_scale)
        if forward.num_labels:
            num_labels = forward.labels_by_task
            shares = forward.by_output(replica_shares(num_labels))
            seeds = [
                [seed * tf.cast(share, seed.dtype) for seed in of_output]
                for of_output, share in zip(seeds, shares, strict=True)
            ]
        task_losses = _weighted_losses(forward, seeds) / loss_scale
        if self.weighting.uses_losses:
            task_losses = sum_over_replicas(task_losses)

        def weigh(gram: tf.Tensor) -> tf.Tensor:
            # The weighting may remember, and TensorFlow runs what depends on no
            # data even where the data have ended.
            with tf.control_dependencies([task_losses]):
                return self.weighting(gram / loss_scale**2, task_losses)

        looks = self.config["verify"] is True
        if self.weighting.uses_gram or looks:
            gradients = through_heads(forward, variables, seeds)
            found = self._along(gradients, weigh, task_losses, loss_scale)
            if looks and found.verification is None:
                due = self.looks.is_due(task_losses)
                found = verify(gradients, found, due)
        else:
            gram = tf.zeros([forward.num_tasks] * 2)
            task_weights = self._kept_or(
                lambda: (weigh(gram), True), task_losses
            )
            if _are_ones(task_weights) and not forward.num_labels:
                found = along_sum(forward, variables, total_loss, loss_scale)
                rest = [None] * len(rest)  # is a part of that sum
            else:
                found = along_losses(forward, variables, seeds, task_weights)
            if tf.get_static_value(loss_scale) != 1.0:
                gram = _gram_of_overflow(forward, variables, seeds, found)
                found = found._replace(gram=gram)
        # What belongs to no task enters once, outside the simplex.
        return found._replace(
            gradients=list(map(add, found.gradients, rest)),
            admitted=self._admitted(task_losses),
        )

    @property
    def may_refuse_losses(self) -> bool:
        """Whether there are losses that the weighting is not defined for."""
        weighting = self.weighting
        return weighting.uses_losses and (
            weighting.positive_losses
            or type(weighting).admits is not Weighting.admits
        )

    def _admitted(self, task_losses: tf.Tensor) -> tf.Tensor | None:
        """Whether the losses are ones that the weighting is defined for."""
        if not self.may_refuse_losses:
            return None
        admitted = tf.reduce_all(self.weighting.admits(task_losses))
        first = tf.reduce_all(tf.math.is_nan(self._refused_losses))
        self._refused_losses.assign(
            tf.where(~admitted & first, task_losses, self._refused_losses)
        )
        return admitted

    def check_losses(self) -> None:
        """Raises if a step met losses that the weighting is not defined for.

        Such a step changed nothing. Reads a variable, so costs a wait for the
        step, where there are such losses.
        """
        if not self.may_refuse_losses:
            return
        refused = self._refused_losses.numpy()
        if np.isnan(refused).all():
            return
        self._refused_losses.assign(np.full_like(refused, np.nan))
        names = zip(self._task_names, refused.tolist(), strict=True)
        raise self.weighting.losses_error(dict(names))

    def _along(
        self,
        gradients: TaskGradients,
        weigh: Weigh,
        task_losses: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> Direction:
        """The direction by new task weights, or by those that are kept."""
        if self._kept is None:
            return self._along_gradients(gradients, weigh)

        def choose() -> tuple[tf.Tensor, tf.Tensor]:
            # A graph prunes the direction itself, which nobody asks for here.
            found = self._along_gradients(gradients, weigh)
            self.gram.assign(found.gram / loss_scale**2)
            return found.task_weights, tf.linalg.trace(found.gram) != 0

        return along(
            gradients,
            self._kept_or(choose, task_losses),
            gram_of_representation(gradients),
        )

    def _kept_or(
        self,
        choose: Callable[[], tuple[tf.Tensor, Any]],
        task_losses: tf.Tensor,
    ) -> tf.Tensor:
        if self._kept is None:
            return choose()[0]
        with tf.control_dependencies([task_losses]):
            return self._kept.weights(choose)

    def note(
        self, direction: Direction, skips: bool, loss_scale: tf.Tensor
    ) -> None:
        """Notes what a step found.

        Args:
            direction: of the step.
            skips: whether a step that is not finite is skipped.
            loss_scale: `[]`, what the gradients were multiplied by.
        """
        self.task_weights.assign(direction.task_weights)
        if self.weighting.uses_gram:
            if self._kept is None:
                gram = direction.gram / loss_scale**2
                self.gram.assign(gram)
            else:  # that of the step that chose
                gram = self.gram.read_value()
            self._shares.assign_add(
                _share_of_weight(direction.task_weights, gram)
            )
        found = direction.verification
        if self.config["verify"] is True and found is not None:
            self.looks.note(found, direction.looked, finite=skips)

    def warning(self) -> str | None:
        """That one task had nearly all the weight since the last call, once."""
        of_weight, of_direction, number = self._shares.numpy()
        self._shares.assign(tf.zeros_like(self._shares))
        t = int(of_weight.argmax())
        share = of_weight[t] / max(number[t], 1.0)
        if (
            self._has_warned
            or len(of_weight) < 2
            or share <= _NEARLY_ALL
            or of_direction[t] <= _MOST * number[t]
        ):
            return None
        self._has_warned = True
        return (
            f"Task '{self._task_names[t]}' had {share:.0%} of the weight on "
            "average in this epoch: the encoder learns next to nothing from "
            "the others. If that is not what you want, compile with "
            "`weighting='imtl_g'`, which does not depend on the units of the "
            "losses, or with `weighting='uniform'`, the plain sum; "
            "`keras_mgda.diagnose(model, data)` tells the reason."
        )


def _share_of_weight(task_weights: tf.Tensor, gram: tf.Tensor) -> tf.Tensor:
    """`[3, m]`: shares of `w_t`, of `w_t ||g_t||`, and ones to count them.

    Zero for a step that is not finite.
    """
    w = tf.abs(task_weights)
    lengths = w * tf.sqrt(tf.maximum(tf.linalg.diag_part(gram), 0.0))
    shares = tf.stack(
        [
            w / tf.reduce_sum(w),
            lengths / tf.reduce_sum(lengths),
            tf.ones_like(w),
        ]
    )
    known = tf.reduce_all(tf.math.is_finite(shares))
    return tf.where(known, shares, tf.zeros_like(shares))


def _along_gradients(
    gradients: Gradients, model: keras.Model, max_corrections: int
) -> Callable[[TaskGradients, Weigh], Direction]:
    """The function that `gradients` stands for.

    Raises:
        ValueError: if it is none of the names, nor a list of layers.
    """
    if isinstance(gradients, (list, tuple)) and gradients:
        find = chosen_layers(model, list(gradients))
        return functools.partial(along_layers, find=find)
    if gradients == "representation":
        return along_representation
    if gradients == "parameters":
        return along_parameters
    if gradients == "last":
        return functools.partial(along_layers, find=last_two_layers())
    if gradients == "verified":
        return functools.partial(
            along_verified, max_corrections=max_corrections
        )
    raise ValueError(
        f"`gradients` must be one of {list(_NAMES)}, or a list of layers of "
        f"the encoder. Received: {gradients!r}."
    )


def _check_verified(weighting: Weighting, max_corrections: int) -> None:
    if not weighting.uses_gram or weighting.remembers:
        raise ValueError(
            "`gradients='verified'` must have a weighting that chooses by the "
            "Gram matrix and keeps no state: a correction weighs again. "
            f"Received: {type(weighting).__name__}. Use another, such as "
            "'mgda', or `verify=True` to look at what this one does."
        )
    if (
        isinstance(max_corrections, bool)
        or not isinstance(max_corrections, int)
        or max_corrections < 0
    ):
        raise ValueError(
            "`max_corrections` must be a whole number, not negative. "
            f"Received: {max_corrections!r}."
        )


def _weighted_losses(
    forward: ForwardPass, seeds: Sequence[list[tf.Tensor]]
) -> tf.Tensor:
    """`[m]`, float32: the task losses as they enter the total loss."""
    return by_task(
        [
            tf.add_n(
                [
                    tf.cast(loss, tf.float32) * tf.cast(seed, tf.float32)
                    for loss, seed in zip(of_output, seeds_of, strict=True)
                ]
            )
            for of_output, seeds_of in zip(losses(forward), seeds, strict=True)
        ]
    )


def _gram_of_overflow(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    seeds: Sequence[list[tf.Tensor]],
    found: Direction,
) -> tf.Tensor:
    """The Gram matrix, where gradients overflowed: it tells whose these are."""
    m = forward.num_tasks

    def gram() -> tf.Tensor:
        gradients = through_heads(forward, variables, seeds)
        return gram_of_representation(gradients)

    if num_replicas() > 1:  # whose sums cannot stand in a branch of the graph
        return gram()
    finite = [
        tf.reduce_all(tf.math.is_finite(getattr(g, "values", g)))
        for g in found.gradients
        if g is not None
    ]
    return tf.cond(tf.reduce_all(finite), lambda: tf.zeros([m, m]), gram)


def _are_ones(task_weights: tf.Tensor) -> bool:
    """Whether the weights are known to be one before any step is made."""
    known = tf.get_static_value(task_weights)
    return known is not None and bool((known == 1.0).all())
