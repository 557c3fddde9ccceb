"""The text example: its data by hand, and a whole run on a few messages."""
# ruff: noqa: RUF001 (the punctuation is Chinese)

import json

import numpy as np
import pytest
import tensorflow as tf

from examples import (
    text,
    text_report,
)

LINE = "中国/ns  很/d  大/a  。/w  １９９８年/t  ！/w  好/a"


def test_sentences_end_with_their_punctuation():
    assert [[w for w, _ in pairs] for pairs in text.sentences(LINE)] == [
        ["中国", "很", "大", "。"],
        ["１９９８年", "！"],
        ["好"],
    ]


def test_labels_of_a_line():
    texts, cws, pos = text.peoples_daily([LINE, LINE], size=2)
    assert len(texts) == 3  # no line is begun once there are two
    assert "".join(texts[1]) == "１９９８年！"
    assert cws[:2] == [list("BESSS"), list("BMMMES")]
    assert pos[0] == ["ns", None, "d", "a", "w"]
    assert pos[1] == ["t", None, None, None, None, "w"]


def test_conll(tmp_path):
    path = tmp_path / "few.conll"
    path.write_text("科0\tB-PER.NOM\n技1\tI-PER.NOM\n 0\tO\n\n\n好0\tO\n")
    texts, cws, tags = text.conll(path)
    assert texts == [["科", "技", " "], ["好"]]
    assert cws == [["B", "I", "B"], ["B"]]
    assert tags == [["B-PER.NOM", "I-PER.NOM", "O"], ["O"]]


def test_padding_reaches_nothing_in_the_encoder():
    encoder = text.transformer(20, 16, width=8)
    ids = np.random.default_rng(0).integers(1, 20, size=(2, 6))
    longer = np.pad(ids, [[0, 0], [0, 5]])
    np.testing.assert_allclose(
        encoder(tf.constant(ids, tf.int32)),
        encoder(tf.constant(longer, tf.int32))[:, :6],
        atol=1e-5,
    )


def line(method, seed, seconds=1.0, **scores):
    return {
        "method": method,
        "seed": seed,
        "scores": scores,
        "seconds": seconds,
    }


def test_table_by_hand():
    lines = [
        line("cws alone", 0, cws=50.0),
        line("pos alone", 0, 3.0, pos=80.0),
        line("cws alone", 1, cws=60.0),
        line("pos alone", 1, 3.0, pos=80.0),
        line("plain sum", 0, 2.0, cws=55.0, pos=80.0),
        line("plain sum", 1, 2.0, cws=60.0, pos=72.0),
    ]
    assert text_report.table(lines).splitlines()[2:] == [
        "| alone | 55.00 ± 7.07 | 80.00 ± 0.00 |  | 4 |",
        # (10 % + 0) / 2 and (0 - 10 %) / 2
        "| plain sum | 57.50 ± 3.54 | 76.00 ± 5.66 | 0.00 ± 7.07 | 2 |",
    ]


@pytest.mark.slow
def test_a_whole_run(tmp_path, capsys):
    message = "我0\tO\n爱0\tO\n北0\tB-GPE.NAM\n京1\tI-GPE.NAM\n。0\tO\n"
    path = tmp_path / "few.conll"
    path.write_text("\n".join([message] * 8))
    options = {
        "--data": [path, path],
        "--methods": ["MGDA-UB"],
        "--epochs": [1],
        "--batch-size": [4],
        "--output": [tmp_path],
        "--saved-models": [tmp_path / "models"],
    }
    text.main([str(v) for k, vs in options.items() for v in (k, *vs)])
    printed = capsys.readouterr().out
    assert "| MGDA-UB |" in printed
    (found,) = (tmp_path / "text.jsonl").read_text().splitlines()
    assert set(json.loads(found)["scores"]) == {"ner", "cws"}
    assert (tmp_path / "text_ner_cws.png").exists()
    served = tf.saved_model.load(str(tmp_path / "models" / "text" / "1"))
    answer = served.signatures["predict_ner"](text=tf.constant(["我爱", ""]))
    assert answer["ner"].shape == (2, 2, 3)


def test_unknown_methods(capsys):
    with pytest.raises(SystemExit):
        text.main(["--methods", "mgda"])
    assert "Received: mgda" in capsys.readouterr().err
