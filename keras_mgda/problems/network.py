"""One text encoder, and a head for each problem."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from keras_mgda.layers import SharedRepresentation
from keras_mgda.problems.problem import PAIRS, Problem, output
from keras_mgda.problems.tokens import Tokenization


@keras.saving.register_keras_serializable(package="keras_mgda")
class TextPooling(layers.Layer):
    """The mean of a text's tokens, and zero for a text without any.

    Call arguments:
        tokens: `[b, l, d]`.
        is_token: `[b, l]`, bool: which are not padding.

    Returns:
        `[b, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_mgda import problems
    >>> tokens, is_token = [[[2.0], [4.0], [9.0]]], [[True, True, False]]
    >>> pooled = problems.TextPooling()(np.array(tokens), np.array(is_token))
    >>> float(pooled[0, 0])
    3.0
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: what is left has no axis of tokens."""

    def call(self, tokens: Any, is_token: Any) -> Any:
        weights = ops.expand_dims(ops.cast(is_token, tokens.dtype), -1)
        count = ops.maximum(ops.sum(weights, axis=1), 1)
        return ops.sum(tokens * weights, axis=1) / count

    def compute_output_shape(
        self, tokens_shape: Any, is_token_shape: Any
    ) -> Any:
        return (tokens_shape[0], tokens_shape[2])


def network(
    encoder: keras.Model,
    problems: Sequence[Problem],
    tokenization: Tokenization,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and outputs of a model for these problems.

    What the encoder makes of each token, marked as the shared representation,
    goes to the heads: to those of tags as it is, to those of whole texts as its
    mean over the tokens. With contrastive pairs the encoder reads both texts of
    a pair as rows of one batch, and so twice as many rows.

    Args:
        encoder: a backbone of KerasHub, or any built Keras model that maps
            token ids `[b, l]` to `[b, l, d]`, or to a dict with these as
            `"sequence_output"`. Of its inputs it gets those named `token_ids`,
            `padding_mask` (1 where there is a token) and `segment_ids` (0); a
            single input of another name gets the token ids.
        problems: the tasks, in this order.
        tokenization: the same as in `dataset`.

    Returns:
        `inputs` and `{problem: output}`, for `MGDAModel(*network(...))`, or
        `keras.Model`.

    Raises:
        ValueError: if the encoder has other inputs or outputs than these, or
            takes texts that are not as long.

    Example:

    >>> import keras, keras_mgda
    >>> from keras_mgda import problems
    >>> tone = problems.Problem(
    ...     "tone", "classification", {"train": (["ab", "b"], ["+", "-"])}
    ... )
    >>> lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    >>> tokenization = problems.Tokenization(lambda x: lookup(x) + 1)
    >>> ids = keras.Input((None,), dtype="int32")
    >>> encoder = keras.Model(ids, keras.layers.Embedding(4, 8)(ids))
    >>> model = keras_mgda.MGDAModel(
    ...     *problems.network(encoder, [tone], tokenization)
    ... )
    >>> model.compile("adam", **problems.compile_options([tone]))
    >>> batches = problems.dataset("tone", [tone], tokenization, batch_size=2)
    >>> history = model.fit(batches, shuffle=False, verbose=0).history
    >>> sorted(history)
    ['accuracy', 'loss']
    """
    longest = getattr(encoder, "max_sequence_length", None)
    if longest is not None and longest < tokenization.max_length:
        raise ValueError(
            "The encoder must take texts as long as they can be. Received: "
            f"max_length={tokenization.max_length} for an encoder of "
            f"{longest} positions. Lower `max_length`: longer texts are cut."
        )
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids")
    }
    read = inputs["token_ids"]
    pairs = any(problem.kind == PAIRS for problem in problems)
    if pairs:
        partner = keras.Input((None,), dtype="int32", name="pair_token_ids")
        inputs["pair_token_ids"] = partner
        read = ops.concatenate([read, partner], axis=0)
    mask = ops.not_equal(read, tokenization.pad)
    encoded = encoder(_arguments(encoder, read, mask))
    if isinstance(encoded, Mapping):
        encoded = encoded.get("sequence_output")
    if encoded is None or len(encoded.shape) != 3:
        raise ValueError(
            "The encoder must answer `[b, l, d]`, or a dict with "
            f"'sequence_output'. Received: {encoded} from '{encoder.name}'."
        )
    # Not the pooled output of a BERT, though a layer can mark both: problems of
    # tags and of texts would then read no tensor in common, where MGDA-UB sees
    # no conflict between them.
    tokens = SharedRepresentation()(encoded)
    partners = None
    if pairs:
        tokens, partners = ops.split(tokens, 2, axis=0)
        mask, mask_of_partners = ops.split(mask, 2, axis=0)
    text = None
    outputs = {}
    for problem in problems:
        if problem.of_kind.of_tokens:
            outputs[problem.name] = output(problem, tokens)
            continue
        if text is None:
            text = TextPooling()(tokens, mask)
        if problem.kind == PAIRS:
            pooled = TextPooling()(partners, mask_of_partners)
            both = ops.concatenate([text, pooled], axis=-1)
            outputs[problem.name] = output(problem, both)
        else:
            outputs[problem.name] = output(problem, text)
    return inputs, outputs


def _arguments(encoder: keras.Model, token_ids: Any, mask: Any) -> Any:
    """What the encoder is called with."""
    given = getattr(encoder, "input", token_ids)
    if not isinstance(given, (Mapping, list, tuple)):
        return token_ids
    names = (
        list(given) if isinstance(given, Mapping) else [x.name for x in given]
    )
    values = {
        "token_ids": token_ids,
        "padding_mask": ops.cast(mask, "int32"),
        "segment_ids": ops.zeros_like(token_ids),
    }
    if "token_ids" not in names or set(names) - set(values):
        raise ValueError(
            "The inputs of the encoder must be token ids, or have names among "
            f"{list(values)}. Received: {names} of '{encoder.name}'. Wrap it "
            "in a model that has these inputs and calls it."
        )
    if isinstance(given, Mapping):
        return {name: values[name] for name in names}
    return [values[name] for name in names]
