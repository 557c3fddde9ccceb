"""Compares all methods on one problem; diagnoses its model before training."""

import keras
import tensorflow as tf

from benchmarks.harness import environment, in_fresh_process, load, write
from benchmarks.study.problems import PROBLEMS
from keras_mgda import MGDAModel
from keras_mgda.comparison import InProcess, compare, results_file
from keras_mgda.diagnosis import diagnose

SEEDS = 5


def run(name, data, results):
    """Goes on where it was stopped, with a new process for each seed.

    The import of TensorFlow takes longer than most of these trainings, and a
    process that trains many models grows and slows down.

    Args:
        name: of the problem.
        data: the folder of the data sets.
        results: the folder that gets `NAME.jsonl` and `diagnosis.json`.

    Returns:
        What was found, in words.
    """
    path = results / f"{name}.jsonl"
    before = results_file.read(path) if path.exists() else []
    last = max((line["seed"] for line in before), default=0)
    for number in range(last + 1, SEEDS + 1):
        found = in_fresh_process(first_seeds, number, name, data, results)
    return found


def first_seeds(number, name, data, results):
    """All trainings with the seeds 0 to `number - 1`, but those that ended."""
    # Graphs that are used for a few hundred steps are not worth optimizing.
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    results.mkdir(parents=True, exist_ok=True)
    problem = PROBLEMS[name](data)
    note_diagnosis(name, problem, results / "diagnosis.json")
    comparison = compare(
        problem.build,
        *problem.splits.values(),
        losses=dict.fromkeys(problem.tasks, problem.loss),
        metrics=dict.fromkeys(problem.tasks, problem.metric),
        select=dict.fromkeys(problem.tasks, problem.select),
        results=results / f"{name}.jsonl",
        methods=problem.methods,
        learning_rates=problem.learning_rates,
        seeds=range(number),
        epochs=problem.epochs,
        patience=problem.patience,
        batch_size=problem.batch_size,
        compile_options=problem.compile_options,
        name=name,
        executor=InProcess(),
        allow_overlap=True,  # equal fingerprints of different molecules
        verbose=1,
    )
    return str(comparison)


def note_diagnosis(name, problem, path):
    """Adds what `diagnose` says of the fresh model, unless it is there."""
    found = load(path) if path.exists() else {"problems": {}}
    if name in found["problems"]:
        return
    keras.utils.set_random_seed(0)
    model = MGDAModel.from_model(problem.build())
    model.compile(
        loss=dict.fromkeys(problem.tasks, problem.loss),
        **problem.compile_options,
    )
    diagnosis = diagnose(
        model, problem.splits["train"], batch_size=problem.batch_size
    )
    found["problems"][name] = {
        "harmful": diagnosis.steps["plain sum"].harmful.value,
        "findings": [
            {"kind": f.kind, "tasks": list(f.tasks), "advice": f.advice}
            for f in diagnosis.findings
        ],
    }
    write(path, {**found, **environment()})
