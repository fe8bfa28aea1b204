"""The pictures of a release, drawn from its manifest alone: size against divergence, where tokens go, a banner.

PNG, since the same numbers give the same bytes, and the Hub shows it everywhere.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure.routes_picture import COLOURS
from .manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES, ROUTES, BANNER = "plots/size-kld.png", "plots/routes.png", "plots/banner.png"
INK, PALE, ACCENT, NIGHT = "#1f4e79", "#9aa5b1", "#d55e00", "#10141c"
LEAST = 1e-6
MOST_TEXTS = 6


def drawable() -> bool:
    """Tell whether pictures can be drawn here."""
    return find_spec("matplotlib") is not None


def pictures(manifest: Manifest) -> dict[str, Callable[[], bytes]]:
    """Return what draws each picture that the manifest has the numbers for, by file name."""
    found: dict[str, Callable[[], bytes]] = {}
    if sum(file.quality is not None for file in (*manifest.files, *manifest.against)) > 1:
        found[SIZES] = lambda: _png(size_figure(manifest))
    if manifest.routes:
        found[ROUTES] = lambda: _png(routes_figure(manifest))
        found[BANNER] = lambda: _png(banner_figure(manifest), pad=False)
    return found


def _png(figure: "Figure", pad: bool = True) -> bytes:
    image = BytesIO()
    more: dict[str, Any] = {} if pad else {"facecolor": figure.get_facecolor()}
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None}, **more)
    return image.getvalue()


def size_figure(manifest: Manifest) -> "Figure":
    """Return size against divergence; files that none is both smaller and closer than are joined by a line."""
    from matplotlib.figure import Figure

    from ..measure.divergence import efficient

    ours = [(file.type, file.bytes, file.quality, True) for file in manifest.files if file.quality]
    theirs = [(file.name.removesuffix(".gguf"), file.bytes, file.quality, False) for file in manifest.against]
    points = [(name, size / 1e9, quality, mine) for name, size, quality, mine in (*ours, *theirs) if quality]
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    best = efficient([(size, quality.kld) for _, size, quality, _ in points])
    axes.plot([points[i][1] for i in best], [max(points[i][2].kld, LEAST) for i in best], color=INK, lw=1.2, zorder=1)
    for name, size, quality, mine in points:
        height = max(quality.kld, LEAST)
        error = [[min(quality.kld_error, height * 0.9)], [quality.kld_error]]
        axes.errorbar(size, height, yerr=error, fmt="o" if mine else "s", color=INK if mine else ACCENT, capsize=3)
        axes.annotate(name, (size, height), xytext=(8, 5), textcoords="offset points", fontsize=10, color=INK)
    reference = manifest.reference
    if reference and reference.noise_floor and reference.noise_floor > LEAST:
        axes.axhline(reference.noise_floor, color=PALE, linestyle="--", linewidth=0.9)
        axes.annotate(
            "noise floor",
            (0.995, reference.noise_floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=PALE,
            fontsize=9,
            ha="right",
        )
    axes.set_yscale("log")
    axes.margins(x=0.14, y=0.12)
    axes.set_xlabel("size in GB")
    axes.set_ylabel("mean KL divergence, nats a token")
    axes.grid(True, which="major", linewidth=0.5, color=PALE, alpha=0.4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def routes_figure(manifest: Manifest) -> "Figure":
    """Return a heat map of experts and layers for each text, all on one scale."""
    import numpy as np
    from matplotlib.figure import Figure

    routes = manifest.routes
    assert routes is not None
    texts = routes.texts[:MOST_TEXTS]
    n_expert = len(routes.experts)
    columns = 2 if len(texts) > 1 else 1
    rows = -(-len(texts) // columns)
    height = max(1.6, 0.7 + 0.24 * min(n_expert, 24))
    figure = Figure(figsize=(9, rows * height + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    top = max(max(row) for text in texts for row in text.layers)
    image = None
    for axes, text in zip(grid.flat, texts, strict=False):
        image = axes.imshow(np.array(text.layers).T, aspect="auto", cmap="magma", vmin=0, vmax=top)
        axes.set_title(text.text, fontsize=10, loc="left")
        if n_expert <= 24:
            axes.set_yticks(range(n_expert), routes.experts, fontsize=9)
        step = max(1, len(routes.layers) // 10)
        axes.set_xticks(range(0, len(routes.layers), step), [str(layer) for layer in routes.layers[::step]], fontsize=8)
    for axes in list(grid.flat)[len(texts) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("layer", fontsize=9)
    assert image is not None
    figure.colorbar(image, ax=grid, label="share of the weights", shrink=0.9)
    return figure


def banner_figure(manifest: Manifest) -> "Figure":
    """Return the banner: the model's name over its own routes, an expert a colour, a layer a column."""
    import numpy as np
    from matplotlib.figure import Figure

    routes = manifest.routes
    assert routes is not None
    figure = Figure(figsize=(10, 2.2), facecolor=NIGHT)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    shares = np.mean([text.layers for text in routes.texts], axis=0)
    sharp = np.concatenate([np.array(text.layers) for text in routes.texts])
    bottom = np.zeros(len(sharp))
    for expert in range(shares.shape[1]):
        axes.bar(range(len(sharp)), sharp[:, expert], 0.92, bottom, color=COLOURS[expert % len(COLOURS)], alpha=0.7)
        bottom += sharp[:, expert]
    axes.set_xlim(-0.5, len(sharp) - 0.5)
    axes.set_ylim(0, float(bottom.max()))
    axes.axis("off")
    label = {"transform": axes.transAxes, "color": "white", "va": "center", "ha": "left"}
    box = {"boxstyle": "square,pad=0.55", "facecolor": NIGHT, "edgecolor": "none", "alpha": 0.86}
    axes.text(0.035, 0.62, manifest.model.name, fontsize=26, fontweight="bold", bbox=box, **label)
    axes.add_artist(_experts_legend(routes.experts, axes.transAxes))
    return figure


def _experts_legend(experts: Sequence[str], transform: Any) -> Any:
    """Return the names of the experts, each in its colour; their number where they are many."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    shown = enumerate(experts) if len(experts) <= 8 else [(0, f"{len(experts)} experts")]
    texts: list[Any] = [
        TextArea(name, textprops={"color": COLOURS[number % len(COLOURS)], "fontsize": 12, "fontweight": "bold"})
        for number, name in shown
    ]
    row = HPacker(children=texts, pad=0, sep=14, align="center")
    box = AnchoredOffsetbox("lower left", child=row, pad=0.5, bbox_to_anchor=(0.0222, 0.09), bbox_transform=transform)
    box.patch.set(facecolor=NIGHT, edgecolor="none", alpha=0.86)
    return box


def write_picture(path: Path, data: bytes) -> None:
    """Write a picture under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
