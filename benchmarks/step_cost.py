"""Step time of MGDAModel as ratios to stock Keras.

Same layers, same optimizer, one process, steps interleaved in rounds whose
order changes, medians. Prints a table and writes results/step_cost.json.

    python -m benchmarks.step_cost [--rounds 21] [--steps 4]
"""

import functools
import time

from keras import layers

from benchmarks import harness, models, tables
from examples import networks

# The paper's, but the second one thinner: input, encoder, head.
LENET = ((28, 28, 1), networks.lenet, networks.lenet_head)
RESNET = (
    (64, 64, 3),
    functools.partial(networks.resnet18, width=16),
    lambda z: layers.Dense(2)(z),
)
CASES = {
    "LeNet, 2 tasks, batch 256": (LENET, 2, 256),
    "LeNet, 10 tasks, batch 256": (LENET, 10, 256),
    "LeNet, 20 tasks, batch 256": (LENET, 20, 256),
    "ResNet-18 (16), 40 tasks, batch 16": (RESNET, 40, 16),
}
EVERY = 50
METHODS = {
    "stock": None,
    "MGDA-UB": {"gradients": "representation"},
    "MGDA-UB, verify=True": {"gradients": "representation", "verify": True},
    "MGDA-UB, verify=True, every 50th": {
        "gradients": "representation",
        "verify": True,
        "verify_every": EVERY,
    },
    'MGDA-UB, verify="step"': {
        "gradients": "representation",
        "verify": "step",
    },
    'MGDA-UB, verify="step", every 50th': {
        "gradients": "representation",
        "verify": "step",
        "verify_every": EVERY,
    },
    "last": {"gradients": "last"},
    "verified": {"gradients": "verified"},
    "exact MGDA": {"gradients": "parameters"},
}


def measure(network, num_tasks, batch_size, rounds, steps):
    """Seconds for the first step, and medians for the others."""
    calls, first = {}, {}
    for name, how in METHODS.items():
        model = models.build(*network, num_tasks, how)
        data = models.batches(model, batch_size)
        start = time.perf_counter()
        model.fit(data, steps_per_epoch=1, verbose=0)
        first[name] = time.perf_counter() - start
        calls[name] = functools.partial(model.train_function, iter(data))
    # Exact MGDA runs the encoder's backward pass for each task.
    repeats = dict.fromkeys(METHODS, steps) | {"exact MGDA": 1}
    # With one look in each measurement, wherever it falls.
    repeats |= {
        name: EVERY
        for name, how in METHODS.items()
        if how and "verify_every" in how
    }
    times = harness.interleaved(calls, rounds, repeats)
    return {
        "stock_step_seconds": harness.medians(times)["stock"],
        "step_ratio": harness.ratios(times, "stock"),
        "first_step_seconds": first,
    }


def main(argv=None):
    parser = harness.parser(__doc__, rounds=21, steps=4)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    args = parser.parse_args(argv)
    results = []
    for case in args.cases:
        found = measure(*CASES[case], args.rounds, args.steps)
        milliseconds = 1e3 * found["stock_step_seconds"]
        print(f"{case} (stock: {milliseconds:.1f} ms)", flush=True)
        results.append({"case": case, **found})
    harness.write(
        args.results / "step_cost.json",
        {"rounds": args.rounds, "steps": args.steps, "results": results},
    )
    print(tables.step_cost(args.results))


if __name__ == "__main__":
    main()
