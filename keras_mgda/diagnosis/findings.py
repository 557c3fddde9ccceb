"""What the intervals support, with what can be done about it.

Every number that a finding stands on is here, with its reason.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_mgda.diagnosis.estimates import (
    MIN_BATCHES,
    Array,
    Estimates,
    interval_of_ratio,
    of_each,
)
from keras_mgda.diagnosis.means import Means

Kind = Literal[
    "scale", "starves", "conflict", "noise", "same", "done", "unlabelled",
    "no conflict",
]  # fmt: skip

# A cosine of at most this size is none. Of two tasks with gradients of equal
# norm, the sum then still brings either 90 % of what it would without a
# conflict, less than a change of the learning rate does.
NEGLIGIBLE = 0.1

# A task holds the direction from this share of it on: all others together
# decide less than a tenth. Two tasks without a conflict reach it where one
# gradient is three times as long as the other.
HOLDS = 0.9

# A task starves if the plain sum brings it less than this part of what it would
# bring to each of `m` independent tasks of equal norm, whose cosine with the
# sum is `1 / sqrt(m)`. For two tasks that is a ratio of norms of 5.6.
STARVES = 0.25

# From this cosine on the gradients of two tasks are the same for the encoder:
# either is 95 % of what the other asks for.
SAME = 0.95

# What happens in less than one step of forty is not worth a word.
FREQUENT = 0.025

# A task is done if its loss is this part of what its own predictions cost when
# each is given to another example,
DONE_LOSS = 0.01
# with a gradient this much shorter than the longest,
DONE_NORM = 0.1
# or if its gradient is noise: at most this share of it is signal,
DONE_SIGNAL = 0.05
# and another task's share is this many times as large. Without the second, a
# small batch would make all tasks look done.
DONE_CONTRAST = 5.0


class Finding(NamedTuple):
    """Something that the intervals support.

    Attributes:
        kind: `"scale"`: a task holds the direction of the plain sum.
            `"starves"`: the plain sum brings a task next to nothing.
            `"conflict"`: the mean gradients are opposed. `"noise"`: only those
            of single batches are. `"same"`: two tasks ask the same of the
            encoder. `"done"`: a task has nothing left to learn.
            `"unlabelled"`: no batch held a label. `"no conflict"`: the plain
            sum helps every task.
        tasks: whose it is.
        numbers: what it stands on.
        advice: what can be done.
    """

    kind: Kind
    tasks: tuple[str, ...]
    numbers: dict[str, float]
    advice: str


def findings_of(
    means: Means,
    names: list[str],
    q: float,
    *,
    labelled: npt.NDArray[np.bool_],
    losses: Array,
    other_losses: Array,
    harmful: float,
) -> list[Finding]:
    """What holds at the ends of intervals of `q` standard errors.

    Args:
        means: of the `m` tasks.
        names: theirs.
        q: half an interval, in standard errors.
        labelled: `[m]`, whether there are labels of a task that count.
        losses: `[B, m]`; NaN where they are unknown.
        other_losses: `[B, m]`, the losses if predictions are those for other
            examples.
        harmful: share of the steps of the plain sum that harm some task.
    """
    done = _done(means, q, labelled, losses, other_losses)
    seen = _Evidence(means, names, q, np.flatnonzero(labelled & ~done).tolist())
    found = [
        *_unlabelled(seen, np.flatnonzero(~labelled).tolist()),
        *_nothing_left(seen, np.flatnonzero(done).tolist()),
        *_in_conflict(seen),
        *_against_the_sum(seen),
        *_holds_the_sum(seen),
        *_starves(seen),
        *_the_same(seen),
        *_noise(seen),
    ]
    kinds = {finding.kind for finding in found}
    if not kinds & {"conflict", "noise", "scale", "starves"}:
        found += _no_conflict(seen, harmful)
    return found


class _Evidence:
    """What the findings have in common.

    Attributes:
        means: of the `m` tasks.
        q: half an interval, in standard errors.
        active: the tasks that have something to learn.
        pairs: of these.
        cosines: `[m + 1, m + 1]`, of the means, `t = m` standing for the sum.
        shares: `[m]`, of the direction of the sum.
        signals: `[m]`, what is no noise in the gradient of a batch.
        opposed: the pairs whose means are in conflict.
    """

    def __init__(
        self, means: Means, names: list[str], q: float, active: list[int]
    ) -> None:
        self.means = means
        self.q = q
        self.active = active
        self.pairs = list(itertools.combinations(active, 2))
        self.cosines = means.cosines(q)
        self.shares = means.shares(q)
        self.signals = means.signals(q)
        self.opposed = [
            (t, s)
            for t, s in self.pairs
            if self.cosines.high[t, s] < -NEGLIGIBLE
        ]
        self._names = names

    def finding(
        self, kind: Kind, tasks: Iterable[int], advice: str, **numbers: Any
    ) -> Finding:
        return Finding(
            kind,
            tuple(self._names[t] for t in tasks),
            {name: float(value) for name, value in numbers.items()},
            advice,
        )

    @property
    def among_others(self) -> list[int]:
        """The active tasks, unless there is one alone."""
        return self.active if len(self.active) > 1 else []

    @property
    def not_opposed(self) -> list[int]:
        """Those among others that none of these is in conflict with."""
        in_conflict = {t for pair in self.opposed for t in pair}
        return [t for t in self.among_others if t not in in_conflict]


def _unlabelled(seen: _Evidence, tasks: list[int]) -> Iterator[Finding]:
    for t in tasks:
        yield seen.finding(
            "unlabelled",
            [t],
            "No batch holds a label of it that counts: it trains nothing. Look "
            "for its labels and sample weights, or give its output the loss "
            "`None`.",
            labelled=0,
        )


def _nothing_left(seen: _Evidence, tasks: list[int]) -> Iterator[Finding]:
    for t in tasks:
        yield seen.finding(
            "done",
            [t],
            "Its gradient holds nothing that is left to learn. Leave it, or "
            "give it less weight; if its metrics are poor, look whether its "
            "head is stuck.",
            norm=math.sqrt(seen.means.squared[t]),
            signal=seen.signals.value[t],
            signal_high=seen.signals.high[t],
        )


def _in_conflict(seen: _Evidence) -> Iterator[Finding]:
    for t, s in seen.opposed:
        yield seen.finding(
            "conflict",
            [t, s],
            "Their mean gradients are opposed, and larger batches will not "
            "change it: choose a direction that raises neither loss "
            "(`weighting='upgrad', gradients='verified'`), or give them layers "
            "of their own.",
            cosine=seen.cosines.value[t, s],
            low=seen.cosines.low[t, s],
            high=seen.cosines.high[t, s],
        )


def _against_the_sum(seen: _Evidence) -> Iterator[Finding]:
    m = seen.means.num_tasks
    for t in seen.not_opposed:
        if seen.cosines.high[t, m] < -NEGLIGIBLE:
            yield seen.finding(
                "conflict",
                [t],
                "The plain sum of all tasks raises its loss: choose a "
                "direction that raises none (`weighting='upgrad', "
                "gradients='verified'`).",
                cosine=seen.cosines.value[t, m],
                low=seen.cosines.low[t, m],
                high=seen.cosines.high[t, m],
            )


def _holds_the_sum(seen: _Evidence) -> Iterator[Finding]:
    of_norms = seen.means.shares_of_norms(seen.q)
    for t in seen.among_others:
        # Of tasks opposed to it, a share of one is soon exceeded.
        if seen.shares.low[t] > HOLDS and of_norms.low[t] > HOLDS:
            yield seen.finding(
                "scale",
                [t],
                "It decides where the plain sum goes, by the length of its "
                "gradient. Lower its loss weight, or choose a weighting that "
                "does not depend on the unit of a loss "
                "(`weighting='imtl_g'`).",
                share=seen.shares.value[t],
                low=seen.shares.low[t],
            )


def _starves(seen: _Evidence) -> Iterator[Finding]:
    m = seen.means.num_tasks
    for t in seen.not_opposed:
        if -NEGLIGIBLE < seen.cosines.high[t, m] < STARVES / math.sqrt(m):
            yield seen.finding(
                "starves",
                [t],
                "A step of the plain sum brings it next to nothing. Raise its "
                "loss weight, or choose a weighting that does not depend on "
                "the unit of a loss (`weighting='imtl_g'`).",
                progress=seen.cosines.value[t, m],
                high=seen.cosines.high[t, m],
                share=seen.shares.value[t],
            )


def _the_same(seen: _Evidence) -> Iterator[Finding]:
    for t, s in seen.pairs:
        of_batches = seen.means.known_cosines(t, s)
        if len(of_batches) < MIN_BATCHES:
            continue
        mean, spread = of_batches.mean(), of_batches.std(ddof=1)
        error = spread / math.sqrt(len(of_batches))
        if max(seen.cosines.low[t, s], mean - seen.q * error) > SAME:
            yield seen.finding(
                "same",
                [t, s],
                "They ask the same of the encoder: one of them may do, or one "
                "head for both; together they weigh twice.",
                cosine=seen.cosines.value[t, s],
                low=seen.cosines.low[t, s],
                cosine_in_batches=mean,
            )


def _noise(seen: _Evidence) -> Iterator[Finding]:
    """Adverse batches without a conflict of the means.

    Where the most adverse ones are follows from mean and spread of the cosines
    in batches; to count batches would take more of them.
    """
    contributions = seen.means.contributions(seen.q)
    tail = statistics.NormalDist().inv_cdf(FREQUENT)
    noisy: dict[tuple[int, int], float] = {}
    for t, s in seen.pairs:
        of_batches = seen.means.known_cosines(t, s)
        if len(of_batches) < MIN_BATCHES:
            continue
        mean, spread = of_batches.mean(), of_batches.std(ddof=1)
        error = spread * math.sqrt((1 + tail**2 / 2) / len(of_batches))
        if (
            mean + tail * spread + seen.q * error < -NEGLIGIBLE
            and contributions[t, s] > -NEGLIGIBLE
            and (t, s) not in seen.opposed
        ):
            noisy[t, s] = float((of_batches < -NEGLIGIBLE).mean())
    if noisy:
        yield seen.finding(
            "noise",
            sorted({t for pair in noisy for t in pair}),
            "Single batches are in conflict, but not by what the tasks have in "
            "common over all of them. A larger batch will help, another "
            "method will not.",
            pairs=len(noisy),
            batches_in_conflict=np.mean(list(noisy.values())),
            signal=np.mean(seen.signals.value[seen.active]),
        )


def _no_conflict(seen: _Evidence, harmful: float) -> Iterator[Finding]:
    tasks = seen.among_others
    progress = Estimates(
        *(part[tasks, seen.means.num_tasks] for part in seen.cosines)
    )
    if tasks and (progress.low > 0).all() and harmful <= FREQUENT:
        yield seen.finding(
            "no conflict",
            tasks,
            "The plain sum helps every task: keep it (`weighting='uniform'`).",
            least_progress=progress.value.min(),
            low=progress.low.min(),
            harmful=harmful,
        )


def _done(
    means: Means,
    q: float,
    labelled: npt.NDArray[np.bool_],
    losses: Array,
    other_losses: Array,
) -> npt.NDArray[np.bool_]:
    """Which tasks have nothing left to learn."""
    m = means.num_tasks
    squared = np.where(labelled, means.squared[:m], 0.0)
    nothing = squared == 0
    ratio = interval_of_ratio(
        of_each(np.nan_to_num(losses.T)),
        of_each(np.nan_to_num(other_losses.T)),
        q,
    )
    # A loss that goes below zero does not end there.
    ends_at_zero = ~((losses < 0) | (other_losses < 0)).any(axis=0)
    solved = ends_at_zero & (ratio.high < DONE_LOSS)
    solved &= squared <= DONE_NORM**2 * squared.max()
    signal = means.signals(q)
    contrast = signal.low.max(initial=0.0, where=labelled)
    noise = signal.high < np.minimum(DONE_SIGNAL, contrast / DONE_CONTRAST)
    return labelled & (nothing | solved | noise)
