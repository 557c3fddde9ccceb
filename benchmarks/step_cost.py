"""Step time of MGDAModel as ratios to stock Keras, for networks of all kinds.

Same layers, same optimizer, a process for each network, in which steps are
interleaved in rounds whose order changes; medians. Prints tables and writes
results/step_cost.json, where cases that were not asked for stay.

    python -m benchmarks.step_cost [--rounds 9] [--steps 4] [--cases NAME ...]
        [--tables directions looks towers]
"""

import functools
import time

from benchmarks import harness, tables

EVERY = 50
METHODS = {
    "stock": None,
    "plain sum": {"weighting": "uniform"},
    "MGDA-UB": {"gradients": "representation"},
    "last": {"gradients": "last"},
    "verified": {"gradients": "verified"},
    "exact MGDA": {"gradients": "parameters"},
}
# What MGDA-UB and a look at its steps cost.
LOOKS = {
    "stock": None,
    "no look": {},
    "verify=True": {"verify": True},
    "verify=True, every 50th": {"verify": True, "verify_every": EVERY},
    'verify="step"': {"verify": "step"},
    'verify="step", every 50th': {"verify": "step", "verify_every": EVERY},
}
# Where several tasks share a tower behind `Z`.
MARKED = "MGDA-UB, towers marked"
TOWERS = {
    "stock": None,
    "MGDA-UB": {},
    MARKED: {},
}
# The name of a network in `benchmarks.models`, tasks, and batch size.
CASES = {
    "LeNet, 2 tasks": ("LENET", 2, 256),
    "LeNet, 10 tasks": ("LENET", 10, 256),
    "LeNet, 20 tasks": ("LENET", 20, 256),
    "ResNet-18 (16), 40 tasks": ("RESNET", 40, 16),
    "MobileNetV2, 2 tasks": ("MOBILENET", 2, 16),
    "BERT-small, 3 tasks": ("BERT", 3, 32),
    "bidirectional GRU, 3 tasks": ("BIGRU", 3, 64),
    "embedding of 1M rows, 4 tasks": ("TABLE", 4, 64),
    "dense tower of 2 of 3 tasks": ("TOWER", 3, 256),
    "dense tower of 4 of 5 tasks": ("TOWER", 5, 256),
    "dense tower of 12 of 13 tasks": ("TOWER", 13, 256),
    "GRU of 2 of 3 tasks": ("GRU", 3, 64),
    "GRU of 4 of 5 tasks": ("GRU", 5, 64),
    "GRU of 12 of 13 tasks": ("GRU", 13, 64),
}
WITH_TOWERS = [
    case for case, (network, *_) in CASES.items() if network in ("TOWER", "GRU")
]
LOOKED_AT = ("LeNet, 2 tasks", "LeNet, 10 tasks", "ResNet-18 (16), 40 tasks")
KINDS = {
    "directions": (METHODS, CASES),
    "looks": (LOOKS, LOOKED_AT),
    "towers": (TOWERS, WITH_TOWERS),
}


def measure(network, num_tasks, batch_size, methods, rounds, steps):
    """Seconds for the first step, and medians for the others."""
    from benchmarks import models

    network = getattr(models, network)
    calls, first = {}, {}
    for name, how in methods.items():
        model = models.build(
            network, num_tasks, how, towers_are_marked=name == MARKED
        )
        data = models.batches(model, batch_size, network.vocabulary)
        start = time.perf_counter()
        model.fit(data, steps_per_epoch=1, verbose=0)
        first[name] = time.perf_counter() - start
        calls[name] = functools.partial(model.train_function, iter(data))
    # Exact MGDA runs the encoder's backward pass for each task.
    repeats = dict.fromkeys(methods, steps) | {"exact MGDA": 1}
    # With one look in each measurement, wherever it falls.
    repeats |= {
        name: EVERY
        for name, how in methods.items()
        if how and "verify_every" in how
    }
    times = harness.interleaved(calls, rounds, repeats)
    return {
        "stock_step_seconds": harness.medians(times)["stock"],
        "step_ratio": harness.ratios(times, "stock"),
        "first_step_seconds": first,
    }


def main(argv=None):
    parser = harness.parser(__doc__, rounds=9, steps=4)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--tables", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args(argv)
    path = args.results / "step_cost.json"
    before = harness.load(path) if path.exists() else {}
    results = {}
    for kind, (methods, cases) in KINDS.items():
        known = {line["case"]: line for line in before.get(kind, ())}
        for case in args.cases:
            if case in cases and kind in args.tables:
                known[case] = {"case": case} | harness.in_fresh_process(
                    measure, *CASES[case], methods, args.rounds, args.steps
                )
                print(known[case], flush=True)
        results[kind] = [known[case] for case in cases if case in known]
    harness.write(path, {"rounds": args.rounds, "steps": args.steps} | results)
    for table in (
        tables.step_cost,
        tables.first_steps,
        tables.look_cost,
        tables.tower_cost,
    ):
        print(table(args.results), end="\n\n")


if __name__ == "__main__":
    main()
