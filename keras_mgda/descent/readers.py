"""Which tasks read what: the tensors of `Z`, and the variables.

A variable that two or more tasks reach is shared, wherever it stands; one that
a single task reaches is that task's own, a part of its head. Where tasks are
the columns of one output, so is each column of the kernel that makes them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_mgda.descent.forward import ForwardPass, values


class Readers(NamedTuple):
    """The tasks, by index, that read each part of a model.

    Attributes:
        num_tasks: `m`.
        of_z: for each tensor of `Z` those that read it, or another tensor of
            `Z` that it feeds.
        of_variables: for each variable those that reach it: two or more of a
            shared one, one of a head's own.
        past_z: for each variable those that reach it without passing `Z`.
        through_z: for each variable those that reach it through `Z`.
        by_column: the variables whose columns, along the last axis, are the
            tasks' own.
    """

    num_tasks: int
    of_z: list[set[int]]
    of_variables: list[list[int]]
    past_z: list[set[int]]
    through_z: list[set[int]]
    by_column: frozenset[int] = frozenset()

    @property
    def branches(self) -> list[int]:
        """The variables of heads that begin before `Z`.

        They are a branch of the encoder that a single task reads.
        """
        return [
            i
            for i, of_variable in enumerate(self.through_z)
            if of_variable and not self.is_shared(i)
        ]

    def is_shared(self, i: int) -> bool:
        """Whether variable `i` is no task's own.

        With one task the encoder is what lies before `Z`.
        """
        if i in self.by_column:
            return False
        if self.num_tasks == 1:
            return not self.past_z[i]
        return len(self.of_variables[i]) != 1

    def owners(self, i: int) -> list[int]:
        """The task whose own variable `i` is, or the tasks of its columns.

        None for what is shared.
        """
        return [] if self.is_shared(i) else self.of_variables[i]


def find_readers(
    forward: ForwardPass, variables: Sequence[keras.Variable]
) -> Readers:
    """Reads off the tape what depends on what. No gradient is computed."""
    sources = [z.read for z in forward.representations] + values(variables)
    return readers_of_reached(
        forward,
        variables,
        [forward.reaching(of_output, sources) for of_output in losses(forward)],
    )


def losses(forward: ForwardPass) -> list[list[Any]]:
    """The losses of each output, in order: of one task, or of its columns."""
    return list(forward.task_losses.values())


def readers_of_reached(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    reached: Sequence[Sequence[bool]],
) -> Readers:
    """The readers, where it is known what the losses reach past shut gates.

    Args:
        forward: the forward pass.
        variables: the trainable variables of the model.
        reached: for each output, which tensors of `Z` and which variables.

    Raises:
        ValueError: if other tasks reach a kernel whose columns are tasks.
    """
    tasks: dict[str, list[int]] = {}
    for t, output in enumerate(forward.output_of_task):
        tasks.setdefault(output, []).append(t)
    by_source = [
        {
            t
            for of_output, reaches in zip(
                tasks.values(), of_source, strict=True
            )
            if reaches
            for t in of_output
        }
        for of_source in zip(*reached, strict=True)
    ]
    num_tensors = len(forward.representations)
    of_z = _with_later_tensors(forward, by_source[:num_tensors])
    past_z = by_source[num_tensors:]
    through_z = _through_representation(forward, variables, of_z, past_z)
    of_variables = [
        sorted(past | through)
        for past, through in zip(past_z, through_z, strict=True)
    ]
    by_column = set()
    for output, head in forward.column_heads.items():
        own = {id(variable) for variable in head.variables}
        for i, variable in enumerate(variables):
            if id(variable) in own:
                _check_alone(output, variable, of_variables[i], tasks[output])
                by_column.add(i)
    return Readers(
        forward.num_tasks,
        of_z,
        of_variables,
        past_z,
        through_z,
        frozenset(by_column),
    )


def _check_alone(
    output: str,
    variable: keras.Variable,
    found: Sequence[int],
    expected: Sequence[int],
) -> None:
    if list(found) != list(expected):
        raise ValueError(
            "The last layer of an output whose columns are tasks must serve "
            f"no other output. Received: the variable '{variable.path}' of "
            f"output '{output}', which others reach, too. Give each output "
            "a layer of its own."
        )


def _with_later_tensors(
    forward: ForwardPass, direct: Sequence[set[int]]
) -> list[set[int]]:
    """A tensor that feeds a later one serves the tasks of that one, too."""
    of_z = [set(of_tensor) for of_tensor in direct]
    for k in reversed(range(len(of_z))):
        for later in range(k + 1, len(of_z)):
            if not of_z[later] <= of_z[k] and any(
                forward.reaching(
                    [forward.representations[later].encoded],
                    [forward.representations[k].read],
                )
            ):
                of_z[k] |= of_z[later]
    return of_z


def _through_representation(
    forward: ForwardPass,
    variables: Sequence[keras.Variable],
    of_z: Sequence[set[int]],
    past_z: Sequence[set[int]],
) -> list[set[int]]:
    """For each variable the tasks that reach it through `Z`.

    A look at the tape costs a trace of the encoder's backward pass. Mostly it
    is not needed: all tasks read all of `Z`, and what was read before `Z` and
    is not reached past it is the encoder's.
    """
    every = set(range(forward.num_tasks))
    before = forward.before_representation(variables)
    plain = all(of_tensor == every for of_tensor in of_z)
    found = [
        set(every) if plain and possible and not past else set()
        for possible, past in zip(before, past_z, strict=True)
    ]
    groups: dict[frozenset[int], list[Any]] = {}
    for of_tensor, z in zip(of_z, forward.representations, strict=True):
        groups.setdefault(frozenset(of_tensor), []).append(z.encoded)
    for of_group, encoded in groups.items():
        unknown = [
            i
            for i, possible in enumerate(before)
            if possible and not (found[i] | past_z[i]) >= of_group
        ]
        reached = forward.reaching(
            encoded, values([variables[i] for i in unknown])
        )
        for i, is_reached in zip(unknown, reached, strict=True):
            if is_reached:
                found[i] |= of_group
    return found
