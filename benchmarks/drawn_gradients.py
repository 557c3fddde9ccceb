"""Gradients of tasks over batches, drawn so that the truth is known."""

import numpy as np


def directions(rng, num, size):
    """`[num, size]`, orthonormal."""
    q, _ = np.linalg.qr(rng.normal(size=(size, num)))
    return q.T


def products(gradients):
    """`[m, m, B, B]` of gradients `[m, B, n]`."""
    m, B, n = gradients.shape
    flat = gradients.reshape(m * B, n)
    return (flat @ flat.T).reshape(m, B, m, B).swapaxes(1, 2)


def noisy(rng, means, num_batches, signal, common=0.0):
    """`[m, B, n]`: means with noise, of which a part is common to all tasks.

    `signal` is the share of a mean in the squared norm of a batch's gradient.
    """
    m, n = means.shape
    noise = np.sqrt(common) * rng.normal(size=(1, num_batches, n))
    noise = noise + np.sqrt(1 - common) * rng.normal(size=(m, num_batches, n))
    scale = np.sqrt((1 / signal - 1) / n) * np.linalg.norm(means, axis=1)
    return means[:, None] + scale[:, None, None] * noise


def of_cosine(rng, cosine, size):
    """`[2, n]`, two unit vectors."""
    u, v = directions(rng, 2, size)
    return np.stack([u, cosine * u + np.sqrt(1 - cosine**2) * v])


# Each a function of a generator that returns gradients `[m, B, n]`, and maybe
# more of what `diagnosis_of` takes; with what has to be found, and what may be.


def twice(rng):
    one = noisy(rng, of_cosine(rng, 0.2, 100)[:1], 32, 0.2)
    return np.concatenate([one, one]), {}


def scaled(rng):
    found = noisy(rng, of_cosine(rng, 0.0, 200), 32, 0.3)
    return found * [[[1000.0]], [[1.0]]], {}


def opposed(rng):
    u = of_cosine(rng, 0.0, 50)[:1]
    return np.repeat(np.concatenate([u, -u])[:, None], 32, axis=1), {}


def opposed_with_noise(rng):
    return noisy(rng, of_cosine(rng, -0.8, 200), 32, 0.2), {}


def opposed_with_bias(rng):
    """One of five tasks is opposed to the mean of the others."""
    u = directions(rng, 5, 500)
    u[4] = 0.3 * u[4] - u[:4].sum(0) / 2
    return noisy(rng, u, 32, 0.5), {}


def independent(rng):
    return noisy(rng, directions(rng, 6, 600), 32, 0.3), {}


def noise_alone(rng, batch_size):
    mean = rng.normal(size=(1, 20))
    signal = batch_size / (batch_size + 200)
    return noisy(rng, np.repeat(mean, 2, axis=0), 32, signal), {}


def one_solved(rng):
    found = noisy(rng, directions(rng, 3, 300), 32, 0.3)
    found[2] = 1e-4 * rng.normal(size=found[2].shape)
    losses = np.ones([32, 3]) * [0.7, 2.0, 1e-4]
    return found, {"losses": losses, "other_losses": np.full([32, 3], 2.0)}


def one_solved_up_to_noise(rng):
    found = noisy(rng, directions(rng, 3, 300), 32, 0.4)
    found[1] = rng.normal(size=found[1].shape) / np.sqrt(300)
    return found, {}


def one_without_labels(rng):
    found = noisy(rng, directions(rng, 3, 300), 32, 0.3)
    found[0] = 0.0
    labels = np.ones([32, 3]) * [0, 8, 8]
    return found, {"num_labels": labels, "num_examples": np.full([32, 3], 8)}


PROBLEMS = {
    "the same task twice": (twice, {("same", (0, 1))}, {"no conflict"}),
    "a loss times 1000": (scaled, {("scale", (0,)), ("starves", (1,))}, set()),
    "opposed": (opposed, {("conflict", (0, 1))}, set()),
    "opposed, with noise": (
        opposed_with_noise,
        {("conflict", (0, 1))},
        set(),
    ),
    "one against all": (
        opposed_with_bias,
        {("conflict", (0, 4))},
        {"conflict"},
    ),
    "independent": (independent, {("no conflict", tuple(range(6)))}, set()),
    "noise alone, batch 8": (
        lambda rng: noise_alone(rng, 8),
        {("noise", (0, 1))},
        {"same"},
    ),
    "noise alone, batch 512": (
        lambda rng: noise_alone(rng, 512),
        {("no conflict", (0, 1))},
        {"same"},
    ),
    "a solved task": (one_solved, {("done", (2,))}, {"no conflict"}),
    "a task solved up to noise": (
        one_solved_up_to_noise,
        {("done", (1,))},
        {"no conflict"},
    ),
    "a task without labels": (
        one_without_labels,
        {("unlabelled", (0,))},
        {"no conflict"},
    ),
}


def rates(name, seeds, diagnose):
    """How often all is found that has to be, and something that is wrong."""
    make, wanted, allowed = PROBLEMS[name]
    right = wrong = 0
    for seed in seeds:
        gradients, more = make(np.random.default_rng(seed))
        names = [str(t) for t in range(len(gradients))]
        found = diagnose(products(gradients), names, **more).findings
        kinds = {(f.kind, tuple(map(int, f.tasks))) for f in found}
        right += wanted <= kinds
        wrong += any(kind not in allowed for kind, _ in kinds - wanted)
    return right / len(seeds), wrong / len(seeds)
