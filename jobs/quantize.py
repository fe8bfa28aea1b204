"""Writing every quantization of a model in one pass over its source, with no 16-bit file in between."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..formats.errors import PlanError
from ..formats.gguf_file import same_file
from ..formats.moments import MomentsFile
from ..formats.source import file_identity
from ..formats.words import count
from ..quantize.choices import MixOptions
from ..quantize.encode import Encoder, Importance, relative_errors
from ..quantize.imatrix import Imatrix, load_imatrix
from ..quantize.mixes import Mix
from ..quantize.overrides import KvOverride
from ..quantize.rounding.calibration import Calibration, check_model
from ..quantize.variants import Variant, plan_variants
from ..writer.partial import Output, check_outputs, split_output
from ..writer.plan import Plan
from .budgeting import Budget, BudgetReport, budgeted_mix
from .listener import SILENT, Listener
from .opening import DEFAULT_GATES, GateRequest, check_gates, need_llama
from .outputs import OutputReport, Place
from .planning import Planned, finished_check, stoppable
from .quantize_report import Fallback, Report, RoundingReport, VariantReport, rounding_report
from .source_plan import SourcePlan, plan_source

__all__ = ["Fallback", "Prepared", "Report", "Request", "RoundingReport", "VariantReport", "prepare", "run"]


@dataclass(frozen=True)
class Request:
    """What to quantize: a GGUF file, a checkpoint folder, a recipe, or a name of `catalogue`.

    A mix is a choice of types: `stock(parse_file_type("Q4_K_M"))` of moe_gguf.quantize.stock_policy is llama.cpp's, and
    any other policy may be handed over. `outfile` is a .gguf file for one mix, a folder for any number, None the
    default; `include_weights` and `exclude_weights` are parts of names of tensors for which the imatrix counts, or does
    not; `known_as` is what the metadata calls the imatrix, None its path; `from_gguf` reads a catalogue's model from
    its full-precision GGUF where there is one; `split_max_size` is bytes a shard, `keep_split` splits as the source is
    split; `verify` loads each finished file in llama.cpp; `rounding` "thorough" goes through long rows again, too,
    where there are moments; `measure` asks for the relative errors per role of tensor.
    """

    source: str | Path | None
    mixes: tuple[Mix, ...]
    catalogue: Path | None = None
    outfile: str | None = None
    imatrix: Path | None = None
    moments: Path | None = None
    rounding: Literal["quick", "thorough"] = "quick"
    known_as: str | None = None
    from_gguf: bool = True
    budget: Budget | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    options: MixOptions = field(default_factory=MixOptions)
    kv_overrides: tuple[KvOverride, ...] = ()
    split_max_size: int | None = None
    keep_split: bool = False
    pre_tokenizer: str | None = None
    gates: GateRequest = DEFAULT_GATES
    verify: bool = False
    measure: bool = False
    allow_nonfinite: bool = False
    force: bool = False
    n_threads: int | None = None


@dataclass(frozen=True)
class Prepared:
    """One pass: a plan, and the variants and outputs made of it, in the same order."""

    request: Request
    name: str
    plan: Plan
    variants: tuple[Variant, ...]
    outputs: tuple[Output, ...]
    place: Place
    imatrix: Imatrix | None
    calibration: Calibration | None
    planned: Planned | None
    source_plan: Plan
    budget: BudgetReport | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before anything is written."""
        known = self.imatrix.warnings if self.imatrix else ()
        bought = self.budget.warnings("calibrated" if self.calibration else "plain") if self.budget else ()
        return (*self.plan.warnings, *known, *self._unmatched, *bought)

    @property
    def _unmatched(self) -> list[str]:
        names = [choice.name for choice in self.variants[0].choices]
        return [
            f"--tensor-type {pattern}: no tensor has such a name"
            for pattern, _ in self.request.options.tensor_types
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

    def report(self, encoder: Encoder | None = None, seconds: float | None = None, resumed: bool = False) -> Report:
        """Return what is known of the outputs, and what the encoder noticed when they were written."""
        reports = []
        for variant, output in zip(self.variants, self.outputs, strict=True):
            used = {entry.qtype for entry in output.entries}
            replaced = sorted(qtype.name for qtype in encoder.fallen_back & used) if encoder else None
            errors = relative_errors(encoder, variant.choices) if encoder and encoder.measure else None
            described = OutputReport(output, variant.mix.name)
            told = None if replaced is None else tuple(replaced)
            bought = self.budget if variant is self.variants[-1] else None
            rounding = rounding_report(encoder, variant, resumed)
            reports.append(VariantReport(described, variant, told, errors, rounding, bought))
        return Report(tuple(reports), seconds)


def prepare(request: Request, listener: Listener = SILENT) -> Prepared:
    """Open the source and plan all outputs; reads headers only. Raises MoeGgufError for what cannot be done."""
    if request.keep_split and request.split_max_size:
        raise PlanError("--keep-split and --split-max-size exclude each other")
    if request.rounding == "thorough" and not request.moments:
        raise PlanError("--rounding thorough needs to know what goes together in the inputs: add --moments")
    if request.moments and request.imatrix:
        raise PlanError("--moments and --imatrix exclude each other: moments say what an imatrix says, and more")
    with stoppable():
        source = plan_source(
            request.source,
            request.catalogue,
            request.pre_tokenizer,
            request.gates,
            request.keep_split,
            listener,
            request.from_gguf,
        )
        imatrix = _imatrix(request)
        moments = MomentsFile(request.moments) if request.moments else None
    calibration = Calibration(moments) if moments else None
    known, mixes, bought = calibration or imatrix, request.mixes, None
    if request.budget:
        mix, bought = budgeted_mix(request.budget, source.plan, source.stored, request.options, known)
        mixes = (*mixes, mix)
    plan, variants = plan_variants(source.plan, source.stored, mixes, request.options, known, request.kv_overrides)
    if moments:
        calibration = Calibration(moments, {choice.name: choice.source_name for choice in variants[0].choices})
        for choice in (choice for variant in variants for choice in variant.choices if choice.converts):
            moments.entry(choice.source_name, choice.shape)
    if imatrix:
        for choice in (choice for variant in variants for choice in variant.choices if choice.converts):
            imatrix.for_tensor(choice.source_name, choice.shape)  # a wrong size is refused, an unknown one noted
    place = Place.of(request.outfile, len(variants), source.folder)
    outputs = _outputs(request, source, variants, place)
    prepared = Prepared(
        request,
        source.name,
        plan,
        tuple(variants),
        tuple(outputs),
        place,
        imatrix,
        calibration,
        source.planned,
        source.plan,
        bought,
    )
    for warning in prepared.warnings:
        listener.warn(warning)
    return prepared


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Write all outputs; an interrupted run goes on where it stopped. Raises MoeGgufError and Interrupted."""
    from ..runner.threads import best_thread_count
    from ..writer.write import write

    request, planned = prepared.request, prepared.planned
    with stoppable():
        if planned and planned.opened:
            check_gates(planned.opened)
        if request.verify:
            need_llama()
        warm_up(prepared, listener)
        prepared.place.prepare()
        check_outputs(prepared.outputs, prepared.plan.source.identity())
        plan = planned.ready(prepared.plan, listener) if planned else prepared.plan
        if prepared.calibration:
            prepared.calibration.moments.check_finite()
            check_model(prepared.calibration.moments, replace(prepared.source_plan, source=plan.source))
    thorough = request.rounding == "thorough"
    encoder = Encoder(prepared.importance, request.measure, prepared.calibration, thorough)
    targets = ", ".join(str(output.path) for output in prepared.outputs)
    tokenizer = planned.tokenizer if planned else None
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)
    started = time.monotonic()
    with stoppable(), listener.bar(n_weights, "quantize", " weights") as bar:
        written = write(
            plan,
            prepared.outputs,
            encoder,
            n_threads=request.n_threads or best_thread_count(),
            force=request.force,
            allow_nonfinite=request.allow_nonfinite,
            advance=bar.update,
            check=finished_check(tokenizer, request.verify, request.allow_nonfinite, listener),
            begin=lambda: listener.say(f"{prepared.name}: {count(len(plan.tensors), 'tensor')} to {targets}"),
        )
    resumed = any(one.resumed_at for one in written)
    if resumed:
        listener.say("resumed an interrupted run")
    for qtype in encoder.fallen_back:
        listener.warn(f"{qtype.name}: this llama.cpp computes differently from our kernel; its own encoder was used")
    return prepared.report(encoder, time.monotonic() - started, resumed)


def warm_up(prepared: Prepared, listener: Listener = SILENT) -> None:
    """Compile the kernels that the outputs need, saying so when it takes a while."""
    from ..quantize.kernels import has_kernel
    from ..quantize.kernels import warm_up as compile_kernels
    from ..quantize.rounding import warm_up as compile_rounding

    types = {choice.qtype for variant in prepared.variants for choice in variant.choices if choice.converts}
    kernels = [qtype for qtype in types if has_kernel(qtype)]
    started = time.monotonic()
    with listener.bar(len(kernels), "compile the encoders (kept for next time)", " kernels") as bar:
        compile_kernels(kernels, (prepared.imatrix or prepared.calibration) is not None, lambda _: bar.update(1))
        if prepared.calibration:
            compile_rounding(types)
    if (seconds := time.monotonic() - started) > 2:
        listener.say(f"the encoders were compiled for this processor in {seconds:.1f} s; next time they are there")


def _imatrix(request: Request) -> Imatrix | None:
    """Load the importance matrix, as far as the request lets it count; None when nothing of it does."""
    if request.include_weights and request.exclude_weights:
        raise PlanError("--include-weights and --exclude-weights exclude each other")
    if request.imatrix is None:
        if request.include_weights or request.exclude_weights:
            raise PlanError(
                "--include-weights and --exclude-weights choose tensors of an importance matrix: add --imatrix"
            )
        return None
    matrix = load_imatrix(request.imatrix).restricted(request.include_weights, request.exclude_weights)
    if request.known_as:
        matrix = replace(matrix, path=request.known_as)
    return matrix if matrix.values else None


def _outputs(request: Request, source: SourcePlan, variants: Sequence[Variant], place: Place) -> list[Output]:
    label = _label(request)
    paths = [place.path(variant.fields, variant.mix.name) for variant in variants]
    for read, what in ((request.imatrix, "importance matrix"), (request.moments, "file of moments")):
        if read and any(same_file(path, read) for path in paths):
            raise PlanError(f"{read}: the output is the {what}; choose another name")
    outputs = [variant.output(path, label) for variant, path in zip(variants, paths, strict=True)]
    if size := request.split_max_size:
        return [split_output(output, size) for output in outputs]
    return [_split_alike(output, source.groups) for output in outputs] if request.keep_split else outputs


def _label(request: Request) -> str:
    """Return what else than the types makes the bytes: an interrupted run goes on only if it is the same."""
    if request.moments:
        return str(file_identity(request.moments)) + (" thorough" if request.rounding == "thorough" else "")
    if not request.imatrix:
        return ""
    label = str(file_identity(request.imatrix))
    chosen = [*(f"+{name}" for name in request.include_weights), *(f"-{name}" for name in request.exclude_weights)]
    return " ".join((label, *chosen))


def _split_alike(output: Output, groups: Sequence[set[str]]) -> Output:
    if len(groups) < 2:
        return output
    by_shard = tuple(tuple(entry for entry in output.entries if entry.name in names) for names in groups)
    if sum(len(group) for group in by_shard) != len(output.entries):
        raise PlanError("--keep-split cannot follow tensors that are stacked or renamed; use --split-max-size")
    return replace(output, groups=by_shard)
