"""Tasks that are away, preferences, and what weightings refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.gram_matrices import (
    common_offset,
    gram_of,
    jacobian,
    random,
)
from keras_mgda import weightings
from keras_mgda.weightings import (
    COSMOS,
    CRMOGM,
    DWA,
    EDM,
    FAMO,
    IMTLL,
    PBI,
    STCH,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    Fixed,
    GradNorm,
    GradVac,
    NashMTL,
    Normalized,
    UPGrad,
)
from tests.support.weighting_cases import IDENTIFIERS

EXAMPLE = np.float32([[-4, 1, 1], [6, 1, 1]])


# Tasks without gradient, and who is left.


@pytest.mark.parametrize(
    "family", [random, common_offset], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    "weighting",
    [
        UPGrad(),
        UPGrad([1.0, 3.0, 2.0, 1.0, 1.0]),
        DualProj(),
        CAGrad(),
        NashMTL(),
        FairGrad(),
        FairGrad(2.0),
        AlignedMTL(),
        EDM(),
    ],
    ids=lambda w: f"{type(w).__name__} {w.get_config()}",
)
@pytest.mark.sample(6)
def test_zero_gradients_leave_the_others_as_they_would_be(weighting, family):
    J = jacobian(family, 3, 2)
    wide = np.zeros([5, J.shape[1]])
    wide[[0, 2, 3]] = J
    w = weighting(wide @ wide.T).numpy()
    assert w[1] == w[4] == 0
    config = weighting.get_config()
    if config.get("preference"):  # of the same sum
        config["preference"] = [2.0, 4.0, 2.0]
    alone = type(weighting).from_config(config)
    expected = alone(J @ J.T).numpy() @ J
    apart = np.linalg.norm(w[[0, 2, 3]] @ J - expected)
    assert apart <= 1e-4 * np.linalg.norm(expected)


def test_preferences_for_tasks_that_are_away_do_not_stop_the_others():
    gram = np.diag([1.0, 0.0, 4.0])
    w = UPGrad([0.0, 1.0, 0.0])(gram).numpy()
    np.testing.assert_allclose(w, [0.5, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("numbers", [{"b": 0.0, "a": 1.0}, [1.0, 0.0]])
@pytest.mark.parametrize("kind", [UPGrad, DualProj, AlignedMTL, ConFIG])
def test_preferences_by_name_are_those_in_order(kind, numbers):
    weighting = kind(preference=numbers)
    weighting.build(["a", "b"])
    gram = gram_of(EXAMPLE)
    expected = kind(preference=[1.0, 0.0])(gram)
    np.testing.assert_array_equal(weighting(gram), expected)


# Errors.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: UPGrad([1.0, -1.0]), r"Preferences .* not negative\. Rec"),
        (lambda: DualProj([1.0, np.nan]), r"Preferences must be finite.* Rec"),
        (lambda: STCH(preference={"a": np.inf}), "Preferences must be finite"),
        (
            lambda: STCH(reference=[-np.inf]),
            r"losses must be finite\. Received",
        ),
        (lambda: STCH(0), r"`mu` must be positive\. Received: 0"),
        (lambda: CAGrad(-0.1), r"`c` must be .* Received: -0\.1"),
        (lambda: FairGrad(0), r"`alpha` must be from 0\.2.*Received: 0"),
        (lambda: NashMTL(0), r"`max_norm` must be positive.*Received: 0"),
        (lambda: AlignedMTL(scale="max"), r"`scale` .*Received: 'max'"),
        (lambda: GradVac(1.5), r"`beta` must be from 0 to 1\. Received: 1\.5"),
        (lambda: DWA(0), r"`temperature` must be positive\. Received: 0"),
        (lambda: DWA(period=0), r"`period` must be positive\. Received: 0"),
        (lambda: GradNorm(-1), r"`alpha` must be positive\. Received: -1"),
        (lambda: FAMO(decay=-1), r"`decay` must be positive or zero\. Rec"),
        (lambda: IMTLL(0), r"`learning_rate` must be positive\. Received: 0"),
        (lambda: PBI(-1), r"`theta` must be positive or zero\. Received: -1"),
        (lambda: PBI(reference=[np.nan]), "losses must be finite"),
        (lambda: COSMOS(-1), r"`penalty` must be positive or zero\. Rec"),
        (lambda: FAMO(min_losses=[np.inf]), r"losses must be finite\. Rec"),
        (lambda: Normalized("mgda"), r"must be a `Weighting`\. Received: 'mg"),
        (lambda: Normalized(FAMO()), r"must look at the Gram.*Received: FAMO"),
        (lambda: Normalized(EDM(), "l1"), r"must be one of .*Received: 'l1'"),
        # Read once, it would be frozen at its value.
        (
            lambda: UPGrad({"a": keras.Variable(1.0)}),
            r"Preferences must be finite.* Received",
        ),
        (lambda: CRMOGM("mgda"), r"must be a `Weighting`\. Received: 'mgda'"),
        (lambda: CRMOGM(alpha=2), r"`alpha` must be from 0 to 1\. Received: 2"),
    ],
)
def test_settings_that_cannot_be(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("kind", [UPGrad, Fixed, STCH, PBI, COSMOS, FAMO])
def test_numbers_that_do_not_fit_the_tasks(kind):
    names = {Fixed: "task_weights", FAMO: "min_losses"}
    numbers = {names.get(kind, "preference"): [1.0, 2.0]}
    weighting = kind(**numbers)
    with pytest.raises(ValueError, match=r"as many as the tasks\. Received"):
        weighting.build(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"(fit|as many as).*\. Received"):
        weighting(np.eye(3), np.ones(3))
    (name,) = numbers
    weighting = kind(**{name: {"a": 1.0, "b": 2.0}})
    message = r"must name the tasks\. Received.*Add \['c'\]\. Remove \['b'\]\."
    with pytest.raises(ValueError, match=message):
        weighting.build(["a", "c"])
    with pytest.raises(ValueError, match=r"Named ones need `build|must name"):
        weighting(np.eye(2), np.ones(2))


@pytest.mark.parametrize(
    "name", [n for n in IDENTIFIERS if weightings.get(n).uses_gram]
)
def test_what_is_no_gram_matrix(name):
    weighting = weightings.get(name)
    losses = np.ones(2)
    for gram in (np.ones([2, 3]), np.ones(2), np.zeros([0, 0])):
        with pytest.raises(ValueError, match=r"square matrix.* Received: sh"):
            weighting(gram, losses)
    with pytest.raises(ValueError, match=r"must be symmetric.*Received"):
        weighting(np.float32([[1, 0.5], [0.2, 1]]), losses)


@pytest.mark.parametrize(
    "name", ["cagrad", "config", "edm", "fairgrad", "pcgrad", "upgrad"]
)
@pytest.mark.sample(3)
def test_an_asymmetric_matrix_in_a_graph_is_nan(name):
    weigh = tf.function(weightings.get(name))
    assert np.isnan(weigh(tf.constant([[1.0, 0.5], [0.2, 1.0]]))).all()


@pytest.mark.parametrize(
    "name", [n for n in IDENTIFIERS if weightings.get(n).uses_losses]
)
def test_losses_that_are_missing_or_do_not_fit(name):
    weighting = weightings.get(name)
    with pytest.raises(ValueError, match=r"needs the task losses\. Received"):
        weighting(np.eye(2))
    with pytest.raises(ValueError, match=r"one task loss for each row.*Rec"):
        weighting(np.eye(2), [1.0, 2.0, 3.0])
