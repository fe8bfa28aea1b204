"""Whether GGUF files are what they say: checksums, manifest, structure, mix, metadata, tensors, load, finite logits.

A file, a release folder or a repository of the hub comes in, anyone's; with the source every tensor is made again and
compared. Out comes a report that names what is wrong, where, and what it was probably caused by.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from ..formats.errors import MoeGgufError, PlanError, ReleaseError
from ..formats.gguf_file import GgufFile, read_gguf
from ..jobs.listener import SILENT, Listener
from ..jobs.opening import DEFAULT_GATES, GateRequest, check_gates
from ..jobs.planning import stoppable
from ..jobs.source_plan import SourcePlan, plan_source
from ..jobs.sources import SourceKind, resolve_source
from ..models.gguf_kind import GgufKind, kind_of_gguf
from ..writer.gguf_source import plan_from_gguf
from ..writer.plan import Plan
from .compare import Making, compare_all
from .finite import nonfinite_problems
from .hub_files import HubSource
from .loaded import wrong_in_llama
from .places import Place, check_sums, kind_of, place_of, without_scratch
from .problems import FileReport, Kind, Report, TensorCounts
from .stated_metadata import metadata_problems
from .stated_mix import StatedMix, mix_in_words, mix_problems, stated_mix
from .structure import structure_problems


@dataclass(frozen=True)
class Request:
    """What to check: a GGUF file, a folder, OWNER/NAME on the hub (at `revision`), or a name of `catalogue`.

    `against` is the source that the files were made of: a checkpoint, a recipe (with `gates`), a GGUF, a name of
    `catalogue`. `imatrix` and `moments` are what they were made with; an imatrix that lies beside them is found.
    `sample` looks at so many rows of each expert and matrix. `load` lets llama.cpp load and run them.
    """

    target: str | Path | None
    against: str | Path | None = None
    catalogue: Path | None = None
    imatrix: Path | None = None
    moments: Path | None = None
    pre_tokenizer: str | None = None
    gates: GateRequest = DEFAULT_GATES
    sample: int | None = None
    revision: str | None = None
    load: bool = True
    n_threads: int | None = None


@dataclass
class Checked:
    """A GGUF file on its way through the checks; `plan` is its own, None where it cannot be read."""

    report: FileReport
    path: Path
    file: GgufFile | None = None
    plan: Plan | None = None
    mix: StatedMix | None = None


def run(request: Request, listener: Listener = SILENT) -> Report:
    """Check what a request names. Raises MoeGgufError for what cannot be checked at all, or no source."""
    if request.sample is not None and request.against is None:
        raise PlanError("--sample says how much of the source's tensors is compared: it goes with --against")
    started = time.monotonic()
    with stoppable(), tempfile.TemporaryDirectory(prefix="moe-gguf-") as scratch:
        place = place_of(request.target, request.catalogue, request.revision, Path(scratch), listener)
        source = _source(request, place, listener) if request.against is not None else None
        check_sums(place, listener)
        checked = [_read(place, name, request) for name in place.names if name.lower().endswith(".gguf")]
        coverage = None
        if source is not None:
            coverage = _compare(request, place, checked, source, listener)
        for one in checked if request.load and place.repo is None else ():
            _run_it(one, request, listener)
    reports = tuple(report for _, report in sorted(place.reports.items()))
    if not reports:
        raise ReleaseError(f"{request.target}: holds no GGUF file; name a file, a release folder, or OWNER/NAME")
    return Report(reports, coverage, time.monotonic() - started)


def _read(place: Place, name: str, request: Request) -> Checked:
    """Read a file's headers, and check all that they alone tell."""
    path, report = place.folder / name, place.report(name)
    checked = Checked(report, path)
    if any(problem.kind is Kind.MISSING for problem in report.problems):
        return checked
    try:
        file = checked.file = read_gguf(path, oldest=1)
        if (kind := kind_of_gguf(file)) is not GgufKind.MODEL:
            report.notes.append(f"{kind}, whose tensors are not a model's")
            report.problems += structure_problems(file, padding=place.repo is None)
            return checked
        plan = plan_from_gguf(file, mixed=True)
    except MoeGgufError as error:
        if not any(problem.kind in (Kind.STRUCTURE, Kind.TRUNCATED) for problem in report.problems):
            report.add(kind_of(error), without_scratch(str(error), place.folder) if place.repo else str(error))
        return checked
    if place.repo is not None:
        whole = request.against is not None and request.sample is None
        plan = replace(plan, source=HubSource(file, place.repo, place.folder, whole))
    checked.plan = plan
    report.tensors = TensorCounts(unchecked=len(plan.tensors))
    report.notes += plan.warnings
    report.problems += structure_problems(file, padding=place.repo is None)
    checked.mix = mix = stated_mix(plan, path)
    released = {one.name: one for one in place.manifest.files} if place.manifest else {}
    report.problems += mix_problems(mix, released[name].mix if name in released else None)
    report.mix = mix_in_words(mix)
    if mix.imatrix:
        report.notes.append(f"made with the importance matrix {mix.imatrix}, it says")
    if mix.moments:
        report.notes.append(f"rounded by the moments of {mix.moments}, it says")
    return checked


def _source(request: Request, place: Place, listener: Listener) -> SourcePlan:
    """Open the source, and read its routers, from beside the files if they are there, or compute them."""
    gates, released = request.gates, place.manifest.recipe if place.manifest else None
    of_recipe = resolve_source(request.against, request.catalogue).kind is SourceKind.RECIPE
    if of_recipe and gates.file is None and place.repo is None and released and released.gates:
        gates = replace(gates, file=place.folder / released.gates.name)
    source = plan_source(request.against, request.catalogue, request.pre_tokenizer, gates, False, listener)
    if source.planned is None:
        return source
    if source.planned.opened:
        check_gates(source.planned.opened)
    return replace(source, plan=source.planned.ready(source.plan, listener))


def _compare(
    request: Request, place: Place, checked: Sequence[Checked], source: SourcePlan, listener: Listener
) -> str | None:
    """Hold the metadata and tensors of files against their source; return how much was looked at."""
    whole = [(one.report, one.plan, one.mix) for one in checked if one.plan is not None and one.mix is not None]
    for report, plan, _ in whole:
        report.problems += metadata_problems(plan.fields, source.plan.fields)
        _check_names(report, plan, source.plan)
    made_with = Making(request.imatrix, request.moments, request.sample, request.n_threads)
    return compare_all(made_with, place.folder, whole, source, listener)


def _check_names(report: FileReport, plan: Plan, source: Plan) -> None:
    """Note tensors that are missing, that the source has not, or that have another shape or an unreadable type."""
    theirs = {tensor.name: tensor for tensor in plan.tensors}
    ours = {tensor.name: tensor for tensor in source.tensors}
    for name in ours.keys() - theirs.keys():
        report.add(Kind.TENSORS, f"{name} is missing, which the source has", name)
    for name, tensor in theirs.items():
        if name not in ours:
            report.add(Kind.TENSORS, f"{name!r:.80} is there, which the source has not", name)
        elif tensor.shape != ours[name].shape:
            message = f"{name} has the shape {list(tensor.shape)}, the source's {list(ours[name].shape)}"
            report.add(Kind.TENSORS, message, name)
        elif tensor.source_type not in GGMLQuantizationType.__members__:
            report.add(Kind.TENSORS, f"{name}: its experts are of several types; see moe-gguf upgrade", name)


def _run_it(one: Checked, request: Request, listener: Listener) -> None:
    """Look for weights that are not finite, load a file in llama.cpp unless it is broken, and look at its logits."""
    if one.file is None or one.plan is None:
        return
    if any(problem.kind in (Kind.STRUCTURE, Kind.TRUNCATED, Kind.TENSORS) for problem in one.report.problems):
        one.report.notes.append("not loaded: it is broken already")
        return
    from ..runner.limits import system_memory
    from ..runner.threads import best_thread_count

    if request.against is None or request.sample is not None:
        n_weights = sum(tensor.n_weights for tensor in one.plan.tensors)
        with listener.bar(n_weights, "look at all weights", " weights", delay=1) as bar:
            n_threads = request.n_threads or best_thread_count()
            one.report.problems += nonfinite_problems(one.plan, n_threads, bar.update)
    fits = sum(path.stat().st_size for path in one.file.shards) < system_memory()[0] / 2
    listener.detail(f"{one.report.path}: load it in llama.cpp")
    for message in wrong_in_llama(one.path, fits):
        one.report.add(Kind.LOAD, message)
    if not fits:
        one.report.notes.append("larger than half of the free memory: loaded, its logits were not looked at")
