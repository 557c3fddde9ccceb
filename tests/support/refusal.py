"""What every error of the library has to say."""

import contextlib
import re

import pytest

MESSAGE = re.compile(r"(?s)\b(must|takes|needs)\b.+\bReceived: ")


@contextlib.contextmanager
def refused(match):
    """Expects a `ValueError`: what must hold, what was received, what to do."""
    with pytest.raises(ValueError, match=f"(?s){match}") as caught:
        yield
    assert MESSAGE.search(str(caught.value)), caught.value
