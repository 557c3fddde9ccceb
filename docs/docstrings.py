"""Our docstrings as mkdocstrings reads them.

They end as those of Keras do, with an `Example:` that is not indented. Google's
style, which mkdocstrings knows, has a section `Examples:` that is. It has no
`Call arguments:`, which are shown as a list. A doctest without a title would be
a quotation to Markdown.
"""

import re
import textwrap
from typing import Any

import griffe

# Up to the next title of a section, or to the end.
_EXAMPLE = re.compile(r"(?ms)^Example:\n\n(.*?)(?=^[A-Z][A-Za-z ]*:$|\Z)")
_CALL_ARGUMENTS = re.compile(r"(?m)^Call arguments:\n(?: {4}.*\n)+")
_ARGUMENT = re.compile(r"(?m)^ {4}(\w+): ")
_DOCTEST = re.compile(r"(?<=\n\n)>>> .*(?:\n.+)*")


def with_sections(text: str) -> str:
    """The docstring with its example as a section, or as a block."""

    def section(found: re.Match[str]) -> str:
        return "Examples:\n" + textwrap.indent(found[1], "    ")

    def fenced(found: re.Match[str]) -> str:
        return f"```pycon\n{found[0]}\n```"

    def listed(found: re.Match[str]) -> str:
        return _ARGUMENT.sub(r"    - `\1`: ", found[0])

    text = _CALL_ARGUMENTS.sub(listed, text)
    return _DOCTEST.sub(fenced, _EXAMPLE.sub(section, text))


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_sections(obj.docstring.value)
