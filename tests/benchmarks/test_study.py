"""The study: its loaders, its ranks, and that its tables are its lines."""

import doctest
import gzip
import json

import keras
import numpy as np
import pytest

from benchmarks.harness import RESULTS, lines
from benchmarks.study import datasets, problems, ranks, report, scales

STUDY = RESULTS / "study"
COMMITTED = sorted(STUDY.glob("*.jsonl"))


# Loaders, of made-up files.


def write_arff(folder, name, rows, targets):
    path = folder / "regression" / f"{name}.arff"
    path.parent.mkdir()
    inputs = [f"x{i}" for i in range(len(rows[0]) - len(targets))]
    header = [f"@attribute {a} numeric" for a in [*inputs, *targets]]
    data = [",".join("?" if v is None else str(v) for v in r) for r in rows]
    text = ["@relation made_up", *header, "@data", *data]
    path.write_text("\n".join(text) + "\n")


def test_regression_of_a_file(tmp_path):
    """A column that never changes goes, a missing entry is the mean, 0."""
    rng = np.random.default_rng(0)
    rows = [
        [7.0, None if i == 3 else 100 + 5 * rng.normal(), i, 10 * i]
        for i in range(50)
    ]
    write_arff(tmp_path, "enb", rows, ["Y1", "Y2"])
    splits = datasets.regression(tmp_path, "enb")
    sizes = {name: len(x) for name, (x, _) in splits.items()}
    assert sizes == {"train": 30, "validation": 10, "test": 10}
    x, y = splits["train"]
    assert x.shape == (30, 1)
    np.testing.assert_allclose(x.std(), 1, atol=0.1)
    everything = np.concatenate([y["Y1"] for _, y in splits.values()])
    assert sorted(everything[:, 0]) == list(range(50))  # each of them once
    for x, y in splits.values():
        np.testing.assert_allclose(y["Y2"], 10 * y["Y1"])  # raw units
        assert (x[y["Y1"] == 3] == 0).all()


def test_groups_of_targets_are_a_task_each(tmp_path):
    rows = np.arange(20 * 15.0).reshape(20, 15).tolist()
    write_arff(tmp_path, "wq", rows, [f"{i}" for i in range(14)])
    _, y = datasets.regression(tmp_path, "wq")["train"]
    assert {task: targets.shape for task, targets in y.items()} == {
        "plants": (12, 7),
        "animals": (12, 7),
    }


@pytest.mark.parametrize("units", ["raw", "standardised"])
def test_units_change_the_loss_and_not_the_start(tmp_path, units):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 5)) * [1, 1, 1, 1, 1000]
    write_arff(tmp_path, "enb", rows.tolist(), ["Y1", "Y2"])
    problem = problems.PROBLEMS[f"enb-{units}"](tmp_path)
    x, y = problem.splits["train"]
    assert len(x) == 36 * problems.PASSES["enb"]
    predicted = problem.build()(x[:8])
    deviation = {"raw": [1, 1000], "standardised": [1, 1]}[units]
    for task, expected in zip(("Y1", "Y2"), deviation, strict=True):
        assert expected / 3 < y[task].std() < 3 * expected
        assert predicted[task].shape == (8, 1)
        assert np.std(predicted[task]) < 3 * expected


def test_tox21_of_a_file(tmp_path):
    pytest.importorskip("rdkit")
    (tmp_path / "molecules").mkdir()
    rows = ["NR-AR,a,b,c,d,mol_id,smiles", "0,1,,,1,T1,CCO", ",,,,1,T2,CCN"]
    rows += ["1,0,0,0,0,T3,no molecule", "1,,,0,1,T4,c1ccccc1"]
    with gzip.open(tmp_path / "molecules" / "tox21.csv.gz", "wt") as file:
        file.write("\n".join(rows))
    splits = datasets.assays(tmp_path, "tox21")
    # The second has no label of the first assays, the third does not parse.
    assert sum(len(x) for x, _ in splits.values()) == 2
    labels = np.concatenate([y["NR_AR"] for _, y in splits.values()])
    assert sorted(labels) == [0, 1]
    missing = np.concatenate([y["b"] for _, y in splits.values()])
    assert np.isnan(missing).all()
    x = np.concatenate([x for x, _ in splits.values()])
    assert x.shape == (2, datasets.FINGERPRINT_BITS)
    assert np.log(4) < x.max() < np.log(8)  # benzene: six atoms alike


def test_toxcast_has_the_assays_with_most_labels_of_the_rarer_class(tmp_path):
    pytest.importorskip("rdkit")
    (tmp_path / "molecules").mkdir()
    rows = ["smiles,none,a,few,b,c,d"]  # three of `few` are labelled
    for k, carbons in enumerate(range(1, 21)):
        few = "01"[k % 2] if k < 3 else ""
        label = "01"[k % 2]
        rows.append(f"{'C' * carbons},0,{label},{few},{label},{label},{label}")
    with gzip.open(tmp_path / "molecules" / "toxcast.csv.gz", "wt") as file:
        file.write("\n".join(rows))
    splits = datasets.assays(tmp_path, "toxcast", best_labelled=True)
    assert [len(x) for x, _ in splits.values()] == [16, 2, 2]
    assert all(list(y) == ["a", "b", "c", "d"] for _, y in splits.values())


def test_entities_and_segmentation_of_three_files(tmp_path):
    """Batches of the training split follow the seed; each message once."""
    (tmp_path / "text").mkdir()
    letters = "abcdefghij"
    for ending, number in (("train", 40), ("dev", 10), ("test", 10)):
        blocks = [
            "\n".join(
                f"{letter}{k % 2}\t{'B-PER' if letter == 'a' else 'O'}"
                for k, letter in enumerate(letters[i % 10 :] + letters)
            )
            for i in range(number)
        ]
        path = tmp_path / "text" / f"weiboNER_2nd_conll.{ending}"
        path.write_text("\n\n".join(blocks) + "\n")
    problem = problems.PROBLEMS["weibo"](tmp_path)
    assert set(problem.losses) == {"ner", "cws"}

    def tokens(split):
        return [x["token_ids"].numpy() for x, *_ in problem.splits[split]()]

    assert sum(map(len, tokens("test"))) == 10

    def first_batch(seed):
        keras.utils.set_random_seed(seed)
        return tokens("train")[0].tolist()

    assert first_batch(1) == first_batch(1) != first_batch(2)
    assert set(problem.build().output) == {"ner", "cws"}


def test_multi_mnist_of_a_file(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(70, 28, 28), dtype="uint8")
    labels = np.arange(70) % 10
    np.savez(
        tmp_path / "mnist.npz",
        x_train=images[:60],
        y_train=labels[:60],
        x_test=images[60:],
        y_test=labels[60:],
    )
    splits = datasets.multi_mnist(tmp_path, images=50)
    sizes = {name: len(x) for name, (x, _) in splits.items()}
    assert sizes == {"train": 50, "validation": 10, "test": 10}
    x, y = splits["test"]
    assert x.shape[1:] == (28, 28, 1)
    assert 0 <= x.min() < x.max() <= 1
    assert list(y["left"]) == list(labels[60:])


# Ranks.


def test_critical_difference_of_demsar():
    """k = 4, N = 14: 1.25 (Demsar, 2006, section 3.2.2)."""
    rng = np.random.default_rng(0)
    scores = {i: dict(zip("abcd", rng.normal(size=4))) for i in range(14)}  # noqa: B905
    assert ranks.of_scores(scores).critical_difference == pytest.approx(
        1.25, abs=0.005
    )


def test_examples_of_ranks():
    assert doctest.testmod(ranks) == (0, 4)


def test_a_method_that_always_wins_is_told():
    found = ranks.of_scores(
        {i: {"best": 3.0, "b": (i % 2), "c": 1 - i % 2} for i in range(12)}
    )
    assert found.mean == {"best": 1.0, "b": 2.5, "c": 2.5}
    assert found.p_value < 0.001
    assert found.groups == [["b", "c"]]


def test_a_method_that_diverged_is_last():
    assert ranks.of_one({"a": -np.inf, "b": -3.0, "c": 0.0}) == {
        "a": 3.0,
        "b": 2.0,
        "c": 1.0,
    }


# The scales.


def test_the_scaled_loss_is_the_loss_times_the_factor():
    problem = scales.scaled(1000.0)
    weights = problem.compile_options["loss_weights"]
    assert weights == {"left": 1000.0, "right": 1.0}
    assert "fixed weights" not in problem.methods
    ratios = [
        options["weighting"]["left"] / options["weighting"]["right"]
        for name, options in problem.methods.items()
        if name.startswith("weights ")
    ]
    np.testing.assert_allclose(ratios, np.logspace(-3, 3, 25))
    # Among them is what undoes the factor.
    assert min(abs(np.array(ratios) * 1000 - 1)) < 1e-9


def test_the_scales_are_those_of_the_lines(tmp_path):
    """Against the weights that validation chooses, which are not test's."""
    (tmp_path / "scales").mkdir()

    def written(method, seed, on_validation, on_test):
        both = {"left": on_validation, "right": on_validation}
        line = {"method": method, "seed": seed, "validation": both}
        return json.dumps(line | {"test": {"left": on_test, "right": 0.5}})

    for factor in scales.FACTORS:
        found = [written("reference", 0, 0.9, None)]
        for seed in (1, 0):
            found.append(written("plain sum", seed, 0.7, 0.4))
            found.append(written("weights 1 : 1", seed, 0.8, 0.5))
            found.append(written("weights 2 : 1", seed, 0.7, 0.9))
        path = tmp_path / "scales" / f"{factor:g}.jsonl"
        path.write_text("\n".join(found) + "\n")
    header, rows = scales.table(tmp_path)
    assert header[1:4] == ["0.001", "0.01", "0.1"]
    by_method = {row[0]: row[1:] for row in rows}
    assert by_method["plain sum"] == ["-10.0 ± 0.0"] * 7
    assert by_method[scales.BEST_WEIGHTS] == ["0.0 ± 0.0"] * 7


# The report.


def line(data, method, seed, error):
    return {
        "comparison": 1,
        "data": data,
        "method": method,
        "task": None,
        "options": {},
        "learning_rate": 0.1,
        "seed": seed,
        "diverged": None,
        "validation": {"a": error},
        "test": {"a": error + 0.001 * seed},
        "epoch_seconds": 1.0,
        "seconds": 60.0,
        "settings": {
            "select": {"a": ["mse", "min"]},
            "reference": {"a": 1.0},
            "epochs": 3,
        },
    }


@pytest.fixture
def made_up(tmp_path):
    """`good` is better on two of three data sets, `bad` worse on all."""
    findings = {"x": ["scale"], "y": ["noise"], "z-raw": []}
    for number, name in enumerate(findings):
        errors = {"plain sum": 1.0, "bad": 1.2}
        errors["good"] = 0.9 if number < 2 else 1.0
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps(
                    line(name, method, seed, error + 1e-3 * ((seed + i) % 5))
                )
                + "\n"
                for i, (method, error) in enumerate(errors.items())
                for seed in range(5)
            )
        )
    diagnosis = {
        name: {
            "harmful": 0.5,
            "findings": [{"kind": k, "tasks": [], "advice": ""} for k in kinds],
        }
        for name, kinds in findings.items()
    }
    path = tmp_path / "diagnosis.json"
    path.write_text(json.dumps({"problems": diagnosis}))
    return tmp_path


def test_the_report_by_hand(made_up):
    header, rows = report.ranked(made_up)
    by_method = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_method) == ["good", "plain sum", "bad"]
    assert by_method["good"]["better than the sum on"] == 2
    assert by_method["good"]["worse on"] == 0
    assert by_method["bad"]["worse on"] == 3
    assert by_method["bad"]["mean rank"] == "3.00"
    median = float(by_method["bad"]["median, %"])
    assert median == pytest.approx(-20, abs=0.3)
    _, rows = report.effort(made_up)
    assert rows[-1] == ["all", "", 45, "", "45", ""]


def test_a_problem_that_is_under_way_is_left_out(made_up):
    path = made_up / "x.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    without_last_seed = [run for run in whole if '"seed": 4' not in run]
    for part in (whole[:-1], without_last_seed):
        path.write_text("".join(part))
        report.comparisons.cache_clear()
        assert list(report.comparisons(made_up)) == ["y", "z-raw"]
        assert report.under_way(made_up) == ["x"]


def test_the_diagnosis_is_judged(made_up):
    """Right of `x`; `y` has a better method, too; of `z` it says nothing."""
    _, rows = report.judged(made_up)
    assert [row[-1] for row in rows] == ["yes", "no", "", "1 of 2"]


def test_the_figure_is_drawn(made_up, tmp_path):
    report.draw(made_up, tmp_path / "figures" / "study.png")
    assert (tmp_path / "figures" / "study.png").stat().st_size > 5000


# What was committed.


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_lines_are_whole(path):
    if path.stem in report.under_way(STUDY):
        pytest.skip("its trainings go on")
    found = [run for run in lines(path) if run["method"] != "reference"]
    names = {"data", "method", "seed", "learning_rate", "validation", "test"}
    names |= {"seconds", "versions"}
    assert all(names <= run.keys() for run in found)
    methods = {run["method"] for run in found} - {"single tasks"}
    assert methods == set(problems.METHODS)
    assert {run["seed"] for run in found} == set(range(5))
    assert {run["data"] for run in found} == {path.stem}
    assert path.stem in problems.PROBLEMS
    diagnosis = json.loads((STUDY / "diagnosis.json").read_text())
    assert path.stem in diagnosis["problems"]


def test_the_report_is_made_of_the_lines(tmp_path):
    """Of the committed ones: another figure in a line is another table."""
    path = COMMITTED[0]
    changed = lines(path)
    for run in changed:
        if run["method"] == "MGDA-UB":
            run["test"] = {t: 1.5 * value for t, value in run["test"].items()}
    (tmp_path / path.name).write_text(
        "".join(json.dumps(run) + "\n" for run in changed)
    )

    def of_mgda(folder):
        scores = report.differences(folder)[path.stem]
        return scores.pop("MGDA-UB"), scores

    before, others = of_mgda(STUDY)
    after, same = of_mgda(tmp_path)
    assert after != pytest.approx(before)
    assert same == others
