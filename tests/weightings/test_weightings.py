import keras
import numpy as np
import pytest

from benchmarks.gram_matrices import gram_of, squared_norm, weights_by_nnls
from keras_mgda import weightings
from keras_mgda.weightings import MGDA, Fixed, Uniform
from tests.support import networks
from tests.support.gram_tables import SMALL

NORMALIZATIONS = ["none", "l2", "loss", "loss+"]
each_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
# Of one task there is nothing to solve.
each_gram = pytest.mark.parametrize(
    "gram", [gram for gram in SMALL if len(gram.values[0]) > 1]
)


def losses_for(gram):
    m = len(gram)
    return np.float32(10.0 ** np.linspace(-2, 2, m))


def scales(normalization, gram, losses):
    norms = np.sqrt(np.diag(gram).astype("float64"))
    return {
        "none": np.ones_like(norms),
        "l2": norms,
        "loss": losses,
        "loss+": losses * norms,
    }[normalization].astype("float64")


@each_gram
@each_normalization
@pytest.mark.sample(150)
def test_mgda_solves_the_normalized_problem(normalization, gram):
    losses = losses_for(gram)
    task_weights = MGDA(normalization)(gram, losses).numpy()
    assert task_weights.dtype == np.float32
    n = scales(normalization, gram, losses)
    alpha = task_weights * n
    assert alpha.min() >= 0
    assert alpha.sum() == pytest.approx(1, abs=1e-6)
    normalized = gram / np.outer(n, n)
    best = squared_norm(normalized, weights_by_nnls(normalized))
    assert squared_norm(normalized, alpha) - best <= (
        1e-6 * normalized.diagonal().min() + rounding(normalized, alpha)
    )
    # The direction conflicts with no task: `<d, g_t> = (Gw)_t >= 0`, with the
    # weights that the encoder really gets.
    w = np.float64(task_weights)
    norms = np.sqrt(np.diag(gram).astype("float64"))
    cosines = gram @ w / (norms * (w @ norms))
    assert cosines.min() >= -1e-6


def rounding(gram, task_weights):
    """What a last digit of each entry of a float32 matrix can do to `w'Gw`."""
    norms = np.sqrt(np.diag(gram).astype("float64"))
    return 4 * np.finfo(np.float32).eps * (task_weights @ norms) ** 2


@each_normalization
def test_scaling_all_gradients_scales_only_what_it_must(normalization):
    rng = np.random.default_rng(0)
    gram = gram_of(rng.normal(size=(3, 6)))
    losses = losses_for(gram)
    w = MGDA(normalization)(gram, losses).numpy()
    for power in (-20, 12, 30):
        scaled = MGDA(normalization)(gram * np.float32(4.0**power), losses)
        factor = 2.0**-power if normalization in ("l2", "loss+") else 1.0
        np.testing.assert_allclose(scaled, w * factor, rtol=1e-4)


@each_normalization
@pytest.mark.parametrize("total", [1, 0.5, "tasks"])
def test_total_is_what_the_simplex_sums_to(normalization, total):
    gram = gram_of(np.random.default_rng(0).normal(size=(3, 6)))
    losses = losses_for(gram)
    one = MGDA(normalization)(gram, losses).numpy()
    scaled = MGDA(normalization, total)(gram, losses).numpy()
    factor = 3 if total == "tasks" else total
    np.testing.assert_allclose(scaled, factor * one, rtol=1e-6)


@each_normalization
def test_tasks_without_gradient_leave_the_simplex(normalization):
    gram = gram_of(np.random.default_rng(0).normal(size=(2, 5)))
    wide = np.zeros((4, 4), np.float32)
    wide[np.ix_([0, 2], [0, 2])] = gram
    losses = np.float32([0.5, 0.0, 2.0, 3.0])
    w = MGDA(normalization)(wide, losses).numpy()
    assert w[1] == w[3] == 0.0
    alone = MGDA(normalization)(gram, losses[[0, 2]]).numpy()
    np.testing.assert_allclose(w[[0, 2]], alone, rtol=1e-5)


@each_normalization
def test_no_gradient_at_all_gives_finite_weights(normalization):
    w = MGDA(normalization)(np.zeros((3, 3)), np.ones(3)).numpy()
    np.testing.assert_allclose(w, np.full(3, 1 / 3), rtol=1e-6)


@each_normalization
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite_give_nan(normalization, bad):
    for m in (1, 2, 3, 5):
        gram = np.eye(m, dtype=np.float32)
        gram[0, 0] = bad
        w = MGDA(normalization)(gram, np.ones(m)).numpy()
        assert np.isnan(w).all()


@pytest.mark.parametrize("normalization", ["loss", "loss+"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_losses_that_are_not_finite_give_nan(normalization, bad):
    for m in (1, 2, 3):
        losses = np.ones(m)
        losses[-1] = bad
        w = MGDA(normalization)(np.eye(m), losses).numpy()
        assert np.isnan(w).all()


@pytest.mark.parametrize("normalization", ["loss", "loss+"])
def test_loss_of_zero_or_less_gives_finite_weights(normalization):
    w = MGDA(normalization)(np.eye(3), np.float32([0.0, -2.0, 1.0])).numpy()
    assert np.isfinite(w).all()
    assert w.min() >= 0


def test_loss_scale_of_mixed_precision_does_not_flush_a_task():
    """Norms that differ by 10^8 in one matrix, as float32 can hold them."""
    gram = np.diag(np.float32([1e-16, 1.0, 1e16]))
    w = MGDA("l2")(gram).numpy().astype("float64")
    np.testing.assert_allclose(
        w * np.sqrt(np.diag(gram)), np.full(3, 1 / 3), rtol=1e-5
    )


def test_uniform_and_fixed_do_not_look_at_the_gradients():
    gram = np.full((3, 3), np.nan)
    assert Uniform()(gram).numpy().tolist() == [1.0, 1.0, 1.0]
    assert Fixed([0.5, 0.0, 2.0])(gram).numpy().tolist() == [0.5, 0.0, 2.0]
    named = Fixed({"b": 1.0, "a": 2.0})
    named.build(["a", "b"])
    assert named(gram[:2, :2]).numpy().tolist() == [2.0, 1.0]


def test_models_that_share_a_weighting_do_not_disturb_each_other():
    weighting = Fixed({"a": 0.25, "b": 4.0})
    models = []
    for order in ("ab", "ba"):
        x = keras.Input((8,))
        z = networks.SharedRepresentation()(networks.dense(4)(x))
        model = networks.MGDAModel(x, networks.heads(z, order))
        model.compile(
            "sgd",
            loss=dict.fromkeys(order, "mse"),
            weighting=weighting,
            run_eagerly=True,
        )
        models.append(model)
    for model in models:
        model.train_on_batch(*networks.data(model))
        assert model.task_weights == {"a": 0.25, "b": 4.0}


def test_get_takes_all_that_means_a_weighting():
    assert isinstance(weightings.get("mgda"), MGDA)
    assert isinstance(weightings.get("uniform"), Uniform)
    assert weightings.get([1.0, 2.0]).task_weights == (1.0, 2.0)
    assert weightings.get((1.0, 2.0)).task_weights == (1.0, 2.0)
    assert weightings.get({"a": 1.0}).task_weights == {"a": 1.0}
    own = networks.Constant([1.0])
    assert weightings.get(own) is own
