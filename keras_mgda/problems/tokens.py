"""From texts to the token ids that an encoder reads."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Tokens(NamedTuple):
    """The token ids of texts.

    Attributes:
        ids: of each text, with those of its start and end.
        first: for each text and each token that its labels know of, the place
            of its first piece among the ids; -1 if it has none, or was cut.
        num_cut: how many texts were longer than `max_length`.
        num_lost: how many tokens the tokenizer makes nothing of.
    """

    ids: list[list[int]]
    first: list[list[int]]
    num_cut: int
    num_lost: int


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """How texts become token ids, in training and in serving.

    Args:
        tokenizer: from a tensor of strings `[n]` to their ids: ragged
            `[n, None]`, a list of lists, or `[n]`, one id for each. A tokenizer
            of KerasHub, or a function of TensorFlow, which can be served.
        max_length: how many ids the encoder takes. Longer texts are cut.
        start: the id before each text, such as `tokenizer.cls_token_id`.
        end: the id behind it, such as `tokenizer.sep_token_id`; also behind
            what was cut.
        pad: the id that fills up shorter texts. No token has it.

    Example:

    >>> import keras, tensorflow as tf
    >>> from keras_mgda import problems
    >>> lookup = keras.layers.StringLookup(vocabulary=list("abc"))
    >>> tokenization = problems.Tokenization(
    ...     lambda x: lookup(tf.strings.unicode_split(x, "UTF-8")) + 1, 4
    ... )  # + 1: the lookup has 0 for what it does not know, which here pads
    >>> tokenization.encode(["ab", "cabca", ["ab", "c"]])
    Tokens(ids=[[2, 3], [4, 2, 3, 4], [2, 3, 4]], first=[[0], [0], [0, 2]], \
num_cut=1, num_lost=0)
    """

    tokenizer: Callable[[Any], Any]
    max_length: int = 128
    start: int | None = None
    end: int | None = None
    pad: int = 0

    def encode(self, texts: Sequence[str | Sequence[str]]) -> Tokens:
        """The ids of texts, each a string or a list of tokens."""
        parts = [[text] if isinstance(text, str) else text for text in texts]
        distinct = list(dict.fromkeys(part for text in parts for part in text))
        pieces = dict(zip(distinct, self._pieces(distinct), strict=True))
        room = self.max_length - (self.end is not None)
        ids, first, num_cut = [], [], 0
        for text in parts:
            of_text = [] if self.start is None else [self.start]
            places = []
            for part in text:
                inside = pieces[part] and len(of_text) < room
                places.append(len(of_text) if inside else -1)
                of_text += pieces[part]
            num_cut += len(of_text) > room
            of_text = of_text[:room]
            ids.append(of_text + ([] if self.end is None else [self.end]))
            first.append(places)
        # A text that is empty has no token that could be lost.
        lost = sum(
            not pieces[part] for text in parts if text != [""] for part in text
        )
        return Tokens(ids, first, num_cut, lost)

    def has_tokens(self, ids: Sequence[int]) -> bool:
        """Whether there is more in the ids of a text than start and end."""
        specials = (self.start is not None) + (self.end is not None)
        return len(ids) > specials

    def _pieces(self, strings: list[str]) -> list[list[int]]:
        found: list[list[int]] = []
        for k in range(0, len(strings), 4096):
            ids = self.tokenizer(tf.constant(strings[k : k + 4096]))
            if isinstance(ids, tf.RaggedTensor):
                ids = ids.to_list()
            elif not isinstance(ids, list):
                ids = np.asarray(ids)
                if ids.ndim != 1:
                    raise ValueError(
                        "`tokenizer` must answer ragged ids, or one for each "
                        f"string. Received: ids of shape {ids.shape}, perhaps "
                        "padded. Leave out its `sequence_length`."
                    )
                ids = ids[:, None].tolist()
            found += ids
        return found

    def preprocess(self, name: str = "text") -> Any:
        """Raw texts in front of a served model, for `export_saved_model`.

        Needs a tokenizer that is made of TensorFlow operations. An empty text
        is answered as one of padding alone.

        Args:
            name: of the input in requests.

        Returns:
            A `tf.function` from `[b]` strings to `{"token_ids": [b, l]}`.
        """

        def token_ids(text: tf.Tensor) -> dict[str, tf.Tensor]:
            ids = tf.cast(self.tokenizer(text), tf.int32)
            if ids.shape.rank == 1:  # one for each string
                ids = tf.RaggedTensor.from_tensor(ids[:, None])
            rows = tf.shape(text)[0]
            room = self.max_length - (self.start is not None)
            parts = [ids[:, : room - (self.end is not None)]]
            if self.start is not None:
                parts.insert(0, tf.fill([rows, 1], self.start))
            if self.end is not None:
                parts.append(tf.fill([rows, 1], self.end))
            dense = tf.concat(parts, 1).to_tensor(self.pad)
            missing = tf.maximum(1 - tf.shape(dense)[1], 0)
            padding = [[0, 0], [0, missing]]
            return {
                "token_ids": tf.pad(dense, padding, constant_values=self.pad)
            }

        spec = tf.TensorSpec([None], tf.string, name=name)
        return tf.function(token_ids, input_signature=[spec], autograph=False)
