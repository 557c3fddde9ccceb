"""The encoder of one recorded step, by products with its Jacobian.

With `J = dZ/dtheta`, the derivative of all shared representations with respect
to variables of the encoder, a backward pass is a product `J' c`. It is linear
in `c`, and its own derivative is `J`: so the recorded forward pass serves for
products `J v`, too, with the same dropout masks and batch statistics.
"""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mgda.descent.forward import Recording
from keras_mgda.descent.task_gradients import Gradient, dense, reached, values
from keras_mgda.distribution.replicas import without_collectives


def pull_back(
    recording: Recording,
    cotangents: list[tf.Tensor],
    sources: list[tf.Variable],
) -> list[Gradient]:
    """`J' c`, one gradient for each source; `None` for one outside of it."""
    with recording.encoder_gate.opened():
        return recording.tape.gradient(
            [z.encoded for z in recording.representations],
            sources,
            output_gradients=cotangents,
        )


def push_forward(
    recording: Recording,
    sources: list[tf.Variable],
    tangents: list[tf.Tensor],
) -> list[tf.Tensor]:
    """`J v`, one derivative for each shared representation.

    Raises:
        ValueError: if an operation of the encoder has no second derivative.
    """
    anywhere = [tf.zeros_like(z.encoded) for z in recording.representations]
    try:
        with tf.GradientTape() as tape:
            tape.watch(anywhere)
            pulled = pull_back(recording, anywhere, sources)
            pairs = [
                (dense(gradient), tf.stop_gradient(tangent))
                for gradient, tangent in zip(pulled, tangents, strict=True)
                if gradient is not None
            ]
        return tape.gradient(
            [gradient for gradient, _ in pairs],
            anywhere,
            output_gradients=[tangent for _, tangent in pairs],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    except LookupError as error:
        raise ValueError(
            "To verify a direction, every operation of the encoder must have "
            f"a second derivative. Received: one that has none: {error}. "
            "Replace it, or train without `verify` and with `gradients` other "
            "than 'verified'."
        ) from error


def jacobian(
    recording: Recording,
    variables: Sequence[keras.Variable],
    candidates: Sequence[int],
    cotangents: list[tf.Tensor],
    *,
    at_once: bool = False,
) -> dict[int, tf.Tensor]:
    """`J' c_t` for every task `t`.

    Args:
        recording: of the forward pass.
        variables: the trainable variables of the model.
        candidates: indices of those to be looked at.
        cotangents: `[m, b, ...]` for each shared representation.
        at_once: pull all tasks back side by side where that is possible,
            which is fast and takes the memory of `m` backward passes; or one
            after another.

    Returns:
        `{variable index: [m, ...]}` for the candidates that are part of the
        encoder.
    """
    sources = [values(variables)[i] for i in candidates]
    if not sources:
        return {}
    encoder: set[int] = set()

    def of_one_task(of_task: list[tf.Tensor]) -> list[tf.Tensor]:
        pulled = pull_back(recording, of_task, sources)
        found = dict(zip(candidates, pulled, strict=True))
        encoder.update(i for i in candidates if found[i] is not None)
        return [
            tf.zeros_like(source) if gradient is None else dense(gradient)
            for source, gradient in zip(sources, pulled, strict=True)
        ]

    # Either way the backward pass is traced once.
    with without_collectives("the encoder with these `gradients`"):
        if at_once and _can_vectorize(recording):
            of_tasks = tf.vectorized_map(of_one_task, cotangents)
        else:
            of_tasks = tf.map_fn(
                of_one_task,
                cotangents,
                fn_output_signature=[
                    tf.TensorSpec(s.shape, s.dtype) for s in sources
                ],
                parallel_iterations=1,
            )
    by_index = dict(zip(candidates, of_tasks, strict=True))
    return {i: by_index[i] for i in candidates if i in encoder}


def _can_vectorize(recording: Recording) -> bool:
    """Not eager code, each time anew, nor loops: XLA cannot compile that."""
    return not tf.executing_eagerly() and not any(
        op.type.endswith("While") or op.type.startswith("TensorList")
        for op in recording.graph.get_operations()
    )


def indices(
    recording: Recording, variables: Sequence[keras.Variable]
) -> list[int]:
    """The variables of the encoder, in the order in which Keras has them."""
    before = {variable.ref() for variable in recording.read_before}
    candidates = [
        i for i, value in enumerate(values(variables)) if value.ref() in before
    ]
    found = reached(
        recording,
        [z.encoded for z in recording.representations],
        [values(variables)[i] for i in candidates],
    )
    return [i for i, inside in zip(candidates, found, strict=True) if inside]


def last_layers(
    variables: Sequence[keras.Variable], inside: Sequence[int], count: int
) -> list[int]:
    """The variables of the encoder from the last but `count` kernel on.

    Scales and offsets, as of a normalization, are not layers on their own: the
    task gradients of so few variables tell next to nothing of the others.
    """
    # Runs of variables, for layers of two submodels may have the same path.
    runs = itertools.groupby(inside, key=lambda i: layer_of(variables[i]))
    ordered = [list(of_layer) for _, of_layer in runs]
    kernels = [
        place
        for place, of_layer in enumerate(ordered)
        if any(len(variables[i].shape) > 1 for i in of_layer)
    ] or list(range(len(ordered)))
    first = kernels[-count:][0] if kernels else 0
    return [i for of_layer in ordered[first:] for i in of_layer]


def layer_of(variable: keras.Variable) -> str:
    """The path of the layer that holds a variable."""
    return str(variable.path.rpartition("/")[0])
