"""Expressions of problems, read or refused."""

import pytest

from keras_mgda import problems
from tests.support.refusal import MESSAGE


@pytest.mark.parametrize(
    ("expression", "groups"),
    [
        ("a", (("a",),)),
        ("cws&pos|sentiment", (("cws", "pos"), ("sentiment",))),
        (" a & b|c ", (("a", "b"), ("c",))),
        ("a|b|c", (("a",), ("b",), ("c",))),
        ("ner.v2&x-1|y_2", (("ner.v2", "x-1"), ("y_2",))),
    ],
)
def test_groups(expression, groups):
    assert problems.parse(expression) == groups


@pytest.mark.parametrize(
    ("expression", "position", "reason"),
    [
        ("cws&", 4, "A name must follow '&', but the expression ends"),
        ("a| ", 2, "A name must follow '|', but the expression ends"),
        ("|a", 0, "A name must stand between the start and '|'"),
        ("a&&b", 2, "A name must stand between '&' and '&'"),
        ("a & | b", 4, "A name must stand between '&' and '|'"),
        ("", 0, "A name must stand here, but the expression ends"),
        ("  ", 0, "A name must stand here, but the expression ends"),
        ("a b", 2, "'&' or '|' must stand between 'a' and 'b'"),
        ("a&(b|c)", 2, "must stand here, and '(' is none"),
        ("a& ü", 3, "must stand here, and 'ü' is none"),
        ("a&b|a", 4, "A problem must stand once, and 'a' stands twice"),
        ("a&a", 2, "A problem must stand once, and 'a' stands twice"),
    ],
)
def test_what_is_no_expression(expression, position, reason):
    with pytest.raises(
        ValueError, match=f"at position {position}\\."
    ) as caught:
        problems.parse(expression)
    assert reason in str(caught.value)
    assert MESSAGE.search(str(caught.value))


def test_the_way_out():
    assert problems.parse("cws&pos|sentiment")
