"""Numbers at the command line: what click takes for a number and no option means, NaN and infinity, is bad usage."""

import math
from typing import Any

import click
from click.types import FloatParamType


class Finite(FloatParamType):
    """A number that is neither infinite nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; NaN and infinity are bad usage."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class FiniteRange(click.FloatRange, Finite):
    """A number within a range that is neither infinite nor NaN."""

    name = "float"
