"""What a step costs against the number of tasks, here and in TorchJD.

LeNet (batch 256) and the ResNet-18 of width 16 on CelebA's 64x64 images (batch
16): in Keras, stock, MGDA-UB and exact MGDA; the same networks in PyTorch, by
`loss.backward()` and by TorchJD's `mtl_backward` with its MGDA, which pulls
back one task after another (chunk size 1) or all at once, its default. SGD with
momentum, one thread.

Times are ratios to the plain step of the same library: one process for each
case, rounds in an order that changes, medians of the ratios within a round.
Seconds of the first step (tracing and compiling), and peak memory beyond what
the process had after its imports, are of a process for each method. A case is a
line of results/cost.jsonl once it is finished, and is not repeated: start the
script again to go on.

    python benchmarks/cost.py [--rounds 5] [--steps 4]
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "cost.jsonl"
CASES = [
    (network, num_tasks)
    for network in ("lenet", "resnet18")
    for num_tasks in (2, 10, 40, 100)
]
BATCH_SIZE = {"lenet": 256, "resnet18": 16}
CLASSES = {"lenet": 10, "resnet18": 2}
SHAPE = {"lenet": (1, 28, 28), "resnet18": (3, 64, 64)}
KERAS = {  # how `MGDAModel` is compiled
    "stock Keras": None,
    "MGDA-UB": {"gradients": "representation"},
    "exact MGDA": {"gradients": "parameters"},
}
TORCH = {  # the chunk size
    "PyTorch": None,
    "TorchJD, chunk size 1": 1,
    "TorchJD, default": None,
}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
}
PLAIN = dict.fromkeys(KERAS, "stock Keras") | dict.fromkeys(TORCH, "PyTorch")


def keras_step(network, num_tasks, method):
    import step_cost

    model = step_cost.build(
        getattr(step_cost, network), num_tasks, KERAS[method]
    )
    data = step_cost.batches(model, BATCH_SIZE[network])

    def step():
        if model.train_function is None:  # traces
            model.fit(data, steps_per_epoch=1, verbose=0)
        else:
            model.train_function(iterator)

    iterator = iter(data)
    return step


def torch_step(network, num_tasks, method):
    import numpy as np
    import torch
    import torch_networks
    from torch import nn
    from torch.nn import functional
    from torchjd.aggregation import MGDA
    from torchjd.autojac import jac_to_grad, mtl_backward

    torch.manual_seed(0)
    encoder, head = getattr(torch_networks, network)()
    heads = nn.ModuleList(head() for _ in range(num_tasks))
    rng = np.random.default_rng(0)
    batch = BATCH_SIZE[network]
    x = torch.tensor(
        rng.normal(size=(batch, *SHAPE[network])), dtype=torch.float
    )
    y = torch.tensor(rng.integers(0, CLASSES[network], (num_tasks, batch)))
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *heads.parameters()], 0.01, momentum=0.9
    )
    aggregator = MGDA()

    def step():
        optimizer.zero_grad()
        z = encoder(x)
        losses = [
            functional.cross_entropy(head(z), labels)
            for head, labels in zip(heads, y, strict=True)
        ]
        if method == "PyTorch":
            sum(losses).backward()
        else:
            mtl_backward(losses, features=z, parallel_chunk_size=TORCH[method])
            jac_to_grad(encoder.parameters(), aggregator)
        optimizer.step()

    return step


def make_step(network, num_tasks, method):
    make = keras_step if method in KERAS else torch_step
    return make(network, num_tasks, method)


def times(network, num_tasks, rounds, steps):
    """`{method: {"seconds", "ratio"}}`, of a step."""
    made = {name: make_step(network, num_tasks, name) for name in PLAIN}
    for step in made.values():
        step()
    seconds = {name: [] for name in made}
    order = list(made)
    for _ in range(rounds):
        order = order[1:] + order[:1]
        for name in order:
            slow = name.startswith(("exact", "TorchJD"))
            repeats = 1 if slow else steps
            start = time.perf_counter()
            for _ in range(repeats):
                made[name]()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {
        name: {
            "seconds": statistics.median(own),
            "ratio": statistics.median(
                one / plain
                for one, plain in zip(own, seconds[PLAIN[name]], strict=True)
            ),
        }
        for name, own in seconds.items()
    }


def footprint(network, num_tasks, method):
    """Of the first step, in CPU time, and of three together."""
    if method in KERAS:
        import step_cost  # noqa: F401
    else:
        import torch_networks  # noqa: F401
        import torchjd  # noqa: F401
    before = peak()
    step = make_step(network, num_tasks, method)
    start = time.process_time()
    step()
    first = time.process_time() - start
    step()
    step()
    return {"first_step_seconds": first, "peak_bytes": peak() - before}


def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_own_process(what, *arguments):
    """What a function of this file returns there."""
    command = [sys.executable, __file__, "--call", what, *map(str, arguments)]
    printed = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD,
    ).stdout
    return json.loads(printed.splitlines()[-1])


def called(what, network, num_tasks, *arguments):
    if what == "times":
        return times(network, int(num_tasks), *map(int, arguments))
    return footprint(network, int(num_tasks), *arguments)


def finished():
    if not RESULTS.exists():
        return set()
    cases = map(json.loads, RESULTS.read_text().splitlines())
    return {(case["network"], case["tasks"]) for case in cases}


def main(rounds, steps):
    for network, num_tasks in CASES:
        if (network, num_tasks) in finished():
            continue
        print(network, num_tasks, flush=True)
        methods = in_own_process("times", network, num_tasks, rounds, steps)
        for name, of_method in methods.items():
            of_method |= in_own_process("footprint", network, num_tasks, name)
            print(f"  {name}: {of_method}", flush=True)
        versions = ("tensorflow-cpu", "keras", "torch", "torchjd")
        result = {
            "network": network,
            "tasks": num_tasks,
            "batch_size": BATCH_SIZE[network],
            "rounds": rounds,
            "steps": steps,
            "machine": f"{platform.machine()}, CPU, one thread",
            "versions": {v: importlib.metadata.version(v) for v in versions},
            "methods": methods,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--call", nargs="+", help=argparse.SUPPRESS)
    args = vars(parser.parse_args())
    if call := args.pop("call"):
        print(json.dumps(called(*call)))
    else:
        main(**args)
