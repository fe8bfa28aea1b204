"""`moe-gguf release`: from a model to a folder to publish: files, measurements, card, checksums."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .loading import MACHINE_OPTIONS, PLACING_OPTIONS, load_request, with_options
from .models import MODEL, catalogue_path
from .terminal import TERMINAL, echo, emit_json, verbosity
from .writing import gate_options, gate_request

if TYPE_CHECKING:
    from ..release.release import Report
    from ..release.request import Publisher, Text

THERE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--types",
    "--type",
    "types",
    multiple=True,
    metavar="TYPE,...",
    help="The quantizations; repeatable.  [default: Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K]",
)
@click.option("-f", "--file", "texts", multiple=True, metavar="[NAME=]FILE", help="Measure on this held-out text.")
@click.option("-c", "--ctx-size", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(1), help="Read only the first N windows of each text.")
@click.option(
    "--rounding",
    type=click.Choice(("plain", "imatrix", "calibrated")),
    help="How weights are rounded.  [default: imatrix with --calibration or --imatrix, else plain]",
)
@click.option("--calibration", multiple=True, metavar="[NAME=]FILE", help="A text for the importance; repeatable.")
@click.option("--calibration-chunks", type=click.IntRange(1), help="Read only so many chunks of it.")
@click.option("--imatrix", type=THERE, help="Take this importance matrix instead.")
@click.option("--moments", type=THERE, help="Take these moments instead (imatrix --moments).")
@click.option("--tensor-type", multiple=True, metavar="PATTERN=TYPE", help="Type for tensors that match, in each file.")
@click.option(
    "--reference",
    type=click.Choice(("auto", "16-bit", "q8_0")),
    default="auto",
    show_default=True,
    help="What all is compared with; auto is 16-bit where it fits this machine.",
)
@click.option("--against", multiple=True, type=THERE, metavar="FILE", help="Measure another publisher's file too.")
@click.option(
    "--eval", "evaluations", multiple=True, type=THERE, metavar="FILE", help="Show what eval --json printed of a file."
)
@click.option("--split-max-size", default="45G", show_default=True, metavar="SIZE", help="Split files above this.")
@click.option("--pre-tokenizer", metavar="NAME", help="For a checkpoint: llama.cpp's name of the pre-tokenizer.")
@gate_options
@click.option("--quantized-by", metavar="NAME", help="Who publishes, for the card.")
@click.option("--repo", metavar="OWNER/NAME", help="Where it will be published, for the card's commands.")
@click.option("--base-model", multiple=True, metavar="OWNER/NAME", help="The model's own page, or its parents.")
@click.option(
    "--base-model-relation",
    type=click.Choice(("quantized", "merge", "finetune", "adapter")),
    help="What this is to them.  [default: quantized for one, merge for several]",
)
@click.option("--banner", type=THERE, help="A PNG for the top of the card, instead of one drawn from the routes.")
@click.option("--card-template", type=THERE, help="A Jinja template for the card, instead of the one that ships.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Measure tokens a second.")
@with_options(PLACING_OPTIONS + MACHINE_OPTIONS)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="The folder.  [default: NAME-GGUF]"
)
@click.option("--force", is_flag=True, help="Overwrite files in the folder that no run of this release made.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(model: str | None, as_json: bool, **options: Any) -> None:
    """Make a folder to publish of MODEL: every type, measured, with a card, checksums and a manifest.

    MODEL is a recipe, a checkpoint folder, a GGUF file or a name of the catalogue. Run the same command again to go on
    after an interruption, or to bring the folder up to date: what has not changed is not made again. What is kept
    between runs lies beside the folder, in DIR.work.
    """
    from ..formats.sizes import parse_size
    from ..release import release as job
    from ..release.request import TYPES, Request

    calibrates = bool(options["calibration"] or options["imatrix"])
    request = Request(
        model,
        types=split_types(options["types"]) or TYPES,
        catalogue=catalogue_path(),
        output=options["output"],
        texts=tuple(named(text, "-f") for text in options["texts"]),
        n_ctx=options["ctx_size"],
        n_chunk=options["chunks"],
        rounding=options["rounding"] or ("calibrated" if options["moments"] else "imatrix" if calibrates else "plain"),
        calibration=tuple(named(text, "--calibration") for text in options["calibration"]),
        calibration_chunks=options["calibration_chunks"],
        imatrix=options["imatrix"],
        moments=options["moments"],
        tensor_types=options["tensor_type"],
        reference=options["reference"],
        against=options["against"],
        evaluations=options["evaluations"],
        split_max_size=parse_size(options["split_max_size"], "file"),
        gates=gate_request(options),
        pre_tokenizer=options["pre_tokenizer"],
        publisher=publisher_of(options),
        speed=options["speed"],
        force=options["force"],
        n_threads=options["threads"],
        load=load_request({**options, "ctx_size": None}),
    )
    report = job.run(job.prepare(request), TERMINAL)
    emit_json(report.as_json()) if as_json else show(report)


def split_types(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the types between commas."""
    return tuple(name.strip() for text in given for name in text.split(",") if name.strip())


def named(argument: str, option: str) -> "Text":
    """Return the name and the file of [NAME=]FILE; a file is its own name, without its suffix."""
    from ..release.request import Text

    name, equals, path = argument.partition("=")
    found = (
        Text(name, Path(path)) if equals and not Path(argument).is_file() else Text(Path(argument).stem, Path(argument))
    )
    if not found.path.is_file():
        raise click.BadParameter(f"{found.path}: no such file", param_hint=option)
    return found


def publisher_of(options: dict[str, Any]) -> "Publisher":
    """Return what the options say of who publishes."""
    from ..release.request import Publisher

    return Publisher(
        options["quantized_by"],
        options["base_model"],
        options["base_model_relation"],
        options["banner"],
        options["card_template"],
        options["repo"],
    )


def show(report: "Report") -> None:
    """Print a line per file: size and divergence."""
    from .tables import table

    rows = []
    for file in sorted(report.manifest.files, key=lambda one: one.bytes):
        quality = file.quality
        divergence = f"{quality.kld:.4f} ± {quality.kld_error:.4f}" if quality else ""
        same = f"{quality.same_top:.2%}" if quality else ""
        rows.append([file.name, f"{file.bytes / 1e9:.2f} GB", f"{file.bits_per_weight:.2f}", divergence, same])
    echo(table(["file", "size", "bits per weight", "KL divergence", "same top token"], rows))
    echo(f"{report.folder}/README.md is the card; check the folder with: moe-gguf verify {report.folder}")
