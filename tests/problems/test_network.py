"""Encoders and heads, trained on batches of problems."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_mgda
from keras_mgda import problems
from keras_mgda.problems.network import TextPooling
from tests.support.processes import ROOT
from tests.support.refusal import refused

LETTERS = "abcdefgh"
SIZE = 10  # of the vocabulary: 0 pads, 9 masks


lookup = layers.StringLookup(vocabulary=list(LETTERS), num_oov_indices=0)


def tokenizer(texts):
    letters = tf.strings.unicode_split(texts, "UTF-8")
    return tf.ragged.map_flat_values(lambda x: lookup(x) + 1, letters)


TOKENS = problems.Tokenization(tokenizer, max_length=8)


def encoder(width=8):
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = layers.Embedding(SIZE, width)(ids)
    is_token = ops.expand_dims(ops.not_equal(ids, 0), -1)
    x = x * ops.cast(is_token, "float32")  # padding reaches nothing
    x = x + layers.Conv1D(width, 3, padding="same", activation="tanh")(x)
    return keras.Model(ids, x)


def words(count, seed=0):
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 8, size=count)
    return [list(random.choice(list(LETTERS), size)) for size in sizes]


def tags(count=12, name="tags", seed=0):
    """A letter's tag is its half of the alphabet."""
    texts = words(count, seed)
    labels = [["B" if c < "e" else "O" for c in text] for text in texts]
    return problems.Problem(name, "tagging", {"train": (texts, labels)})


def tone(count=12, name="tone", seed=1):
    """Positive if there is an `a`."""
    texts = words(count, seed)
    labels = ["+" if "a" in text else "-" for text in texts]
    return problems.Problem(name, "classification", {"train": (texts, labels)})


def every_kind(count=48):
    texts = words(count)

    def problem(name, kind, labels, **options):
        return problems.Problem(
            name, kind, {"train": (texts, labels)}, **options
        )

    return [
        tags(count),
        tone(count, seed=0),
        problem("letters", "multi-label", [set(text) for text in texts]),
        problem("share", "regression", [t.count("a") / len(t) for t in texts]),
        problem(
            "mlm", "masked language modelling", None, classes=SIZE, mask_id=9
        ),
        problem("same", "contrastive pairs", [text[::-1] for text in texts]),
    ]


def compiled(some, optimizer="adam", made=None, **options):
    made = encoder() if made is None else made
    model = keras_mgda.MGDAModel(*problems.network(made, some, TOKENS))
    model.compile(optimizer, **problems.compile_options(some), **options)
    return model


def batches(expression, some, batch_size=12, **options):
    return problems.dataset(
        expression, some, TOKENS, batch_size, seed=0, **options
    )


@pytest.mark.slow
def test_all_epochs_follow_the_seed():
    """However far TensorFlow reads ahead: in a graph, it does so as it can."""
    some = every_kind(24)

    @tf.function
    def read(iterator):
        return tf.nest.flatten(next(iterator))

    def epochs():
        joined = batches("tags|tone&letters|mlm", some)
        return [
            [part.numpy().tolist() for part in read(iterator)]
            for _ in range(4)
            for iterator in [iter(joined)]
            for _ in range(len(joined))
        ]

    first = epochs()
    assert all(epochs() == first for _ in range(4))


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("expression", ["tags", "tone&share|mlm", "same"])
def test_a_model_of_all_evaluates_what_an_expression_names(expression):
    """As on those batches alone, and the others have no label there."""
    some = every_kind(24)
    model = compiled(some)
    found = model.evaluate(
        batches(expression, some, sampling="once"), return_dict=True
    )
    named = set(expression.replace("&", "|").split("|"))
    everything = "tags&tone&letters&share&same|mlm"
    whole = model.evaluate(
        batches(everything, some, sampling="once"), return_dict=True
    )
    for problem in some:
        name = f"{problem.name}_loss"
        if problem.name not in named:
            assert np.isnan(found[name])
        elif problem.name not in ("mlm", "same"):  # masks and rows differ
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-4)
        else:
            assert np.isfinite(found[name])
    before = model.get_layer("tone").get_weights()[0].copy()
    model.fit(batches("tags|share", some), shuffle=False, verbose=0)
    np.testing.assert_array_equal(
        model.get_layer("tone").get_weights()[0], before
    )


@pytest.mark.slow
def test_a_new_process_loads_what_was_saved(tmp_path):
    """With `import keras_mgda` alone, whatever its parts are that it loads."""
    compiled([tone(), tags()]).save(tmp_path / "m.keras")
    script = (
        "import keras, keras_mgda, sys; keras.models.load_model(sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.keras")],
        check=True,
        cwd=ROOT,
    )


def test_masked_tokens_are_pooled_without_a_warning():
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = layers.Embedding(SIZE, 4, mask_zero=True)(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems.network(keras.Model(ids, x), [tone()], TOKENS)


def test_one_id_for_each_string_is_served_as_it_is_trained():
    single = problems.Tokenization(
        lambda texts: lookup(texts) + 1, start=20, end=21
    )
    served = single.preprocess()(tf.constant(["a", "b"]))["token_ids"]
    assert served.numpy().tolist() == single.encode(["a", "b"]).ids


@pytest.mark.slow
def test_every_kind_learns():
    some = every_kind()
    model = compiled(some, keras.optimizers.Adam(0.02), weighting="uniform")
    joined = batches("tags|tone&letters&share&same|mlm", some, 24)
    history = model.fit(joined, epochs=15, shuffle=False, verbose=0).history
    for problem in some:
        losses = history[f"{problem.name}_loss"]
        # What a random mask hides cannot be found in random words.
        least = 0.97 if problem.name == "mlm" else 0.8
        assert losses[-1] < least * losses[0], problem.name
    assert {name for name in history if not name.endswith("loss")} == {
        "tags_accuracy",
        "tags_f1",
        "tone_accuracy",
        "letters_accuracy",
        "share_rmse",
        "mlm_accuracy",
    }


@pytest.mark.parametrize(
    "weighting",
    [
        "mgda",
        pytest.param("upgrad", marks=pytest.mark.slow),
        pytest.param("uniform", marks=pytest.mark.slow),
    ],
)
def test_a_batch_without_a_problem_moves_nothing_of_it(weighting):
    some = [tags(), tone()]
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    model = compiled(some, optimizer, weighting=weighting)
    (batch,) = batches("tags|tone", some, 24, sampling="once")
    model.train_on_batch(*batch)  # both have momentum now
    (only,) = [
        (x, y, w)
        for x, y, w in batches("tags|tone", some, 12, sampling="once")
        if not w["tone"].numpy().any()
    ]

    def state():
        """Head and slots of each problem, and all the rest."""
        values = {
            variable.path: variable.numpy()
            for variable in [*model.variables, *optimizer.variables]
        }
        found = {"tags": {}, "tone": {}, "rest": {}}
        for path, value in values.items():
            parts = path.replace("_", "/").split("/")
            owner = next((t for t in ("tags", "tone") if t in parts), "rest")
            found[owner][path] = value
        return found

    before = state()
    assert len(before["tone"]) == 6  # kernel, bias, and two slots of each
    model.train_on_batch(*only)
    after = state()
    for path, value in before["tone"].items():
        np.testing.assert_array_equal(after["tone"][path], value)
    for owner in ("tags", "rest"):
        moved = [(after[owner][p] != v).any() for p, v in before[owner].items()]
        assert any(moved)
    # The weights of the plain sum are all one, whatever has labels.
    assert model.task_weights["tone"] == float(weighting == "uniform")
    assert model.task_weights["tags"] > 0.0


@pytest.mark.sample(1)
def test_a_hundred_to_one_trains_both():
    """Where the share of one is that of its examples: here 1 in 101."""
    some = [tags(400, "many"), tone(4, "few")]
    model = compiled(some, keras.optimizers.Adam(0.02))
    joined = batches("many|few", some, 20)
    batches_with_few = sum(w["few"].numpy().any() for _, _, w in joined)
    assert 0 < batches_with_few < len(joined) / 2
    evaluation = batches("many|few", some, 404, sampling="once")
    before = model.evaluate(evaluation, verbose=0, return_dict=True)
    model.fit(joined, epochs=4, shuffle=False, verbose=0)
    after = model.evaluate(evaluation, verbose=0, return_dict=True)
    for name in ("many_loss", "few_loss"):
        assert after[name] < 0.97 * before[name]


def test_what_has_no_label_reaches_nothing():
    """Other labels under weight zero, and other padding: the same step."""
    some = [tags(), tone()]
    (batch,) = batches("tags|tone", some, 24, sampling="once")
    x, y, weight = batch
    changed = {
        name: tf.where(weight[name] > 0, labels, 1 - labels)
        for name, labels in y.items()
    }
    results = []
    for labels in (y, changed):
        keras.utils.set_random_seed(0)
        # Without dropout.
        model = compiled(
            [
                problems.Problem(
                    p.name, p.kind, p.data, head=layers.Dense(2, name=p.name)
                )
                for p in some
            ],
            "sgd",
        )
        found = model.train_on_batch(x, labels, weight, return_dict=True)
        results.append((found, model.get_weights()))
    (first, weights), (second, other_weights) = results
    assert first == second
    for a, b in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_are_means_over_labelled_tokens():
    some = [tags(), tone()]
    model = compiled(some, "sgd")
    (batch,) = batches("tags|tone", some, 24, sampling="once")
    x, y, weight = batch
    found = model.test_on_batch(x, y, weight, return_dict=True)
    logits = model(x, training=False)
    for name in ("tags", "tone"):
        log_p = tf.nn.log_softmax(logits[name]).numpy()
        values = -np.take_along_axis(log_p, y[name].numpy()[..., None], -1)
        labelled = weight[name].numpy() > 0
        expected = values[..., 0][labelled].mean()
        assert found[f"{name}_loss"] == pytest.approx(expected, rel=1e-5)
        right = log_p.argmax(-1) == y[name].numpy()
        assert found[f"{name}_accuracy"] == pytest.approx(
            right[labelled].mean()
        )


def test_evaluation_counts_every_example_once():
    some = [tags(50), tone(50)]
    model = compiled(some, "sgd")
    whole, parts = (
        model.evaluate(
            batches("tags|tone", some, size, sampling="once"),
            return_dict=True,
            verbose=0,
        )
        for size in (100, 7)
    )
    for name in ("tags_loss", "tone_loss", "tags_accuracy", "tone_accuracy"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)
    assert parts["tags_f1"] == pytest.approx(whole["tags_f1"])


def test_own_loss_metrics_and_head():
    metric = keras.metrics.SparseCategoricalCrossentropy(
        from_logits=True, name="own"
    )
    problem = problems.Problem(
        "tone",
        "classification",
        tone().data,
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=0
        ),
        metrics=[metric, "sparse_categorical_accuracy"],
        head=layers.Dense(2, name="own_head"),
    )
    first, second = (compiled([problem]) for _ in range(2))
    assert first.get_layer("own_head")
    history = first.fit(
        batches("tone", [problem]), shuffle=False, verbose=0
    ).history
    assert {"own", "sparse_categorical_accuracy"} <= set(history)
    options = problems.compile_options([problem])
    assert options["loss"]["tone"] is problem.loss
    assert options["metrics"]["tone"][0] is not metric
    assert second.compiled


def test_pooling_is_the_mean_of_tokens_and_zero_without():
    tokens = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    is_token = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = TextPooling()(tokens, is_token).numpy()
    expected = [tokens[0].mean(0), tokens[1, :2].mean(0), [0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_saving(tmp_path):
    some = [tags(), tone()]
    model = compiled(some)
    joined = batches("tags|tone", some)
    model.fit(joined, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x, _, _ = next(iter(joined))
    for name, logits in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(
            loaded.predict(x, verbose=0)[name], logits, rtol=1e-5, atol=1e-6
        )
    loaded.fit(joined, shuffle=False, verbose=0)


@pytest.mark.slow
def test_served_from_raw_text(tmp_path):
    some = [tags(), tone()]
    model = compiled(some)
    model.fit(batches("tags|tone", some), shuffle=False, verbose=0)
    texts = ["abc", "hgfedcbaabc", ""]
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        preprocess=TOKENS.preprocess(),
        postprocess=problems.answers(some),
        warmup={"text": texts},
    )
    served = tf.saved_model.load(str(published.path)).signatures
    for batch in (texts, ["ab"], [""], ["", "abcdefgh"]):
        answers = served["serving_default"](text=tf.constant(batch))
        assert answers["tags"].shape[0] == len(batch)
        for name in ("tags", "tone"):
            alone = served[f"predict_{name}"](text=tf.constant(batch))
            assert list(alone) == [name]
            np.testing.assert_allclose(alone[name], answers[name], rtol=1e-5)
            total = tf.reduce_sum(answers[name], axis=-1)
            np.testing.assert_allclose(total, tf.ones_like(total), rtol=1e-5)
    ids = TOKENS.encode(["abc"]).ids
    logits = model({"token_ids": tf.constant(ids)}, training=False)
    np.testing.assert_allclose(
        served["predict_tags"](text=tf.constant(["abc"]))["tags"],
        tf.nn.softmax(logits["tags"]),
        rtol=1e-5,
    )


def backbones():
    hub = pytest.importorskip("keras_hub").models
    small = {
        "vocabulary_size": SIZE,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 8,
        "max_sequence_length": 8,
    }
    return {
        "BERT": lambda: hub.BertBackbone(**small),
        "DistilBERT": lambda: hub.DistilBertBackbone(**small),
        "RoBERTa": lambda: hub.RobertaBackbone(**small),
        "DeBERTa": lambda: hub.DebertaV3Backbone(**small, bucket_size=8),
        "ALBERT": lambda: hub.AlbertBackbone(
            **small, embedding_dim=4, num_groups=1, num_inner_repetitions=1
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "BERT",
        pytest.param("DistilBERT", marks=pytest.mark.slow),
        pytest.param("RoBERTa", marks=pytest.mark.slow),
        pytest.param("DeBERTa", marks=pytest.mark.slow),
        pytest.param("ALBERT", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_backbones_of_keras_hub(name, tmp_path):
    made = backbones()[name]()
    some = [tags(), tone()]
    model = compiled(some, made=made)
    before = made.get_weights()
    joined = batches("tags|tone", some)
    history = model.fit(joined, shuffle=False, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    moved = [
        (a != b).any() for a, b in zip(before, made.get_weights(), strict=True)
    ]
    assert np.mean(moved) > 0.5
    x, _, _ = next(iter(joined))
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        postprocess=problems.answers(some),
        # Rows that are made up are longer than this encoder takes.
        warmup={"token_ids": x["token_ids"].numpy()},
    )
    served = tf.saved_model.load(str(published.path))
    answer = served.signatures["predict_tone"](token_ids=x["token_ids"])["tone"]
    logits = model(x, training=False)["tone"]
    np.testing.assert_allclose(answer, tf.nn.softmax(logits), atol=1e-5)


def test_a_tokenizer_of_keras_hub():
    hub = pytest.importorskip("keras_hub")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", "a"]
    wordpiece = hub.tokenizers.WordPieceTokenizer(vocabulary=pieces)
    tokenization = problems.Tokenization(wordpiece, 6, start=2, end=3)
    tokens = tokenization.encode([["unable", "a", "x"], "a unable"])
    assert tokens.ids == [[2, 5, 6, 7, 1, 3], [2, 7, 5, 6, 3]]
    assert tokens.first[0] == [1, 3, 4]


class TestBadInput:
    def test_inputs_of_other_names(self):
        one, two = (keras.Input((None,), dtype="int32", name=n) for n in "xy")
        both = layers.Embedding(SIZE, 4)(one + two)
        unfit = keras.Model([one, two], both)
        with refused("must be token ids, or have names among.*'x', 'y'"):
            problems.network(unfit, [tone()], TOKENS)
        ids = keras.Input((None,), dtype="int32", name="token_ids")
        wrapped = keras.Model(ids, unfit([ids, ids]))
        assert problems.network(wrapped, [tone()], TOKENS)

    def test_an_encoder_of_whole_texts(self):
        ids = keras.Input((None,), dtype="int32")
        pooled = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(ids))
        with refused("must answer `\\[b, l, d\\]`"):
            problems.network(keras.Model(ids, pooled), [tone()], TOKENS)

    def test_texts_longer_than_the_encoder(self):
        made = encoder()
        made.max_sequence_length = 4
        with refused("must take texts as long.*max_length=8.*4 positions"):
            problems.network(made, [tone()], TOKENS)
        shorter = problems.Tokenization(tokenizer, max_length=4)
        assert problems.network(made, [tone()], shorter)
