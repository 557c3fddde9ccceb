"""What was found of tasks and steps, in words and in pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_mgda.diagnosis.estimates import (
    CONFIDENCE,
    Array,
    Estimate,
    student,
)
from keras_mgda.diagnosis.findings import Finding, findings_of
from keras_mgda.diagnosis.means import Means
from keras_mgda.diagnosis.steps import StepReport, step_report

# Findings that are printed; of many tasks, many pairs can be in conflict.
_MOST_WORDS = 20


class TaskReport(NamedTuple):
    """What was found of one task.

    Attributes:
        loss: mean over the batches, before loss weights.
        norm: of the mean gradient of the shared variables, without what noise
            adds to it.
        norm_in_batch: root of the mean squared norm in a batch.
        share: of the direction of the plain sum, `<mu_t, d> / |d|^2`. All
            shares sum to one; that of a task which the sum harms is negative.
        signal: `|mu_t|^2 / E |g_t|^2`: one less than it is the trace of the
            covariance of the gradient of a batch, in the same unit.
        progress: the cosine of `mu_t` and `d`: what a step of the plain sum
            brings this task, in parts of what a step of its own would.
        labelled: share of the examples that are labelled.
    """

    loss: float
    norm: float
    norm_in_batch: float
    share: Estimate
    signal: Estimate
    progress: Estimate
    labelled: float


class Diagnosis:
    """What `diagnose` found. `print` shows it in words.

    Attributes:
        task_names: of the `m` tasks, in order.
        num_batches: that were looked at.
        sketch_size: numbers by which a gradient was represented; `None` if
            all of it was.
        tasks: `{task: TaskReport}`.
        cosines: `[m, m]`, of the mean gradients; NaN if not to be told.
        intervals: `[2, m, m]`, the ends of their 95 % intervals.
        certain: `[m, m]`, bool, whether a cosine differs from zero, all pairs
            considered at once.
        cosines_in_batches: `[m, m]`, the mean cosine within a batch.
        steps: `{method: StepReport}`.
        stationarity: how far the point is from Pareto stationary: the norm of
            the min-norm point of the mean gradients, in parts of the smallest
            of their norms. 1 for one task, 0 at a Pareto stationary point.
        findings: what follows, and what to do.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        num_batches: int,
        sketch_size: int | None,
        tasks: Mapping[str, TaskReport],
        cosines: Array,
        intervals: Array,
        certain: npt.NDArray[np.bool_],
        cosines_in_batches: Array,
        steps: Mapping[str, StepReport],
        stationarity: Estimate,
        findings: Sequence[Finding],
    ) -> None:
        self.task_names = list(task_names)
        self.num_batches = num_batches
        self.sketch_size = sketch_size
        self.tasks = dict(tasks)
        self.cosines = cosines
        self.intervals = intervals
        self.certain = certain
        self.cosines_in_batches = cosines_in_batches
        self.steps = dict(steps)
        self.stationarity = stationarity
        self.findings = list(findings)

    def __str__(self) -> str:
        width = max(len("task"), *map(len, self.task_names))
        lines = [
            f"{len(self.task_names)} tasks, {self.num_batches} batches, "
            f"{CONFIDENCE:.0%} intervals.",
            "",
            f"{'task':{width}}  {'loss':>9}  {'norm':>9}  "
            f"{'share of sum':>22}  {'signal':>22}  {'labelled':>8}",
        ]
        lines += [
            f"{task:{width}}  {found.loss:9.3g}  {found.norm:9.3g}  "
            f"{found.share!s:>22}  {found.signal!s:>22}  "
            f"{found.labelled:8.0%}"
            for task, found in self.tasks.items()
        ]
        lines += ["", "Steps that raise some task's loss:"]
        lines += [
            f"  {method}: {found.harmful}, "
            f"{found.conflicts:.2g} tasks in a step"
            for method, found in self.steps.items()
        ]
        lines += [
            f"Distance from Pareto stationarity: {self.stationarity}.",
            "",
            "Findings:",
        ]
        lines += [
            f"- {f.kind}: {', '.join(f.tasks)} "
            f"({', '.join(f'{k} {v:.2g}' for k, v in f.numbers.items())}). "
            f"{f.advice}"
            for f in self.findings[:_MOST_WORDS]
        ] or ["- none that the batches support; look at more `steps`."]
        if len(self.findings) > _MOST_WORDS:
            more = len(self.findings) - _MOST_WORDS
            lines.append(f"- and {more} more, in `findings`.")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it, with null for what is not finite."""
        return json.dumps(
            _finite(
                {
                    "task_names": self.task_names,
                    "num_batches": self.num_batches,
                    "sketch_size": self.sketch_size,
                    "tasks": {t: r._asdict() for t, r in self.tasks.items()},
                    "cosines": self.cosines.tolist(),
                    "intervals": self.intervals.tolist(),
                    "certain": self.certain.tolist(),
                    "cosines_in_batches": self.cosines_in_batches.tolist(),
                    "steps": {s: r._asdict() for s, r in self.steps.items()},
                    "stationarity": self.stationarity,
                    "findings": [f._asdict() for f in self.findings],
                }
            )
        )

    def plot(self) -> Any:
        """One figure: cosines, shares, and signal against noise.

        Cosines that could as well be zero are grey. Needs matplotlib.

        Returns:
            A `matplotlib.figure.Figure`, to show or to save.

        Raises:
            ImportError: if there is no matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "`plot` needs matplotlib: pip install matplotlib. `print` and "
                "`to_json` do without."
            ) from error
        m = len(self.task_names)
        size = max(3.0, 0.3 * m)
        figure = Figure(figsize=(3 * size, size), layout="constrained")
        cosines, shares, signals = figure.subplots(1, 3)
        certain = self.certain | np.eye(m, dtype=bool)
        shown = np.ma.masked_where(~certain, self.cosines)
        cosines.set_facecolor("0.85")
        image = cosines.imshow(shown, cmap="RdBu", vmin=-1, vmax=1)
        figure.colorbar(image, ax=cosines)
        cosines.set_title("cosine of the means (grey: may be 0)", fontsize=9)
        cosines.set_xticks(range(m), self.task_names, rotation=90)
        cosines.set_yticks(range(m), self.task_names)
        reports = list(self.tasks.values())
        for axes, title, found in (
            (shares, "share of the plain sum", [r.share for r in reports]),
            (signals, "signal in a batch's gradient",
             [r.signal for r in reports]),
        ):  # fmt: skip
            values = np.array([f.value for f in found])
            low = np.array([f.low for f in found])
            high = np.array([f.high for f in found])
            known = np.isfinite(values) & np.isfinite(low) & np.isfinite(high)
            places = np.arange(m)
            axes.barh(places, np.where(known, values, 0.0), color="0.6")
            errors = np.maximum([values - low, high - values], 0)[:, known]
            axes.errorbar(
                values[known], places[known], xerr=errors, fmt="k.", ms=3
            )
            axes.set_title(title, fontsize=9)
            axes.set_yticks(places, self.task_names)
            axes.invert_yaxis()
        return figure


def diagnosis_of(
    products: Array,
    task_names: Sequence[str],
    *,
    losses: Any = None,
    other_losses: Any = None,
    num_labels: Any = None,
    num_examples: Any = None,
    task_weights: Mapping[str, Any] | None = None,
    sketch_size: int | None = None,
) -> Diagnosis:
    """The diagnosis from inner products alone, without any model.

    Args:
        products: `[m, m, B, B]`, `<g_t^i, g_s^j>` at `[t, s, i, j]`.
        task_names: of the `m` tasks.
        losses: `[B, m]`; unknown by default.
        other_losses: `[B, m]`, the losses if predictions are those for other
            examples; unknown by default.
        num_labels: `[B, m]`, how many labels the tasks have in each batch;
            all by default.
        num_examples: `[B, m]`, how many there could be.
        task_weights: `{method: [B, m]}`, its steps to look at; the plain sum
            by default.
        sketch_size: of the gradients that were multiplied, if sketched.
    """
    products = np.asarray(products, float)
    m, B = products.shape[1:3]
    unknown = np.full([B, m], np.nan)
    losses = unknown if losses is None else np.asarray(losses, float)
    others = unknown if other_losses is None else np.asarray(other_losses)
    examples = np.ones([B, m]) if num_examples is None else num_examples
    labels = examples if num_labels is None else num_labels
    labels, examples = np.asarray(labels, float), np.asarray(examples, float)
    means = Means(products, sketch_size)
    steps = {
        method: step_report(products, np.asarray(w, float))
        for method, w in (
            task_weights or {"plain sum": np.ones([B, m])}
        ).items()
    }
    share_of_labels = labels.sum(0) / examples.sum(0)
    # A batch without labels has no loss to count.
    counts = np.maximum(labels.sum(0), 1e-12)
    mean_losses = np.where(labels > 0, losses * labels, 0.0).sum(0) / counts
    q = student((1 + CONFIDENCE) / 2, B - 1)
    cosines = means.cosines(q)
    shares, signals = means.shares(q), means.signals(q)
    reports = {
        task: TaskReport(
            loss=float(mean_losses[t]),
            norm=math.sqrt(max(means.inner[t, t], 0.0)),
            norm_in_batch=math.sqrt(means.squared[t]),
            share=shares.at(t),
            signal=signals.at(t),
            progress=cosines.at((t, m)),
            labelled=float(share_of_labels[t]),
        )
        for t, task in enumerate(task_names)
    }
    # Sample weights of zero: whatever is predicted, the loss is zero.
    counts_nothing = (
        (losses == 0).all(axis=0)
        & (others == 0).all(axis=0)
        & (means.squared[:m] == 0)
    )
    # All that could be found is at most at this level, together.
    num_statements = 2 * m * (m - 1) + 5 * m
    level = (1 - CONFIDENCE) / num_statements
    together = student(1 - level, B - 1)
    findings = findings_of(
        means,
        list(task_names),
        together,
        labelled=(share_of_labels > 0) & ~counts_nothing,
        losses=losses,
        other_losses=others,
        harmful=step_report(products, np.ones([B, m])).harmful.value,
    )
    certain = means.cosines(together)
    return Diagnosis(
        task_names,
        B,
        sketch_size,
        reports,
        cosines.value[:m, :m],
        np.stack([cosines.low, cosines.high])[:, :m, :m],
        ((certain.low > 0) | (certain.high < 0))[:m, :m],
        means.cosines_in_batches(),
        steps,
        means.stationarity(share_of_labels > 0, q),
        findings,
    )


def _finite(structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return {name: _finite(value) for name, value in structure.items()}
    if isinstance(structure, Estimate):
        return _finite(structure._asdict())
    if isinstance(structure, (list, tuple)):
        return [_finite(value) for value in structure]
    if isinstance(structure, float) and not math.isfinite(structure):
        return None
    return structure
