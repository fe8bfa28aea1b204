"""Every mix of a model that is worth its bytes, from Q2 to Q8: sizes with the divergence to expect, and a picture."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..quantize.file_types import parse_file_type
from ..quantize.stock_policy import stock
from . import quantize
from .budgeting import BudgetReport
from .listener import SILENT, Listener
from .purse import NEAREST, Purse, purse_of

N_POINTS = 24


@dataclass(frozen=True)
class Request:
    """A request to quantize, of which source, options and the sensitivities of its budget count, and plots to draw."""

    quantize: quantize.Request
    plots: tuple[Path, ...] = ()
    n_point: int = N_POINTS


@dataclass(frozen=True)
class Prepared:
    """What can be bought, of which model."""

    request: Request
    name: str
    purse: Purse


@dataclass(frozen=True)
class Place:
    """A place on the frontier: bytes of the file, bits per weight, its name, and its types.

    `stock` tells that it has the size of the stock type of that name.
    """

    n_bytes: int
    bits_per_weight: float
    type: str
    stock: bool
    bought: BudgetReport

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON: that of a budget, and where it is."""
        sizes = {"bpw": round(self.bits_per_weight, 4), "type": self.type, "stock_size": self.stock}
        return self.bought.as_json() | sizes


@dataclass(frozen=True)
class Report:
    """The frontier of a model, the smallest file first."""

    name: str
    places: tuple[Place, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `quantize --frontier --json` prints."""
        return {"model": self.name, "frontier": [place.as_json() for place in self.places]}


def prepare(request: Request, listener: Listener = SILENT) -> Prepared:
    """Read headers and sensitivities. Raises PlanError for what are none, EngineError for a plot of another kind."""
    from ..measure.size_plot import check_plot

    for plot in request.plots:
        check_plot(plot)
    asked = request.quantize
    mixes = tuple(stock(parse_file_type(name)) for name in NEAREST)
    planned = quantize.prepare(replace(asked, mixes=mixes, budget=None, outfile=None), listener)
    n_weights = sum(tensor.n_weights for tensor in planned.source_plan.tensors)
    purse = purse_of(asked.budget.sensitivity if asked.budget else None, planned.variants, n_weights)
    return Prepared(request, planned.name, purse)


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Go along the frontier. Raises OutputError when a plot cannot be written."""
    purse, n_point = prepared.purse, prepared.request.n_point
    low, high = purse.sizes
    even = {round(low * (high / low) ** (i / (n_point - 1))) for i in range(n_point)}
    stock_sizes = {n_bytes: name for name, n_bytes in purse.nearest.items() if low <= n_bytes <= high}
    places = tuple(_place(purse, n_bytes, n_bytes in stock_sizes) for n_bytes in sorted(even | stock_sizes.keys()))
    report = Report(prepared.name, places)
    for plot in prepared.request.plots:
        _draw(report, purse, plot)
        listener.say(f"{plot}: drawn")
    return report


def _place(purse: Purse, n_bytes: int, is_stock: bool) -> Place:
    bits = 8 * n_bytes / purse.n_weights
    return Place(
        n_bytes,
        bits,
        f"{purse.file_type(n_bytes).name}_X",
        is_stock,
        BudgetReport(n_bytes, purse.at(n_bytes), purse.rounding),
    )


def _draw(report: Report, purse: Purse, path: Path) -> None:
    from ..measure.size_plot import Point, draw

    points = [
        Point(place.type if place.stock else "", place.n_bytes, place.bought.allocation.predicted_kld, 0.0)
        for place in report.places
    ]
    draw(points, f"{report.name} (predicted)", purse.curve.floor or None, path)
