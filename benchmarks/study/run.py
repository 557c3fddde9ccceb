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
    problem = PROBLEMS[name](data)
    note_diagnosis(name, problem, results / "diagnosis.json")
    return str(compared(problem, name, results / f"{name}.jsonl", number))


def compared(problem, name, path, seeds):
    """The comparison with the seeds 0 to `seeds - 1`, in this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Graphs that are used for a few hundred steps are not worth optimizing.
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    return compare(
        problem.build,
        *problem.splits.values(),
        losses=problem.losses,
        metrics=problem.metrics,
        select=problem.select,
        results=path,
        methods=problem.methods,
        learning_rates=problem.learning_rates,
        seeds=range(seeds),
        epochs=problem.epochs,
        patience=problem.patience,
        batch_size=problem.batch_size,
        compile_options=problem.compile_options,
        name=name,
        executor=InProcess(),
        allow_overlap=True,  # equal fingerprints of different molecules
        verbose=1,
    )


def note_diagnosis(name, problem, path):
    """Adds what `diagnose` says of the fresh model, unless it is there."""
    found = load(path) if path.exists() else {"problems": {}}
    if name in found["problems"]:
        return
    keras.utils.set_random_seed(0)
    model = problem.build()
    if not isinstance(model, MGDAModel):
        model = MGDAModel.from_model(model)
    model.compile(loss=problem.losses, **problem.compile_options)
    train = problem.splits["train"]
    diagnosis = diagnose(
        model,
        train() if callable(train) else train,
        batch_size=problem.batch_size,
    )
    found["problems"][name] = {
        "harmful": diagnosis.steps["plain sum"].harmful.value,
        "findings": [
            {"kind": f.kind, "tasks": list(f.tasks), "advice": f.advice}
            for f in diagnosis.findings
        ],
    }
    write(path, {**found, **environment()})
