"""From texts and labels to batches."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mgda import problems
from tests.support.refusal import refused

# Ids: "a" is 1, "b" 2, and so on; a word has one for each letter.
LETTERS = "abcdefgh"


lookup = keras.layers.StringLookup(vocabulary=list(LETTERS), num_oov_indices=0)


def tokenizer(texts):
    letters = tf.strings.unicode_split(texts, "UTF-8")
    return tf.ragged.map_flat_values(lambda x: lookup(x) + 1, letters)


TOKENS = problems.Tokenization(tokenizer, max_length=6)
SPECIAL = problems.Tokenization(tokenizer, max_length=6, start=20, end=21)


def tagging(texts, tags, name="tags", **options):
    return problems.Problem(
        name, "tagging", {"train": (texts, tags)}, **options
    )


def classes(texts, labels, name="tone", **options):
    data = {"train": (texts, labels)}
    return problems.Problem(name, "classification", data, **options)


def once(expression, some, tokenization=TOKENS, batch_size=8, **options):
    return list(
        problems.dataset(
            expression,
            some,
            tokenization,
            batch_size,
            sampling="once",
            **options,
        )
    )


def test_an_iterator_that_ends_waits_for_no_tuner():
    batches = problems.dataset("tone", [classes([["a"]], ["+"])], TOKENS, 1)
    assert batches.options().autotune.enabled is False


class TestLabels:
    def test_pieces_after_the_first_do_not_count(self):
        problem = tagging([["ab", "c"], ["d", "", "efg"]], ["NV", "VVN"])
        ((x, y, weight),) = once("tags", [problem], SPECIAL)
        np.testing.assert_array_equal(
            x["token_ids"], [[20, 1, 2, 3, 21, 0], [20, 4, 5, 6, 7, 21]]
        )
        np.testing.assert_array_equal(
            weight["tags"], [[0, 1, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
        )
        tags = np.where(weight["tags"], y["tags"], -1)
        # Of "" nothing is left, and so its tag is none.
        assert tags.tolist() == [[-1, 0, -1, 1, -1, -1], [-1, 1, 0, -1, -1, -1]]

    def test_missing_tags_and_missing_rows(self):
        problem = tagging([list("abc"), list("ab")], [["N", None, "V"], None])
        ((_, y, weight),) = once("tags", [problem])
        assert weight["tags"].numpy().tolist() == [[1, 0, 1], [0, 0, 0]]
        assert y["tags"].numpy().tolist() == [[0, 0, 1], [0, 0, 0]]

    def test_classes(self):
        problem = classes(["a", "b", "c"], ["+", None, "-"])
        ((_, y, weight),) = once("tone", [problem])
        assert y["tone"].numpy().tolist() == [0, 0, 1]
        assert weight["tone"].numpy().tolist() == [1, 0, 1]

    def test_several_classes(self):
        problem = problems.Problem(
            "topics",
            "multi-label",
            {"train": (["a", "b", "c", "d"], [{"x"}, ["y", "x"], (), None])},
        )
        ((_, y, weight),) = once("topics", [problem])
        assert y["topics"].numpy().tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]
        assert weight["topics"].numpy().tolist() == [1, 1, 1, 0]

    @pytest.mark.parametrize("labels", [[1.0, None], [[1, 2], None]])
    def test_numbers(self, labels):
        problem = problems.Problem(
            "n", "regression", {"train": (["a", "b"], labels)}
        )
        ((_, y, weight),) = once("n", [problem])
        assert y["n"].shape == (2, problem.size) == (2, np.size(labels[0]))
        np.testing.assert_array_equal(y["n"][0], np.reshape(labels[0], -1))
        assert weight["n"].numpy().tolist() == [1, 0]

    def test_pairs(self):
        problem = problems.Problem(
            "same",
            "contrastive pairs",
            {"train": (["ab", "c", "d"], ["ba", None, "efgh"])},
        )
        ((x, y, weight),) = once("same", [problem])
        np.testing.assert_array_equal(
            x["pair_token_ids"], [[2, 1, 0, 0], [0] * 4, [5, 6, 7, 8]]
        )
        assert y["same"].numpy().ravel().tolist() == [1, 0, 1]
        assert weight["same"].numpy().tolist() == [1, 0, 1]

    def test_masks(self):
        texts = ["abcd"] * 500
        problem = problems.Problem(
            "mlm",
            "masked language modelling",
            {"train": (texts, None)},
            classes=9,
            mask_id=8,
            mask_rate=0.3,
        )
        first, second = (
            once("mlm", [problem], SPECIAL, 500, seed=0)[0] for _ in range(2)
        )
        x, y, weight = (part for part in first)
        shown, true = x["token_ids"].numpy(), y["mlm"].numpy()
        chosen = weight["mlm"].numpy() > 0
        np.testing.assert_array_equal(true[0], [20, 1, 2, 3, 4, 21])
        np.testing.assert_array_equal(shown[~chosen], true[~chosen])
        assert not chosen[:, [0, -1]].any()
        inside = chosen[:, 1:-1]
        assert abs(inside.mean() - 0.3) < 0.06  # 2000 tokens, five sigma
        masked = (shown == 8)[chosen].mean()
        assert abs(masked - 0.81) < 0.09  # and random ones hit it, too
        assert abs((shown == true)[chosen].mean() - 0.11) < 0.07
        np.testing.assert_array_equal(shown, second[0]["token_ids"])
        joined = problems.dataset("mlm", [problem], SPECIAL, 500, seed=0)
        again = [x["token_ids"].numpy() for x, _, _ in joined.repeat(2)]
        assert len(again) == 2
        assert (again[0] != again[1]).any()


class TestSampling:
    def some(self, sizes):
        few = classes(["abc"] * sizes[0], ["+"] * sizes[0], name="few")
        many = classes(["de"] * sizes[1], ["-"] * sizes[1], name="many")
        return [few, many]

    @pytest.mark.parametrize(
        ("sampling", "share"), [("proportional", 0.1), ("uniform", 0.5)]
    )
    def test_shares(self, sampling, share):
        joined = problems.dataset(
            "few|many",
            self.some([40, 360]),
            TOKENS,
            20,
            sampling=sampling,
            seed=1,
        )
        assert len(joined) == 20
        weights = [w["few"].numpy().mean() for _, _, w in joined]
        assert abs(np.mean(weights) - share) < 5 * np.sqrt(share / 400)

    def test_the_same_examples_have_all_labels(self):
        texts = [list("ab"), list("c")]
        some = [tagging(texts, ["NV", "V"]), classes(texts, "+-")]
        other = classes(["d"], ["x"], name="other")
        ((x, _, weight),) = once("tags&tone|other", [*some, other])
        np.testing.assert_array_equal(x["token_ids"], [[1, 2], [3, 0], [4, 0]])
        assert weight["tags"].numpy().tolist() == [[1, 1], [1, 0], [0, 0]]
        assert weight["tone"].numpy().tolist() == [1, 1, 0]
        assert weight["other"].numpy().tolist() == [0, 0, 1]

    def test_buckets(self):
        texts = ["ab"] * 8 + ["abcdef"] * 8
        joined = problems.dataset(
            "tone",
            [classes(texts, ["+"] * 16)],
            TOKENS,
            4,
            bucket_boundaries=[3],
            seed=0,
        )
        lengths = [x["token_ids"].shape[1] for x, _, _ in joined]
        assert set(lengths) <= {3, 6}

    def test_padding_has_the_id_of_padding(self):
        tokenization = problems.Tokenization(tokenizer, pad=9)
        ((x, _, _),) = once("tone", [classes(["a", "bc"], "+-")], tokenization)
        np.testing.assert_array_equal(x["token_ids"], [[1, 9], [2, 3]])


class TestRules:
    def test_long_texts_are_cut_with_their_labels_and_counted(self):
        texts = [list("abcdefgh"), list("ab")]
        problem = tagging(texts, ["NNNNNNNV", "NV"])
        with pytest.warns(UserWarning, match="cut to 6 token ids: 1"):
            ((x, _, weight),) = once("tags", [problem], SPECIAL)
        np.testing.assert_array_equal(x["token_ids"][0], [20, 1, 2, 3, 4, 21])
        assert weight["tags"][0].numpy().tolist() == [0, 1, 1, 1, 1, 0]

    def test_empty_texts_are_left_out_and_counted(self):
        problem = classes(["", "a", []], "+-+")
        with pytest.warns(UserWarning, match="left out, for they are empty: 2"):
            ((x, y, _),) = once("tone", [problem], SPECIAL)
        assert x["token_ids"].shape[0] == 1
        assert y["tone"].numpy().tolist() == [1]

    def test_texts_that_the_tokenizer_makes_nothing_of_are_empty(self):
        def spaces(texts):
            return tokenizer(tf.strings.regex_replace(texts, " ", ""))

        tokenization = problems.Tokenization(spaces, start=20, end=21)
        problem = classes(["ab", " ", "c"], "+-+")
        with pytest.warns(UserWarning, match="for they are empty: 1"):
            ((x, y, _),) = once("tone", [problem], tokenization)
        assert x["token_ids"][:, 1].numpy().tolist() == [1, 3]
        assert y["tone"].numpy().tolist() == [0, 0]
        pairs = problems.Problem(
            "same",
            "contrastive pairs",
            {"train": (["ab", "c", "d", "e"], ["ba", " ", None, ""])},
        )
        with pytest.warns(UserWarning, match="makes nothing of them: 1"):
            ((_, _, weight),) = once("same", [pairs], tokenization)
        assert weight["same"].numpy().tolist() == [1, 0, 0, 0]

    def test_nan_is_no_class(self):
        labels = [1.0, float("nan"), 0.0, float("nan")]
        with refused("A class must be equal to itself"):
            classes(list("abcd"), labels)
        known = [None if y != y else y for y in labels]
        ((_, _, weight),) = once("tone", [classes(list("abcd"), known)])
        assert weight["tone"].numpy().tolist() == [1, 0, 1, 0]

    def test_two_problems_of_one_name(self):
        with refused("Each problem must have a name of its own"):
            once("tone", [classes(["a"], "+"), classes(["b"], "-")])

    def test_nothing_to_say_nothing_said(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            once("tone", [classes(["a"], "+")])

    def test_all_texts_empty(self):
        with refused("must have a text that is not empty"):
            once("tone", [classes(["", ""], "+-")])


class TestBadInput:
    def test_labels_longer_than_their_tokens(self):
        texts = [list("ab"), list("abc")]
        with refused("as many tags.*'NVN'"):
            once("tags", [tagging(texts, ["NVN", "NVN"])])
        once("tags", [tagging(texts, ["NV", "NVN"])])

    def test_a_string_to_tag(self):
        with refused("needs a list of tokens.*list\\(text\\)"):
            once("tags", [tagging(["ab"], ["NV"])])
        once("tags", [tagging([list("ab")], ["NV"])])

    def test_an_unknown_tag_at_evaluation(self):
        texts = [list("ab")]
        data = {"train": (texts, ["NV"]), "test": (texts, ["NX"])}
        problem = problems.Problem("tags", "tagging", data)
        with refused("must be one of the problem's classes.*'X'.*classes"):
            once("tags", [problem], split="test")
        for tags, known in ((["N", None], None), ("NX", "NVX")):
            data["test"] = (texts, [tags])
            problem = problems.Problem("tags", "tagging", data, known)
            once("tags", [problem], split="test")

    def test_no_data(self):
        for data in ({}, {"train": ([], [])}, {"train": (["a"], [])}):
            with refused("must have data, with a label for each text"):
                problems.Problem("tone", "classification", data)

    def test_no_such_split(self):
        with refused("must have data in the split.*'test'"):
            once("tone", [classes(["a"], "+")], split="test")

    def test_an_unknown_problem(self):
        with refused("must name the problems that are given.*'tome'"):
            once("tome", [classes(["a"], "+")])

    @pytest.mark.parametrize("texts", [["a", "c"], ["a"]])
    def test_texts_that_differ(self, texts):
        some = [
            classes(["a", "b"], "+-"),
            classes(texts, "+-"[: len(texts)], name="other"),
        ]
        with refused("must have the same texts in the same order"):
            once("tone&other", some)
        assert once("tone|other", some)

    def test_masks_beside_labels(self):
        masked = problems.Problem(
            "mlm",
            "masked language modelling",
            {"train": (["a"], None)},
            classes=9,
            mask_id=8,
        )
        some = [masked, classes(["a"], "+")]
        with refused("must have examples of its own"):
            once("mlm&tone", some)
        assert once("mlm|tone", some)

    def test_masks_without_an_id(self):
        with refused("needs the id of a mask"):
            problems.Problem(
                "mlm",
                "masked language modelling",
                {"train": (["a"], None)},
                classes=9,
            )

    def test_unknown_kind(self):
        with refused("`kind` must be one of"):
            problems.Problem("x", "parsing", {"train": (["a"], ["b"])})

    def test_classes_that_are_nowhere(self):
        with refused("classes of a problem must be given"):
            problems.Problem("x", "classification", {"test": (["a"], ["b"])})

    @pytest.mark.parametrize("label", [[1.0, 2.0], float("nan")])
    def test_numbers_that_are_none(self, label):
        data = {"train": (["a", "b"], [1.0, label])}
        with refused("must be finite numbers, as many"):
            once("n", [problems.Problem("n", "regression", data)])

    def test_padded_ids(self):
        padded = problems.Tokenization(
            lambda texts: tokenizer(texts).to_tensor(shape=[None, 4])
        )
        with refused("must answer ragged ids.*sequence_length"):
            once("tone", [classes(["a"], "+")], padded)


def test_serving_makes_the_same_ids():
    texts = ["ab", "abcdefgh", "c"]
    for tokenization in (TOKENS, SPECIAL):
        ids = tokenization.encode(texts).ids
        found = tokenization.preprocess()(tf.constant([*texts, ""]))
        for row, expected in zip(found["token_ids"].numpy(), ids, strict=False):
            assert row[: len(expected)].tolist() == expected
            assert not row[len(expected) :].any()
    empty = TOKENS.preprocess()(tf.constant([""]))
    assert empty["token_ids"].numpy().tolist() == [[0]]
