"""Writing a GGUF file again with no weight changed: split, joined, with other metadata, or brought up to date."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from ..formats.errors import GgufError, PlanError
from ..formats.gguf_fields import Field
from ..formats.gguf_file import read_gguf
from ..formats.gguf_layout import TensorEntry
from ..formats.words import count
from ..writer.gguf_source import plan_from_gguf
from ..writer.partial import Output, check_outputs, split_output
from ..writer.plan import Plan
from .listener import SILENT, Listener
from .outputs import OutputReport
from .planning import finished_check, stoppable
from .restacking import in_one_type, requantized, stacked_type
from .sources import SourceKind, kind_of_path, resolve_gguf

# What an old file may lack, and a newer file or the checkpoint of the same model may have.
REPAIRED = (
    Keys.Tokenizer.PRE,
    Keys.Tokenizer.CHAT_TEMPLATE,
    Keys.Tokenizer.EOT_ID,
    Keys.Tokenizer.ADD_BOS,
    Keys.Tokenizer.ADD_EOS,
)


@dataclass(frozen=True)
class Request:
    """A GGUF file (the first of a split one, or a name of `catalogue`) and the file to write.

    `fields` are set, `removed` keys are left out. `split_max_size` is bytes of tensors a shard, `split_max_tensors`
    tensors a shard. `repair_from`, a GGUF file or a checkpoint folder of the same model, gives what the tokenizer's
    metadata lacks. `requantize` allows experts of several types to be stacked, all in the largest of these. `verify`
    loads the result in llama.cpp.
    """

    source: str | Path | None
    output: Path
    catalogue: Path | None = None
    fields: tuple[tuple[str, Field], ...] = ()
    removed: tuple[str, ...] = ()
    split_max_size: int | None = None
    split_max_tensors: int | None = None
    repair_from: Path | None = None
    requantize: bool = False
    verify: bool = False
    force: bool = False


@dataclass(frozen=True)
class Prepared:
    """A plan that copies every tensor, its output, and what will be different, in words."""

    request: Request
    plan: Plan
    output: Output
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was written, or would be (`seconds` None), and what is different from the source."""

    output: OutputReport
    changes: tuple[str, ...]
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what `split`, `join`, `edit` and `upgrade` print with --json."""
        report: dict[str, Any] = {"outputs": [self.output.as_json()], "changes": list(self.changes)}
        return report | ({"dry_run": True} if self.seconds is None else {"seconds": round(self.seconds, 3)})


def prepare(request: Request) -> Prepared:
    """Read the header and plan the copy. Raises GgufError, PlanError, and OutputError for an output in the way."""
    file = read_gguf(resolve_gguf(request.source, request.catalogue), oldest=1)
    plan = plan_from_gguf(file, mixed=request.requantize)
    changes = list(plan.warnings)
    if len(file.shards) > 1 and not (request.split_max_size or request.split_max_tensors):
        changes.append(f"{len(file.shards)} shards are joined")
    if file.version < 3:
        changes.append(f"GGUF version {file.version} becomes 3")
    fields = dict(plan.fields)
    if request.repair_from:
        found = missing_fields(fields, fields_of(request.repair_from), request.repair_from)
        changes += [f"{key} is taken from {request.repair_from}" for key in found]
        fields |= found
    changes += _edit(fields, request, file.path)
    plan = replace(plan, fields=fields)
    changes += requantized(plan)
    entries = entries_of(plan)
    output = Output(request.output, fields, entries, "copy")
    if request.split_max_size:
        output = split_output(output, request.split_max_size)
    elif n := request.split_max_tensors:
        output = replace(output, groups=tuple(entries[at : at + n] for at in range(0, len(entries), n)))
    return Prepared(request, plan, output, tuple(changes))


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Write the copy; an interrupted run goes on where it stopped. Raises OutputError and Interrupted."""
    from ..runner.threads import best_thread_count
    from ..writer.write import write

    request, plan, output = prepared.request, prepared.plan, prepared.output
    check_outputs([output], plan.source.identity())
    started = time.monotonic()
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)
    with stoppable(), listener.bar(n_weights, "copy", " weights") as bar:
        write(
            plan,
            [output],
            in_one_type(plan.source),
            n_threads=best_thread_count(),
            force=request.force,
            allow_nonfinite=True,
            advance=bar.update,
            check=finished_check(None, request.verify, False, listener),
            begin=lambda: listener.say(f"{count(len(plan.tensors), 'tensor')} to {output.path}"),
        )
    return Report(OutputReport(output, "COPY"), prepared.changes, time.monotonic() - started)


def missing_fields(fields: Mapping[str, Field], others: Mapping[str, Field], where: Path) -> dict[str, Field]:
    """Return what a tokenizer's metadata lacks and that of the same tokenizer elsewhere has.

    Raises GgufError when the other tokenizer has other tokens.
    """
    ours, theirs = (each.get(Keys.Tokenizer.LIST) for each in (fields, others))
    if ours is None or theirs is None or list(ours.value) != list(theirs.value):
        raise GgufError(f"{where}: has other tokens, so nothing of its tokenizer belongs into this file")
    # llama.cpp takes "default" for a pre-tokenizer that is not stated: an old converter may have written it.
    stated = {key for key, field in fields.items() if key != Keys.Tokenizer.PRE or field.value != "default"}
    return {key: others[key] for key in REPAIRED if key in others and key not in stated}


def fields_of(path: Path) -> Mapping[str, Field]:
    """Return the metadata of a GGUF file, or of the one that a checkpoint folder would become."""
    if kind_of_path(path) is SourceKind.GGUF:
        return read_gguf(path).fields
    if kind_of_path(path) is not SourceKind.CHECKPOINT:
        raise PlanError(f"{path}: give a GGUF file or a checkpoint folder of the same model")
    from ..convert.build_plan import build_plan
    from ..formats.checkpoint import open_checkpoint

    return build_plan(open_checkpoint(path)).fields


def _edit(fields: dict[str, Field], request: Request, path: Path) -> list[str]:
    """Set and remove what is asked for, and return it in words."""
    changes = []
    for key in request.removed:
        if key in (Keys.General.ARCHITECTURE, Keys.General.ALIGNMENT):
            raise PlanError(f"{key} cannot be removed: the file would be none that can be read")
        if fields.pop(key, None) is None:
            raise PlanError(f"{path}: has no {key} that could be removed")
        changes.append(f"{key} is removed")
    for key, field in request.fields:
        shown = f"{field.value!r:.60}"
        changes.append(f"{key} becomes {shown}" if key in fields else f"{key} is added: {shown}")
        fields[key] = field
    return changes


def entries_of(plan: Plan) -> tuple[TensorEntry, ...]:
    """Return the tensors of a plan with the types that they have in its source; stacked ones of several get one."""
    return tuple(TensorEntry(one.name, one.shape, stacked_type(one, plan.source)) for one in plan.tensors)
