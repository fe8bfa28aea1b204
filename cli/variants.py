"""What `moe-gguf quantize` is asked to do, resolved: the plan, its outputs, and what is said of them at the end."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ..formats.errors import PlanError
from ..formats.gguf_file import read_gguf, same_file
from ..formats.sizes import parse_size
from ..formats.source import file_identity
from ..formats.words import count
from ..models.tensor_types import parse_tensor_type, parse_tensor_type_option
from ..quantize.choices import RecipeOptions
from ..quantize.encode import Encoder, Importance, relative_errors
from ..quantize.file_types import parse_file_type
from ..quantize.imatrix import Imatrix, load_imatrix
from ..quantize.overrides import parse_kv_override
from ..quantize.pruning import parse_layers
from ..quantize.variants import StoredType, Variant, parse_types, plan_variants, stored_in_source
from ..writer.gguf_source import plan_from_gguf
from ..writer.partial import Output, split_output
from ..writer.plan import Plan
from .models import SourceKind, resolve_source
from .outputs import Place, describe_output, print_output, print_tensors
from .plans import Routers, plan_of
from .terminal import detail, emit_json, progress, say


@dataclass(frozen=True)
class Job:
    """One pass: a plan, and the variants and outputs made of it, in the same order."""

    name: str
    plan: Plan
    variants: list[Variant]
    outputs: list[Output]
    place: Place
    imatrix: Imatrix | None
    tokenizer: Path | None
    tensor_types: Sequence[tuple[str, object]] = ()

    @classmethod
    def of(cls, source: str | None, options: Mapping[str, Any]) -> "Job":
        """Resolve the command line; reads headers only. Raises MoeGgufError for what cannot be done."""
        file_types = parse_types(options["types"], parse_file_type)
        if options["keep_split"] and options["split_max_size"]:
            raise PlanError("--keep-split and --split-max-size exclude each other")
        name, plan, stored, folder, tokenizer, groups = _open(source, options)
        imatrix = load_imatrix(options["imatrix"]) if options["imatrix"] else None
        overrides = [parse_kv_override(text) for text in options["override_kv"]]
        recipe = recipe_options(options)
        plan, variants = plan_variants(plan, stored, file_types, recipe, imatrix, overrides)
        label = str(file_identity(options["imatrix"])) if imatrix else ""
        if imatrix:
            for choice in (choice for variant in variants for choice in variant.choices if choice.converts):
                imatrix.for_tensor(choice.source_name, choice.shape)  # a wrong size is refused, an unknown one noted
        place = Place.of(options["outfile"], len(variants), folder)
        paths = [place.path(variant.fields, variant.file_type.name) for variant in variants]
        outputs = [variant.output(path, label) for variant, path in zip(variants, paths, strict=True)]
        if imatrix and any(same_file(path, options["imatrix"]) for path in paths):
            raise PlanError(f"{options['imatrix']}: the output is the importance matrix; choose another name")
        if options["split_max_size"]:
            outputs = [split_output(output, parse_size(options["split_max_size"], "file")) for output in outputs]
        elif options["keep_split"]:
            outputs = [_split_alike(output, groups) for output in outputs]
        return cls(name, plan, variants, outputs, place, imatrix, tokenizer, recipe.tensor_types)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before anything is written."""
        return (*self.plan.warnings, *(self.imatrix.warnings if self.imatrix else ()), *self.unmatched)

    @property
    def unmatched(self) -> list[str]:
        """The patterns of --tensor-type that no tensor's name contains."""
        names = [choice.name for choice in self.variants[0].choices]
        return [
            f"--tensor-type {pattern}: no tensor has such a name"
            for pattern, _ in self.tensor_types
            if not any(re.search(pattern, name) for name in names)
        ]

    @property
    def importance(self) -> Importance | None:
        """The imatrix by tensor, under the names that its source has."""
        if self.imatrix is None:
            return None
        names = {choice.name: choice.source_name for choice in self.variants[0].choices}
        matrix = self.imatrix
        return lambda tensor: matrix.for_tensor(names[tensor.name], tensor.shape)


def recipe_options(options: Mapping[str, Any]) -> RecipeOptions:
    """Return what the user overrides of a recipe."""

    def named(key: str) -> Any:
        return parse_tensor_type(options[key]) if options[key] else None

    return RecipeOptions(
        tensor_types=tuple(parse_tensor_type_option(text) for text in options["tensor_type"]),
        output_tensor_type=named("output_tensor_type"),
        token_embedding_type=named("token_embedding_type"),
        leave_output_tensor=options["leave_output_tensor"],
        pure=options["pure"],
        allow_requantize=options["allow_requantize"],
        prune_layers=parse_layers(options["prune_layers"]) if options["prune_layers"] else (),
        keep_order=options["keep_split"],
    )


def _open(
    source: str | None, options: Mapping[str, Any]
) -> tuple[str, Plan, StoredType, Path, Path | None, list[set[str]]]:
    """Return name, plan, stored types, default folder, tokenizer's folder, and the tensors of each source shard."""
    resolved = resolve_source(source, prefer_gguf=True)
    if resolved.kind is SourceKind.GGUF and resolved.path:
        file = read_gguf(resolved.path)
        groups = [{t.name for t in file.tensors.values() if t.path == shard} for shard in file.shards]
        folder = resolved.output or resolved.path.parent
        return resolved.name, plan_from_gguf(file), stored_in_source, folder, None, groups
    from ..convert.outtype import resolve_outtype, stored_type

    if options["keep_split"]:
        raise PlanError("--keep-split goes with a split GGUF; for a checkpoint use --split-max-size")
    routers = Routers(options["gates"], options["gate_base"], zeros=options["dry_run"])
    planned = plan_of(resolved, options["pre_tokenizer"], routers)
    outtype = resolve_outtype(planned.plan, "auto")
    return (
        planned.name,
        planned.plan,
        lambda tensor: stored_type(tensor, outtype),
        planned.folder,
        planned.tokenizer,
        [],
    )


def _split_alike(output: Output, groups: Sequence[set[str]]) -> Output:
    if len(groups) < 2:
        return output
    by_shard = tuple(tuple(entry for entry in output.entries if entry.name in names) for names in groups)
    if sum(len(group) for group in by_shard) != len(output.entries):
        raise PlanError("--keep-split cannot follow tensors that are stacked or renamed; use --split-max-size")
    return replace(output, groups=by_shard)


def warm_up(job: Job) -> None:
    """Compile the kernels that the job needs, saying so when it takes a while."""
    from ..quantize.kernels import has_kernel
    from ..quantize.kernels import warm_up as compile_kernels

    types = {choice.qtype for variant in job.variants for choice in variant.choices if choice.converts}
    kernels = [qtype for qtype in types if has_kernel(qtype)]
    started = time.monotonic()
    with progress(len(kernels), "compile the encoders (kept for next time)", " kernels") as bar:
        compile_kernels(kernels, job.imatrix is not None, lambda _: bar.update())
    if (seconds := time.monotonic() - started) > 2:
        say(f"the encoders were compiled for this processor in {seconds:.1f} s; next time they are there")


def report_of(job: Job, encoder: Encoder | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Return the stable JSON of the run (docs/quantize.md)."""
    outputs = []
    for variant, output in zip(job.variants, job.outputs, strict=True):
        report = describe_output(output, variant.file_type.name)
        report["fallbacks"] = [
            {"name": choice.name, "wanted": choice.wanted.name, "type": choice.qtype.name}
            for choice in variant.choices
            if choice.fell_back
        ]
        if encoder:
            used = {entry.qtype for entry in output.entries}
            report["encoders_replaced"] = sorted(qtype.name for qtype in encoder.fallen_back & used)
        if encoder and encoder.measure:
            report["errors"] = relative_errors(encoder, variant.choices)
        outputs.append(report)
    report = {"outputs": outputs}
    return {**report, "dry_run": True} if seconds is None else {**report, "seconds": round(seconds, 3)}


def fallbacks_by_type(fallbacks: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Return the names of the tensors that fell back, by the type that was wanted and the one that was used."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for fallback in fallbacks:
        grouped.setdefault((fallback["wanted"], fallback["type"]), []).append(fallback["name"])
    return grouped


def show(report: Mapping[str, Any], job: Job, options: Mapping[str, Any]) -> None:
    """Print the report as JSON, or as a few lines per output."""
    if options["as_json"]:
        emit_json(report)
        return
    for described, output in zip(report["outputs"], job.outputs, strict=True):
        print_output(described, output.entries)
        for (wanted, used), names in fallbacks_by_type(described["fallbacks"]).items():
            are, their = ("is", "its") if len(names) == 1 else ("are", "their")
            said = f"{count(len(names), 'tensor')} {are} {used}: {their} rows cannot be cut into {wanted}'s blocks"
            click.echo(f"  {said}")
            detail("    " + ", ".join(names))
        for role, error in described.get("errors", {}).items():
            click.echo(f"  relative error of {role}: {error:.4f}")
        if options["dry_run"]:
            print_tensors(output.entries)
    if "seconds" in report:
        files = "1 file" if len(job.outputs) == 1 else f"{len(job.outputs)} files"
        say(f"{files} in {report['seconds']:.1f} s")
