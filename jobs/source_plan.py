"""What is to be quantized, opened: a model argument comes in; a plan, and the types that its tensors have, go out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.errors import PlanError
from ..formats.gguf_file import read_gguf
from ..quantize.variants import StoredType, stored_in_source
from ..writer.gguf_source import plan_from_gguf
from ..writer.plan import Plan
from .listener import SILENT, Listener
from .opening import DEFAULT_GATES, GateRequest
from .planning import Planned, plan_of
from .sources import SourceKind, resolve_source


@dataclass(frozen=True)
class SourcePlan:
    """An opened source: its plan, the types it stores, where outputs go; `groups` are each source shard's tensors."""

    name: str
    plan: Plan
    stored: StoredType
    folder: Path
    planned: Planned | None = None
    groups: Sequence[set[str]] = ()


def plan_source(
    argument: str | Path | None,
    catalogue: Path | None = None,
    pre_tokenizer: str | None = None,
    gates: GateRequest = DEFAULT_GATES,
    keep_split: bool = False,
    listener: Listener = SILENT,
    from_gguf: bool = True,
) -> SourcePlan:
    """Open a GGUF file, a checkpoint folder, a recipe, or a name of `catalogue`; reads headers only.

    `from_gguf` takes a catalogue's model from its full-precision GGUF, where it has been converted. With
    `keep_split` it must be a GGUF file. Raises MoeGgufError for what cannot be quantized.
    """
    resolved = resolve_source(argument, catalogue, prefer_gguf=from_gguf)
    if resolved.kind is SourceKind.GGUF and resolved.path:
        file = read_gguf(resolved.path)
        groups = [{t.name for t in file.tensors.values() if t.path == shard} for shard in file.shards]
        folder = resolved.output or resolved.path.parent
        return SourcePlan(resolved.name, plan_from_gguf(file), stored_in_source, folder, groups=groups)
    from ..convert.outtype import resolve_outtype, stored_type

    if keep_split:
        raise PlanError("--keep-split goes with a split GGUF; for a checkpoint use --split-max-size")
    planned = plan_of(resolved, pre_tokenizer, gates, listener)
    outtype = resolve_outtype(planned.plan, "auto")
    return SourcePlan(planned.name, planned.plan, lambda tensor: stored_type(tensor, outtype), planned.folder, planned)
