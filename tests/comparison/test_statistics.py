import numpy as np
import pytest
import scipy.stats

from keras_mgda.comparison.statistics import (
    Interval,
    holm,
    mean_interval,
    paired_p_value,
)


def test_p_value_is_that_of_a_library():
    rng = np.random.default_rng(4)
    for seeds in (2, 3, 5, 20):
        left, right = rng.normal(size=(2, seeds))
        expected = scipy.stats.ttest_rel(left, right)
        assert paired_p_value(left - right) == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        mean, half = vars(mean_interval(left - right)).values()
        assert (mean - half, mean + half) == pytest.approx((low, high))


def test_equal_differences_are_no_proof():
    """Student's t is infinite then; all signs are alike by chance, too."""
    assert paired_p_value([0.0] * 5) == 1
    assert paired_p_value([2.5, 2.5]) == 0.5
    assert paired_p_value([2.5, 2.5 + 1e-7, 2.5 - 1e-7]) == 0.25
    assert paired_p_value([2.5] * 10) == 2.0**-9
    assert paired_p_value([1.0]) is None


def test_correction_of_holm_by_hand():
    """Raw p values of 0.01, 0.02 and 0.9 become 0.03, 0.04 and 0.9."""
    raw = {"x": 0.9, "y": 0.01, "z": 0.02, "unknown": None}
    assert holm(raw) == pytest.approx({"x": 0.9, "y": 0.03, "z": 0.04})
    # Never less than that of a smaller one, and never more than 1.
    assert holm({"x": 0.03, "y": 0.031}) == {"x": 0.06, "y": 0.06}
    assert holm({"x": 0.7, "y": 0.8}) == {"x": 1.0, "y": 1.0}


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (-0.001, 3.14, "0.0 ± 3.1"),
        (-12.34, 0.5, "-12.34 ± 0.50"),
        (0.917, 0.0035, "0.9170 ± 0.0035"),
        (1234.5, 99.0, "1234 ± 99"),
        (0.5, 0.0, "0.5000 ± 0.0000"),
        (0.934567, 1e-17, "0.9346 ± 0.0000"),
        (0.0, 0.0, "0.00 ± 0.00"),
        (1.3e-7, 2e-8, "0.000000130 ± 0.000000020"),
        (0.123456, None, "0.1235"),
    ],
)
def test_intervals_show_two_digits_of_their_width(mean, half_width, text):
    assert str(Interval(mean, half_width)) == text
