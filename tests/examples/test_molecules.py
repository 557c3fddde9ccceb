"""The molecules example: its data by hand, and whole runs on little data."""

import json

import numpy as np
import pytest

from examples import molecules

CSV = """mol_id,smiles,NR-AR,SR-p53
a,CCO,0.0,1
b,c1ccccc1O,,0
c,c1ccccc1N,1,
"""


def test_a_file_of_moleculenet(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text(CSV)
    names, smiles, y = molecules.read(path)
    assert names == ["NR-AR", "SR-p53"]
    assert smiles == ["CCO", "c1ccccc1O", "c1ccccc1N"]
    nan = float("nan")
    np.testing.assert_array_equal(y, [[0, 1], [nan, 0], [1, nan]])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (CSV.replace("smiles", "text"), "must have a column 'smiles'"),
        (CSV.replace("0.0", "0.5"), r"must be 0, 1 or empty. Received: \[0.5"),
    ],
    ids=["smiles", "label"],
)
def test_files_that_are_none(wrong, match, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text(wrong)
    with pytest.raises(ValueError, match=match):
        molecules.read(path)


def test_scaffolds_stay_together():
    rng = np.random.default_rng(0)
    scaffolds = [f"s{k}" for k in rng.geometric(0.2, size=200)]
    parts = molecules.scaffold_split(scaffolds)
    assert sorted(np.concatenate(parts)) == list(range(200))
    of_parts = [{scaffolds[i] for i in part} for part in parts]
    assert not of_parts[0] & (of_parts[1] | of_parts[2])
    assert not of_parts[1] & of_parts[2]
    assert len(parts[0]) <= 160
    assert len(parts[1]) <= 20
    # The test split has what is rare.
    counts = [[scaffolds.count(s) for s in part] for part in of_parts]
    assert max(counts[2]) < max(counts[0])


def test_one_class_is_reported():
    y = np.array([[0, 1, np.nan], [1, 1, 0], [0, 1, 1]], np.float32)
    p = {
        "assays": np.array([[0.1, 0.5, 0.5], [0.9, 0.4, 0.8], [0.2, 0.3, 0.1]])
    }
    splits = dict.fromkeys(("train", "test"), (None, y))
    found = molecules.scores(
        ["a", "b", "c"], splits, dict.fromkeys(("train", "test"), p)
    )
    assert found["one_class"] == ["b"]
    assert found["not_learnt"] == ["c"]
    assert found["learnt"] == 1
    assert found["of_tasks"] == [1.0, None, 0.0]
    assert found["roc_auc"] == 0.5


def test_digits_are_ten_tasks_with_gaps():
    names, splits = molecules.digits()
    assert len(names) == 10
    assert [len(x) for x, _ in splits.values()] == [1078, 359, 360]
    for _, y in splits.values():
        assert 0.4 < np.isnan(y).mean() < 0.6
        assert np.nansum(y, axis=1).max() == 1


def test_table_by_hand():
    line = {"method": "MGDA-UB", "tasks": 3, "seconds": 2.0}
    lines = [
        line | {"roc_auc": auc, "average_precision": 0.5, "learnt": learnt}
        for auc, learnt in ((0.7, 3), (0.8, 2))
    ]
    assert molecules.table(lines).splitlines()[2:] == [
        "| MGDA-UB | 75.0 ± 7.1 | 50.0 ± 0.0 | 2 of 3 | 2 |"
    ]


@pytest.mark.slow
def test_a_whole_run(tmp_path, capsys, monkeypatch):
    names, splits = molecules.digits()
    few = {s: (x[:80], y[:80, :2]) for s, (x, y) in splits.items()}
    monkeypatch.setattr(molecules, "digits", lambda: (names[:2], few))
    molecules.main(["--epochs", "2", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    lines = [
        json.loads(line)
        for line in (tmp_path / "molecules.jsonl").read_text().splitlines()
    ]
    assert [line["method"] for line in lines] == molecules.DEFAULT_METHODS
    for line in lines:
        assert f"| {line['method']} |" in printed
        assert len(line["of_tasks"]) == 2
    assert (tmp_path / "molecules_digits.png").exists()


@pytest.mark.slow
def test_molecules_become_fingerprints(tmp_path):
    pytest.importorskip("rdkit")
    path = tmp_path / "few.csv"
    path.write_text(CSV + "d,not a molecule,0,0\n")
    names, splits = molecules.molecules(path)
    assert names == ["NR-AR", "SR-p53"]
    assert sum(len(x) for x, _ in splits.values()) == 3
    x, scaffolds, readable = molecules.featurized(
        ["c1ccccc1O", "Oc1ccccc1", "CCO", "no"]
    )
    assert readable.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(x[0], x[1])  # the same molecule
    assert scaffolds == ["c1ccccc1", "c1ccccc1", ""]
