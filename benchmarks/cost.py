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

    python -m benchmarks.cost [--rounds 5] [--steps 4]
"""

import functools
import os
import time

from benchmarks import harness

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


def keras_step(network, num_tasks, method):
    from benchmarks import models

    network_of = {"lenet": models.LENET, "resnet18": models.RESNET}
    model = models.build(network_of[network], num_tasks, KERAS[method])
    data = models.batches(model, BATCH_SIZE[network])

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
    from torch import nn
    from torch.nn import functional
    from torchjd.aggregation import MGDA
    from torchjd.autojac import jac_to_grad, mtl_backward

    from benchmarks import torch_networks

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
    made = {
        name: make_step(network, num_tasks, name) for name in (*KERAS, *TORCH)
    }
    slow = [name for name in made if name.startswith(("exact", "TorchJD"))]
    repeats = dict.fromkeys(made, steps) | dict.fromkeys(slow, 1)
    for step in made.values():
        step()
    found = harness.interleaved(made, rounds, repeats)
    seconds, ratios = harness.medians(found), {}
    for plain, methods in (("stock Keras", KERAS), ("PyTorch", TORCH)):
        ratios |= harness.ratios({name: found[name] for name in methods}, plain)
    return {
        name: {"seconds": seconds[name], "ratio": ratios[name]} for name in made
    }


def footprint(network, num_tasks, method):
    """Of the first step, in CPU time, and of three together."""
    if method in KERAS:
        from benchmarks import models  # noqa: F401
    else:
        import torchjd  # noqa: F401

        from benchmarks import torch_networks  # noqa: F401
    before = harness.peak_bytes()
    step = make_step(network, num_tasks, method)
    start = time.process_time()
    step()
    first = time.process_time() - start
    step()
    step()
    return {
        "first_step_seconds": first,
        "peak_bytes": harness.peak_bytes() - before,
    }


def measure(network, num_tasks, rounds, steps):
    methods = harness.in_fresh_process(times, network, num_tasks, rounds, steps)
    for name, of_method in methods.items():
        of_method |= harness.in_fresh_process(
            footprint, network, num_tasks, name
        )
        print(f"  {name}: {of_method}", flush=True)
    return {
        "batch_size": BATCH_SIZE[network],
        "rounds": rounds,
        "steps": steps,
        "threads": 1,
        "methods": methods,
    }


def main(argv=None):
    args = harness.parser(__doc__, rounds=5, steps=4).parse_args(argv)
    os.environ.update(ONE_THREAD)  # of the processes to come
    for network, num_tasks in CASES:
        print(network, num_tasks, flush=True)
        harness.once(
            args.results / "cost.jsonl",
            {"network": network, "tasks": num_tasks},
            functools.partial(
                measure, network, num_tasks, args.rounds, args.steps
            ),
            "torch",
            "torchjd",
        )


if __name__ == "__main__":
    main()
