"""Exact MGDA against TorchJD's, each in units of its own plain step.

ResNet-18 of width 16 with 40 tasks, batch 16, 64x64, as in step_cost.py: in
Keras, stock and `gradients="parameters"`; the same network in PyTorch, by
`loss.backward()` and by TorchJD's `mtl_backward` with its MGDA, which pulls
back one task after another (chunk size 1) or all at once, its default. SGD
with momentum; one process, rounds in an order that changes, one thread each. A
ratio is the median over the rounds of the ratios within a round. Prints a
table and writes results/exact.json.

    python benchmarks/exact.py [--rounds 5] [--steps 4]
"""

import argparse
import importlib.metadata
import json
import pathlib
import platform
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
import torch
from step_cost import batches, build, resnet18
from torch import nn
from torch.nn import functional
from torchjd.aggregation import MGDA
from torchjd.autojac import jac_to_grad, mtl_backward

RESULTS = pathlib.Path(__file__).parent / "results" / "exact.json"
NUM_TASKS, BATCH, WIDTH, SIZE = 40, 16, 16, 64


class Block(nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        self.first = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for _ in range(2))
        self.around = nn.Identity()
        if stride > 1:
            self.around = nn.Sequential(
                nn.Conv2d(before, filters, 1, stride, bias=False),
                nn.BatchNorm2d(filters),
            )

    def forward(self, x):
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.around(x))


def torch_encoder():
    blocks, before = [], WIDTH
    for stage, stride in enumerate((1, 2, 2, 2)):
        filters = WIDTH * 2**stage
        blocks += [Block(before, filters, stride), Block(filters, filters, 1)]
        before = filters
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        *blocks,
        nn.AvgPool2d(4),
        nn.Flatten(),
    )


def torch_step(chunk_size, exact=True):
    """A step of PyTorch, by TorchJD if it is `exact`."""
    torch.manual_seed(0)
    encoder = torch_encoder()
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(BATCH, 3, SIZE, SIZE)).astype("float32"))
    y = torch.tensor(rng.integers(0, 2, (NUM_TASKS, BATCH)))
    width = encoder(x).shape[1]
    heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(NUM_TASKS))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9)
    aggregator = MGDA()

    def step():
        optimizer.zero_grad()
        z = encoder(x)
        losses = [
            functional.cross_entropy(head(z), labels)
            for head, labels in zip(heads, y, strict=True)
        ]
        if exact:
            mtl_backward(losses, features=z, parallel_chunk_size=chunk_size)
            jac_to_grad(encoder.parameters(), aggregator)
        else:
            sum(losses).backward()
        optimizer.step()

    return step, sum(p.numel() for p in parameters)


def keras_step(compile_args):
    model = build(resnet18, NUM_TASKS, compile_args)
    data = batches(model, BATCH)
    model.fit(data, steps_per_epoch=1, verbose=0)  # traces
    iterator = iter(data)
    return lambda: model.train_function(iterator), model.count_params()


# What makes a step, and which is the plain one of its library.
METHODS = {
    "stock Keras": (lambda: keras_step(None), "stock Keras"),
    "exact MGDA": (
        lambda: keras_step({"gradients": "parameters"}),
        "stock Keras",
    ),
    "PyTorch": (lambda: torch_step(None, exact=False), "PyTorch"),
    "TorchJD, chunk size 1": (lambda: torch_step(1), "PyTorch"),
    "TorchJD, default": (lambda: torch_step(None), "PyTorch"),
}


def main(rounds, steps):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    torch.set_num_threads(1)
    made = {name: make() for name, (make, _) in METHODS.items()}
    for step, _ in made.values():
        step()
    seconds = {name: [] for name in METHODS}
    order = list(METHODS)
    for _ in range(rounds):
        order = order[1:] + order[:1]
        for name in order:
            repeats = steps if METHODS[name][1] == name else 1
            start = time.perf_counter()
            for _ in range(repeats):
                made[name][0]()
            seconds[name].append((time.perf_counter() - start) / repeats)
    results = []
    for name, (_, plain) in METHODS.items():
        ratios = [
            own / other
            for own, other in zip(seconds[name], seconds[plain], strict=True)
        ]
        results.append(
            {
                "method": name,
                "parameters": int(made[name][1]),
                "seconds": statistics.median(seconds[name]),
                "ratio": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        )
        print(
            f"{name:24}{1e3 * results[-1]['seconds']:10.1f} ms"
            f"{results[-1]['ratio']:8.1f} ({min(ratios):.1f} to "
            f"{max(ratios):.1f}) of its plain step",
            flush=True,
        )
    RESULTS.write_text(
        json.dumps(
            {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "torch": torch.__version__,
                "torchjd": importlib.metadata.version("torchjd"),
                "machine": f"{platform.machine()}, CPU",
                "threads": 1,
                "rounds": rounds,
                "steps": steps,
                "results": results,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    main(**vars(parser.parse_args()))
