"""What makes another metric or weighting of the same settings."""

import dataclasses
import inspect
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A class and the config of one of its instances."""

    cls: Any
    config: dict[str, Any]

    @classmethod
    def of(cls, instance: Any) -> "Recipe":
        """That of an instance.

        Raises:
            ValueError: if what it makes would not be like the instance.
        """
        kind = type(instance)
        config = instance.get_config()
        if left_out := _left_out(kind, config):
            raise _error(kind, f"whose `get_config` lacks {left_out}")
        recipe = cls(kind, config)
        try:
            recipe.make()
        except (TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise _error(kind, f"for which that fails: {reason}") from error
        return recipe

    def make(self) -> Any:
        """A new instance."""
        return self.cls.from_config(self.config)


def _left_out(kind: type, config: dict[str, Any]) -> list[str]:
    """Arguments that are lost, for `get_config` is that of a parent."""

    def owner(name: str) -> int:
        return next(k for k, c in enumerate(kind.__mro__) if name in vars(c))

    if owner("__init__") >= owner("get_config"):
        return []
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in named and name not in config
    ]


def _error(kind: type, received: str) -> ValueError:
    return ValueError(
        "An instance must be made again from its own config, for it has "
        f"variables. Received: {kind.__name__}, {received}. Give it a "
        "`get_config` with all of its arguments, or pass what makes it, as "
        f"`functools.partial({kind.__name__}, ...)`."
    )
