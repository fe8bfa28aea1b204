"""`moe-gguf routes`: which experts each token of a text goes to."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import BUDGET_OPTIONS, MACHINE_OPTIONS, PLACING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .tables import table
from .terminal import TERMINAL, echo, emit_json, verbosity
from .visible import visible

if TYPE_CHECKING:
    from ..jobs.routes import Report

FILE = click.Path(path_type=Path)
READ = click.Path(path_type=Path, exists=True, dir_okay=False)
COLOURED, WIDEST = 2000, 16


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option("-p", "--prompt", metavar="TEXT", help="The text.")
@click.option("-f", "--file", type=READ, metavar="FILE", help="A file with the text.")
@click.option("--imatrix", type=READ, metavar="FILE", help="Take the counts of an importance matrix instead.")
@click.option("--compare", "other", type=MODEL, metavar="OTHER", help="Tell how often OTHER chooses the same experts.")
@click.option("--recipe", metavar="RECIPE", help="Name the experts as this recipe does.")
@click.option("--layer", type=click.IntRange(0), metavar="N", help="Colour tokens by this layer  [default: by all]")
@click.option("--tokens", is_flag=True, help="List every token with its experts and weights.")
@click.option("--plot", type=FILE, metavar="FILE", help="Draw a heat map of layers and experts, .png or .svg.")
@click.option("--html", "page", type=FILE, metavar="FILE", help="Write the coloured text and the heat map as a page.")
@click.option("-c", "--ctx-size", type=click.IntRange(32), default=512, show_default=True, help="Tokens read at once.")
@click.option("-n", "--n-tokens", type=click.IntRange(1), metavar="N", help="Read the first N tokens only.")
@click.option("--n-expert-used", type=click.IntRange(1), metavar="K", help="Experts per token.")
@click.option("--force", is_flag=True, help="Overwrite outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@with_options(BUDGET_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS)
@verbosity
def command(model: str | None, prompt: str | None, file: Path | None, imatrix: Path | None, **options: Any) -> None:
    """Show which experts of MODEL each token of a text goes to, and how evenly they are used."""
    from ..jobs import routes as job

    if sum(given is not None for given in (prompt, file, imatrix)) != 1:
        raise click.UsageError("give one of -p TEXT, -f FILE and --imatrix FILE")
    request = job.Request(
        model=model,
        text=prompt,
        file=file,
        imatrix=imatrix,
        catalogue=catalogue_path(),
        other=options["other"],
        recipe=options["recipe"],
        n_ctx=options["ctx_size"],
        n_token=options["n_tokens"],
        plot=options["plot"],
        page=options["page"],
        tokens=options["tokens"],
        force=options["force"],
        load=load_request({**options, "ctx_size": None}),
    )
    report = job.run(job.prepare(request), TERMINAL)
    layer = options["layer"]
    if layer is not None and layer not in report.layers:
        raise click.UsageError(f"--layer {layer}: layers with experts are {report.layers[0]} to {report.layers[-1]}")
    emit_json(report.as_json()) if options["as_json"] else show(report, layer, options["tokens"])


def show(report: "Report", layer: int | None, every: bool) -> None:
    """Print the coloured text, shares per layer, and the load."""
    if report.routes is not None:
        show_text(report, layer)
    if every and report.routes is not None:
        show_tokens(report, layer)
    if len(report.experts) <= WIDEST:
        rows = [
            [str(number), *(f"{share:.1%}" for share in row)]
            for number, row in zip(report.layers, report.shares, strict=True)
        ]
        rows.append(["all", *(f"{share:.1%}" for share in report.shares.mean(axis=0))])
        echo(table(["layer", *report.experts], rows, right=range(1, len(report.experts) + 1)))
    show_load(report)


def show_text(report: "Report", layer: int | None) -> None:
    """Print the text, each token in the colour of its heaviest expert, below a legend."""
    from ..measure.routes_picture import colour_of

    assert report.routes is not None
    weights = report.routes.summed() if layer is None else weights_in(report, layer)
    best = weights.argmax(axis=1)
    if len(report.experts) <= WIDEST:
        names = map(visible, report.experts)
        click.echo("  ".join(click.style(f" {name} ", fg="black", bg=colour_of(i)) for i, name in enumerate(names)))
    shown = zip(report.texts[:COLOURED], best, strict=False)
    click.echo("".join(click.style(visible(text), fg="black", bg=colour_of(int(i))) for text, i in shown))
    if len(report.texts) > COLOURED:
        echo(f"... and {len(report.texts) - COLOURED} tokens more")


def weights_in(report: "Report", layer: int) -> Any:
    """Return each expert's weight for each token in one layer, [n_token, n_expert]."""
    from dataclasses import replace

    assert report.routes is not None
    at = report.layers.index(layer)
    routes = report.routes
    return replace(
        routes, layers=(layer,), experts=routes.experts[at : at + 1], weights=routes.weights[at : at + 1]
    ).summed()


def show_tokens(report: "Report", layer: int | None) -> None:
    """Print a line for every token: its text, and the weights of its experts."""
    assert report.routes is not None
    weights = report.routes.summed() if layer is None else weights_in(report, layer)
    rows = []
    for text, row in zip(report.texts, weights, strict=True):
        order = [int(i) for i in (-row).argsort()[:4] if row[i] > 0]
        rows.append([repr(text), "  ".join(f"{report.experts[i]} {row[i]:.2f}" for i in order)])
    echo(table(["token", "experts"], rows))


def show_load(report: "Report") -> None:
    """Print how evenly the experts are used."""
    load = report.load
    layer, expert, share = load.busiest
    echo(f"variation of tokens per expert (cv): {load.cv:.3f}; entropy: {load.entropy:.3f} of 1")
    echo(f"busiest: {report.experts[expert]} in layer {layer}, {share:.1%} of its choices")
    dead = ", ".join(f"{report.experts[each]} in layer {at}" for at, each in load.dead[:5])
    more = f" and {len(load.dead) - 5} more" if len(load.dead) > 5 else ""
    echo(f"without a token: {dead + more if dead else 'none'}")
    if load.aux_loss is not None:
        echo(f"auxiliary loss (1 when balanced): {load.aux_loss:.3f}")
    dropped = ", ".join(f"{part:.1%} at {capacity:g}" for capacity, part in load.dropped.items())
    echo(f"dropped by an expert capacity: {dropped}")
    if report.pairs is not None and len(report.experts) > 1:
        pairs = sorted(
            ((float(report.pairs[i, j]), i, j) for i in range(len(report.experts)) for j in range(i)), reverse=True
        )
        best = ", ".join(f"{report.experts[j]} + {report.experts[i]} {part:.1%}" for part, i, j in pairs[:3])
        echo(f"most often together: {best}")
    if report.agreement:
        value, layers = report.agreement
        worst = min(range(len(layers)), key=layers.__getitem__)
        least = f"layer {report.layers[worst]}, {layers[worst]:.1%}"
        echo(f"same experts as the other model: {value:.1%} (least: {least})")
