"""`moe-gguf merge`: a recipe becomes a checkpoint folder that transformers reads, after the doctor has seen it."""

from pathlib import Path
from typing import Any

import click

from .models import MODEL
from .terminal import verbosity
from .writing import gate_options


@click.command()
@click.argument("recipe", type=MODEL, required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
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
    output: Path | None,
    layout: str,
    max_shard_size: str,
    check: bool,
    force: bool,
    gates: Path | None,
    gate_base: str,
    as_json: bool,
) -> None:
    """Examine, compute the gates, write, report."""
    from ..merge.gates import condition_numbers, zero_gates
    from ..merge.models import open_models
    from ..merge.open import open_recipe, sizes_of
    from ..merge.write import check_target, total_bytes, write_merge
    from .gates import recipe_gates
    from .models import resolve_source
    from .plans import parse_size
    from .recipes import examine_recipe, recipe_of
    from .terminal import emit_json, progress, say

    recipe = recipe_of(resolve_source(source))
    max_shard = parse_size(max_shard_size)
    models = open_models(recipe)
    findings = examine_recipe(recipe, models)
    if check:
        if as_json:
            emit_json({"recipe": recipe.name, "findings": [finding.text for finding in findings]})
        else:
            say(f"{recipe.name}: {len(findings) or 'no'} warning{'' if len(findings) == 1 else 's'}")
        return
    if output is None:
        raise click.UsageError("name the folder to write with -o DIR, or use --check")
    sizes = sizes_of(recipe, models)
    placeholder = open_recipe(recipe, zero_gates(recipe, sizes.n_layer, sizes.n_embd), layout=layout, models=models)
    n_bytes = total_bytes(placeholder.source.tensors.values())
    check_target(output, placeholder, n_bytes, force)
    routers = recipe_gates(recipe, models, gates, gate_base)
    merged = open_recipe(recipe, routers, layout=layout, models=models)
    with progress(n_bytes, "merge") as bar:
        write_merge(recipe, merged, output, max_shard=max_shard, force=force, advance=bar.update)
    numbers = [round(float(number), 2) for number in condition_numbers(routers)]
    if as_json:
        report = {"output": str(output), "bytes": n_bytes, "condition_numbers": numbers}
        emit_json(report | {"tensors": len(merged.source.tensors), "layout": layout})
    else:
        click.echo(f"{output}: {len(merged.source.tensors)} tensors, {n_bytes:,} bytes ({layout} layout)")
