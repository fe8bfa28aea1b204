"""Sizes and divergences of variants in, a picture out: PNG or SVG, the efficient ones joined and named."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..formats.errors import EngineError, OutputError
from .divergence import efficient

SUFFIXES = (".png", ".svg")
INK, PALE = "#1f4e79", "#9aa5b1"
LEAST = 1e-6


@dataclass(frozen=True)
class Point:
    """A variant: bytes, mean KL divergence in nats and its standard error."""

    name: str
    n_bytes: int
    kld: float
    error: float


def check_plot(path: Path) -> None:
    """Raise EngineError where no picture of this name can be drawn, and OutputError where it has no folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise EngineError(f"{path}: a plot is a .png or a .svg file")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; create it first")
    if find_spec("matplotlib") is None:
        raise EngineError("plots need matplotlib: pip install 'moe-gguf[plot]'")


def draw(points: Sequence[Point], base: str, noise_floor: float | None, path: Path) -> None:
    """Draw size against divergence, on a logarithmic scale; a variant is efficient when none is smaller and closer.

    Raises OutputError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    heights = [max(point.kld, LEAST) for point in points]
    best = efficient([(point.n_bytes, point.kld) for point in points])
    axes.plot([points[i].n_bytes / 1e9 for i in best], [heights[i] for i in best], color=INK, linewidth=1, zorder=1)
    for number, (point, height) in enumerate(zip(points, heights, strict=True)):
        color = INK if number in best else PALE
        down = min(point.error, height * 0.9)
        axes.errorbar(
            point.n_bytes / 1e9, height, yerr=[[down], [point.error]], fmt="o", color=color, capsize=2, zorder=2
        )
        axes.annotate(
            point.name,
            (point.n_bytes / 1e9, height),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=9 if number in best else 7,
            color=color,
        )
    if noise_floor is not None and noise_floor > LEAST:
        axes.axhline(noise_floor, color=PALE, linestyle="--", linewidth=0.8)
        axes.annotate("noise floor", (0, noise_floor), xycoords=("axes fraction", "data"), color=PALE, fontsize=7)
    axes.set_yscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("size in GB")
    axes.set_ylabel(f"mean KL divergence from {base}, nats a token")
    axes.grid(True, which="both", linewidth=0.3, color=PALE, alpha=0.5)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None
