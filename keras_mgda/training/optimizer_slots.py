"""Of optimizers: whose variables are whose, and whether gradients gather."""

import collections
from collections.abc import Iterator, Sequence

import keras


def variables_of_slots(
    slots: Sequence[keras.Variable], variables: Sequence[keras.Variable]
) -> list[int | None]:
    """For each slot the index of the variable that it belongs to.

    Keras names a slot after its variable, and makes those of one kind in the
    order of the variables, which tells apart variables of the same path.

    Args:
        slots: the variables of an optimizer.
        variables: that it was built for, in this order.

    Returns:
        Indices; `None` for what belongs to no variable alone, such as the
        number of iterations.
    """
    by_name: dict[str, list[int]] = {}
    for i, variable in enumerate(variables):
        by_name.setdefault(variable.path.replace("/", "_"), []).append(i)
    met: collections.Counter[str] = collections.Counter()
    found: list[int | None] = []
    for slot in slots:
        alike = next(
            (by_name[p] for p in _prefixes(slot.name) if p in by_name), [None]
        )
        found.append(alike[met[slot.name] % len(alike)])
        met[slot.name] += 1
    return found


def gathers_gradients(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether it moves the variables in some steps only."""
    return has_option(optimizer, "gradient_accumulation_steps")


def has_option(optimizer: keras.optimizers.Optimizer, name: str) -> bool:
    """Whether it sets this option, or one of those that it is made of does."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return any(
        getattr(one, name, None)
        for one in getattr(optimizer, "optimizers", [optimizer])
    )


def _prefixes(name: str) -> Iterator[str]:
    """`"a_b"` and `"a"` of `"a_b_c"`."""
    while "_" in name:
        name = name.rpartition("_")[0]
        yield name
