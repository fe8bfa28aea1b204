"""Writing a checkpoint or a recipe as one GGUF file, verified before it gets its name."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.outtype import choose_entries, file_type_field, resolve_outtype
from ..formats.words import count
from ..writer.partial import Output, check_outputs, split_output
from ..writer.plan import Plan
from .listener import SILENT, Listener
from .opening import DEFAULT_GATES, GateRequest, check_gates, need_llama
from .outputs import OutputReport, Place
from .planning import Planned, finished_check, plan_of, stoppable
from .sources import resolve_source


@dataclass(frozen=True)
class Request:
    """What to convert: a checkpoint folder, a recipe, or a name of `catalogue`.

    `outfile` is a .gguf file or a folder, None the default; `outtype` "auto", "f32", "f16", "bf16" or "q8_0";
    `split_max_size` is bytes a shard; `verify` loads the finished file in llama.cpp; `n_threads` None is one a core.
    """

    source: str | Path | None
    catalogue: Path | None = None
    outfile: str | None = None
    outtype: str = "auto"
    split_max_size: int | None = None
    pre_tokenizer: str | None = None
    gates: GateRequest = DEFAULT_GATES
    verify: bool = True
    allow_nonfinite: bool = False
    force: bool = False
    n_threads: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A plan and its output; nothing is written yet."""

    request: Request
    planned: Planned
    plan: Plan
    place: Place
    output: Output
    outtype: str

    def report(self, seconds: float | None = None) -> "Report":
        """Return what is known of the output, which has this size whether it is written or not."""
        described = OutputReport(self.output, self.outtype.upper())
        return Report((described,), dict(self.plan.ignored), seconds)


@dataclass(frozen=True)
class Report:
    """What was written, or would be (`seconds` None), and the source tensors that were left out, with the reasons."""

    outputs: tuple[OutputReport, ...]
    ignored: dict[str, str]
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what `convert --json` prints (docs/convert.md)."""
        outputs = [output.as_json() for output in self.outputs]
        if self.seconds is None:
            return {"outputs": outputs, "dry_run": True, "ignored": self.ignored}
        return {"outputs": outputs, "seconds": round(self.seconds, 3), "ignored": self.ignored}


def prepare(request: Request, listener: Listener = SILENT) -> Prepared:
    """Open the source and plan the file; reads headers only. Raises MoeGgufError for what cannot be converted."""
    source = resolve_source(request.source, request.catalogue)
    with stoppable():
        planned = plan_of(source, request.pre_tokenizer, request.gates, listener)
    for warning in planned.plan.warnings:
        listener.warn(warning)
    outtype = resolve_outtype(planned.plan, request.outtype)
    plan = planned.plan.with_fields(file_type_field(planned.plan, outtype))
    place = Place.of(request.outfile, 1, planned.folder)
    path = place.path(plan.fields, outtype.upper())
    output = Output(path, plan.fields, choose_entries(plan, outtype), f"convert {outtype}")
    if request.split_max_size:
        output = split_output(output, request.split_max_size)
    return Prepared(request, planned, plan, place, output, outtype)


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Write the file; an interrupted run goes on where it stopped. Raises MoeGgufError and Interrupted."""
    from ..quantize.encode import Encoder
    from ..runner.threads import best_thread_count
    from ..writer.write import write

    request, planned, output = prepared.request, prepared.planned, prepared.output
    if planned.opened:
        check_gates(planned.opened)
    if request.verify:
        need_llama()
    prepared.place.prepare()
    check_outputs([output], prepared.plan.source.identity())
    with stoppable():
        plan = planned.ready(prepared.plan, listener)
    started = time.monotonic()
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)
    with stoppable(), listener.bar(n_weights, "convert", " weights") as bar:
        written = write(
            plan,
            [output],
            Encoder(),
            n_threads=request.n_threads or best_thread_count(),
            force=request.force,
            allow_nonfinite=request.allow_nonfinite,
            advance=bar.update,
            begin=lambda: listener.say(f"{planned.name}: {count(len(output.entries), 'tensor')} to {output.path}"),
            check=finished_check(planned.tokenizer, request.verify, request.allow_nonfinite, listener),
        )
    if written[0].resumed_at:
        listener.say("resumed an interrupted run")
    return prepared.report(time.monotonic() - started)
