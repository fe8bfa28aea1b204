"""Numbers at the command line: what click takes for a number and no option means, NaN and infinity, is bad usage."""

import math
from typing import Any

import click


class Finite(click.FloatRange):
    """A number, within a range if one is given, that is neither infinite nor NaN."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; NaN and infinity are bad usage."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
