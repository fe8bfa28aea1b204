"""`moe-gguf merge`: a recipe becomes a checkpoint folder that transformers reads, after the doctor has seen it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.words import count
from .models import MODEL
from .terminal import verbosity
from .writing import gate_options, stoppable

if TYPE_CHECKING:
    from ..merge.open import Models
    from ..merge.recipe import Recipe


@click.command()
@click.argument("recipe", type=MODEL, required=False)
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Folder to write.")
@click.option("--layout", type=click.Choice(["classic", "fused"]), default="classic", show_default=True)
@click.option(
    "--max-shard-size", metavar="N(M|G)", default="5G", show_default=True, help="Write shards of at most this size."
)
@click.option("--check", is_flag=True, help="Only look for what is wrong with the recipe; write nothing.")
@click.option("-f", "--force", is_flag=True, help="Replace a checkpoint that is there.")
@gate_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(recipe: str | None, **options: Any) -> None:
    """Merge dense models into a mixture of experts, as mergekit-moe does.

    RECIPE is a mergekit-moe YAML file or a model of the catalogue (models.toml). To get a GGUF, give the recipe to
    convert or quantize instead: they read it as if it were merged, and need no room for the merge.
    """
    merge(recipe, **options)


def merge(
    source: str | None,
    output: str | None,
    layout: str,
    max_shard_size: str,
    check: bool,
    force: bool,
    gates: Path | None,
    gate_base: str,
    as_json: bool,
) -> None:
    """Open, refuse what cannot be written, examine, compute the gates, write, report."""
    from ..formats.sizes import parse_size
    from ..merge.gates import zero_gates
    from ..merge.models import open_models
    from ..merge.open import open_recipe, sizes_of
    from ..merge.write import check_target, total_bytes
    from .models import resolve_source
    from .recipes import check_gates, examine_recipe, recipe_of
    from .terminal import emit_json, say

    if output == "" or (output is None and not check):
        raise click.UsageError("name the folder to write with -o DIR, or use --check")
    max_shard = parse_size(max_shard_size, "file")
    with stoppable():
        recipe = recipe_of(resolve_source(source))
        models = open_models(recipe)
        sizes = sizes_of(recipe, models)
        empty = open_recipe(recipe, zero_gates(recipe, sizes.n_layer, sizes.n_embd), layout=layout, models=models)
        if output is not None and not check:
            check_target(Path(output), empty, total_bytes(empty.source.tensors.values()), force)
            check_gates(recipe, gates)
        findings = examine_recipe(recipe, models)
    if not check and output is not None:
        report = _write(Merge(recipe, models, layout, Path(output), max_shard, force, gates, gate_base))
        line = "{output}: {tensors}, {bytes:,} bytes ({layout} layout)"
        named = report | {"tensors": count(report["tensors"], "tensor")}
        emit_json(report) if as_json else click.echo(line.format(**named))
    elif as_json:
        emit_json({"recipe": recipe.name, "findings": [finding.text for finding in findings]})
    else:
        say(f"{recipe.name}: {count(len(findings), 'warning') if findings else 'no warnings'}")


@dataclass(frozen=True)
class Merge:
    """An examined recipe, and how and where it is to be written."""

    recipe: "Recipe"
    models: "Models"
    layout: str
    output: Path
    max_shard: int
    force: bool
    gates: Path | None
    gate_base: str


def _write(merge: Merge) -> dict[str, Any]:
    """Compute the gates, write the checkpoint, and return what `--json` prints."""
    from ..merge.gates import condition_numbers
    from ..merge.open import open_recipe
    from ..merge.write import total_bytes, write_merge
    from .gates import recipe_gates
    from .terminal import progress

    with stoppable():
        routers = recipe_gates(merge.recipe, merge.models, merge.gates, merge.gate_base)
        merged = open_recipe(merge.recipe, routers, layout=merge.layout, models=merge.models)
        n_bytes = total_bytes(merged.source.tensors.values())
        with progress(n_bytes, "merge") as bar:
            settings = {"max_shard": merge.max_shard, "force": merge.force}
            write_merge(merge.recipe, merged, merge.output, **settings, advance=bar.update)
    return {
        "output": str(merge.output),
        "bytes": n_bytes,
        "condition_numbers": [round(float(number), 2) for number in condition_numbers(routers)],
        "tensors": len(merged.source.tensors),
        "layout": merge.layout,
    }
