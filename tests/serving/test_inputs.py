"""What stands before and behind a served model."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_mgda
from keras_mgda.serving import rows as serving_rows
from tests.support.serving.served_models import (
    answers_of,
    ask,
    mlp,
)


def test_a_keras_model_in_front(tmp_path):
    model, _ = mlp()
    word = keras.Input((), dtype="string", name="word")
    table = layers.StringLookup(
        vocabulary=["cat", "dog", "emu"], output_mode="one_hot"
    )
    preprocess = keras.Model(word, table(word))
    published = keras_mgda.export_saved_model(
        model, tmp_path, preprocess=preprocess
    )
    found = ask(
        published,
        "predict_right",
        {"word": np.array([b"dog", b"eel"], object)},
    )
    one_hot = np.eye(4, dtype="float32")[[2, 0]]
    expected = answers_of(model, {"features": one_hot})
    np.testing.assert_allclose(found["right"], expected["right"], rtol=1e-5)


def test_a_sequential_model_in_front(tmp_path):
    model, rows = mlp()
    preprocess = keras.Sequential(
        [keras.Input((4,), name="raw"), layers.Rescaling(2.0, offset=1.0)]
    )
    published = keras_mgda.export_saved_model(
        model, tmp_path, preprocess=preprocess
    )
    found = ask(published, "predict_left", {"raw": rows["features"]})
    expected = answers_of(model, {"features": 2 * rows["features"] + 1})
    np.testing.assert_allclose(found["left"], expected["left"], rtol=1e-5)


def test_a_function_of_several_inputs_in_front(tmp_path):
    """Its table is in no layer, and a vocabulary comes from a file."""
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("cat\ndog\n")
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        num_oov_buckets=1,
    )

    @tf.function(
        input_signature=[
            {
                "word": tf.TensorSpec([None], tf.string),
                "size": tf.TensorSpec([None, 1], tf.float16),
            }
        ]
    )
    def preprocess(inputs):
        assert inputs["size"].dtype == tf.float16
        one_hot = tf.one_hot(table.lookup(inputs["word"]), 3)
        return tf.concat([one_hot, tf.cast(inputs["size"], tf.float32)], 1)

    model, _ = mlp()
    published = keras_mgda.export_saved_model(
        model, tmp_path / "mtl", preprocess=preprocess
    )
    vocabulary.unlink()
    found = ask(
        published,
        "predict_left",
        {
            "word": np.array([b"dog", b"eel"], object),
            "size": np.array([[0.5], [2.0]], "float32"),
        },
    )
    features = np.array([[0, 1, 0, 0.5], [0, 0, 1, 2]], "float32")
    expected = answers_of(model, {"features": features})
    np.testing.assert_allclose(found["left"], expected["left"], rtol=1e-5)
    assert (published.path / "assets" / "words.txt").read_text()


def test_made_up_rows_differ_between_inputs_and_rows():
    specs = {
        "a": tf.TensorSpec([None, 3], tf.float32),
        "b": tf.TensorSpec([None, 3], tf.float32),
        "codes": tf.TensorSpec([None, None], tf.int32),
        "length": tf.TensorSpec([None, 1], tf.int32),
        "text": tf.TensorSpec([None], tf.string),
    }
    made = serving_rows.sample_rows(specs, None, 3)
    values = np.concatenate([made["a"], made["b"]])
    assert len(np.unique(values)) == values.size
    np.testing.assert_array_equal(
        made["codes"][:, -2:], [[1, 1], [1, 0], [1, 1]]
    )
    np.testing.assert_array_equal(made["length"], [[1]] * 3)
    assert made["text"][0] == made["text"][2] != made["text"][1]
    assert min(len(text.split()) for text in made["text"]) > 4


def test_made_up_texts_are_answered_by_a_model_of_text(tmp_path):
    """Of an empty text Keras itself averages nothing, which is NaN."""
    text = keras.Input((), dtype="string", name="text")
    ids = layers.TextVectorization(vocabulary=["good", "bad"])(text)
    z = layers.Embedding(4, 3, mask_zero=True)(ids)
    heads = {
        "mean": layers.GlobalAveragePooling1D()(z),
        "pairs": layers.GlobalMaxPooling1D()(layers.Conv1D(2, 3)(z)),
    }
    model = keras.Model(text, heads)
    published = keras_mgda.export_saved_model(model, tmp_path, batching={})
    rows = {
        "text": np.array(
            ["a good text of words", "bad one, really bad"], object
        )
    }
    found = ask(published, "serving_default", rows)
    for task, expected in answers_of(model, rows).items():
        np.testing.assert_allclose(found[task], expected, rtol=1e-5)


def test_postprocessing(tmp_path):
    model, rows = mlp()
    published = keras_mgda.export_saved_model(
        model,
        tmp_path,
        postprocess={
            "left": lambda logits: {
                "class": tf.argmax(logits, axis=-1),
                "probability": tf.nn.softmax(tf.cast(logits, tf.float16)),
                "name": tf.gather(["x", "y", "z"], tf.argmax(logits, axis=-1)),
            },
            "right": tf.sigmoid,
        },
    )
    found = ask(published, "serving_default", rows)
    expected = answers_of(model, rows)
    classes = expected["left"].argmax(-1)
    np.testing.assert_array_equal(found["left_class"], classes)
    np.testing.assert_array_equal(
        found["left_name"], np.array([b"x", b"y", b"z"])[classes]
    )
    assert found["left_probability"].dtype == np.float32
    np.testing.assert_allclose(
        found["right"], tf.sigmoid(expected["right"]), rtol=1e-5
    )
    alone = published.signatures["predict_right"].outputs
    assert set(alone) == {"right"}
