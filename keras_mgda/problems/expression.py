"""Which problems share their examples: `"cws&pos|sentiment"`."""

import re

_PART = re.compile(
    r"\s*(?:(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)|(?P<sign>[&|]))"
)


def parse(expression: str) -> tuple[tuple[str, ...], ...]:
    """Reads an expression of problems.

    ```
    expression = group { "|" group }      each group has examples of its own
    group      = name  { "&" name  }      labels of all these, for each example
    ```

    A name has ASCII letters, digits, `_`, `.` and `-`, and starts with none of
    the last two. Spaces between names and signs do not matter.

    Returns:
        The names of each group.

    Raises:
        ValueError: if this is no such expression, with the position (from 0)
            and the reason; if a name stands twice.

    Example:

    >>> from keras_mgda import problems
    >>> problems.parse("cws&pos|sentiment")
    (('cws', 'pos'), ('sentiment',))
    >>> problems.parse("cws&")
    Traceback (most recent call last):
    ...
    ValueError: A name must follow '&', but the expression ends, at position \
4. Received: 'cws&'. Write problems as in 'cws&pos|sentiment'.
    """
    groups: list[list[str]] = [[]]
    last = ""  # sign before the position; a name if one was just read
    position = 0
    end = len(expression.rstrip())
    while position < end:
        part = _PART.match(expression, position)
        if part is None:
            position += re.match(r"\s*", expression[position:]).end()  # type: ignore[union-attr]
            raise _error(
                f"A name or a sign, '&' or '|', must stand here, and "
                f"{expression[position]!r} is none",
                expression,
                position,
            )
        kind = part.lastgroup or ""
        value, start = part[kind], part.start(kind)
        if kind == "sign":
            if last in ("", "&", "|"):
                before = f"{last!r}" if last else "the start"
                raise _error(
                    f"A name must stand between {before} and {value!r}",
                    expression,
                    start,
                )
            if value == "|":
                groups.append([])
            last = value
        else:
            if last not in ("", "&", "|"):
                raise _error(
                    f"'&' or '|' must stand between {last!r} and {value!r}",
                    expression,
                    start,
                )
            if any(value in group for group in groups):
                raise _error(
                    f"A problem must stand once, and {value!r} stands twice",
                    expression,
                    start,
                )
            groups[-1].append(value)
            last = value
        position = part.end()
    if last in ("", "&", "|"):
        where = f"follow {last!r}" if last else "stand here"
        raise _error(
            f"A name must {where}, but the expression ends", expression, end
        )
    return tuple(map(tuple, groups))


def _error(reason: str, expression: str, position: int) -> ValueError:
    return ValueError(
        f"{reason}, at position {position}. Received: {expression!r}. Write "
        "problems as in 'cws&pos|sentiment'."
    )
