"""Pictures of where tokens go: shares per layer and expert come in, a heat map or a page goes out."""

import html
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..formats.errors import EngineError

SUFFIXES = (".png", ".svg")
# Colours that neighbours are told apart by, on white and on black (Okabe and Ito's, and four between them).
COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#999999", "#8dd3c7", "#bc80bd", "#b3de69", "#fb8072"),
)


def colour_of(expert: int) -> tuple[int, int, int]:
    """Return the colour of an expert as red, green, blue."""
    text = COLOURS[expert % len(COLOURS)]
    red, green, blue = (int(text[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def check_picture(path: Path) -> None:
    """Raise EngineError for a name that is no picture's, and without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise EngineError(f"{path}: name a picture .png or .svg")
    if find_spec("matplotlib") is None:
        raise EngineError("pictures need matplotlib: pip install 'moe-gguf[plot]'")


def draw_heat_map(path: Path, shares: np.ndarray, layers: Sequence[int], experts: Sequence[str], title: str) -> None:
    """Draw shares [n_layer, n_expert] as a heat map, PNG or SVG by the file's name."""
    from matplotlib.figure import Figure

    n_layer, n_expert = shares.shape
    figure = Figure(figsize=(max(4.0, 1.5 + 0.28 * n_layer), max(2.2, 1.2 + 0.22 * n_expert)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.T, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_xlabel("layer")
    axes.set_xticks(range(0, n_layer, max(1, n_layer // 16)), [str(each) for each in layers[:: max(1, n_layer // 16)]])
    if n_expert <= 32:
        axes.set_yticks(range(n_expert), list(experts))
    else:
        axes.set_ylabel("expert")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the weights")
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def write_page(
    path: Path,
    texts: Sequence[str],
    summed: np.ndarray,
    shares: np.ndarray,
    layers: Sequence[int],
    experts: Sequence[str],
) -> None:
    """Write a page: the text, each token in its expert's colour and with its weights on hover, and the heat map."""

    def style(expert: int, strength: float) -> str:
        return f"background: rgba({', '.join(map(str, colour_of(expert)))}, {0.15 + 0.85 * strength:.2f})"

    legend = " ".join(
        f'<span style="{style(number, 1)}">{html.escape(name)} {share:.1%}</span>'
        for number, (name, share) in enumerate(zip(experts, shares.mean(axis=0), strict=True))
    )
    spans = []
    for text, weights in zip(texts, summed, strict=True):
        order = np.argsort(-weights)[:4]
        hover = ", ".join(f"{experts[i]} {weights[i]:.2f}" for i in order if weights[i] > 0)
        best = int(order[0])
        spans.append(
            f'<span title="{html.escape(hover)}" style="{style(best, weights[best])}">{html.escape(text)}</span>'
        )
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in experts)
    rows = "".join(
        f"<tr><th>{layer}</th>"
        + "".join(f'<td style="{style(i, share)}">{share:.2f}</td>' for i, share in enumerate(row))
        + "</tr>\n"
        for layer, row in zip(layers, shares, strict=True)
    )
    path.write_text(
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Routes</title>\n'
        "<style>body { font-family: sans-serif; max-width: 70em; margin: 2em auto } "
        "pre { white-space: pre-wrap; line-height: 1.6 } td { text-align: right; padding: 0 .4em }</style>\n"
        f"<p>{legend}</p>\n<pre>{''.join(spans)}</pre>\n<table><tr><th>layer</th>{heads}</tr>\n{rows}</table>\n</html>\n",
        encoding="utf-8",
    )
