"""All variants of a model, planned: a plan and mixes come in; per mix its tensors' types, fields and output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gguf.constants import GGMLQuantizationType

from ..formats.errors import PlanError
from ..formats.gguf_fields import Field, plain
from ..formats.gguf_layout import TensorEntry
from ..models.tensor_types import TensorShape
from ..writer.partial import Output
from ..writer.plan import Plan, PlannedTensor
from .choices import MixOptions, TypeChoice
from .facts import facts_of
from .file_types import FileType
from .mixes import Mix, choose_types
from .output_metadata import quantized_metadata
from .overrides import KvOverride, apply_kv_overrides
from .pruning import prune, writing_order


class Knowledge(Protocol):
    """What is known of inputs, an importance matrix or moments: of which tensors, and what a file says of it."""

    @property
    def names(self) -> frozenset[str]:
        """The tensors that it knows, by their names in the source."""
        ...

    def metadata_overrides(self) -> list[KvOverride]:
        """Return the quantize.* keys."""
        ...


StoredType = Callable[[PlannedTensor], GGMLQuantizationType]


@dataclass(frozen=True)
class Variant:
    """One output: its mix, each tensor's choice in writing order, and its metadata."""

    mix: Mix
    choices: tuple[TypeChoice, ...]
    fields: Mapping[str, Field]

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """What the header says of each tensor."""
        return tuple(TensorEntry(choice.name, choice.shape, choice.qtype) for choice in self.choices)

    def output(self, path: Path, label: str) -> Output:
        """Return what is to be written at a path; `label` tells what else makes the bytes (the imatrix)."""
        return Output(path, self.fields, self.entries, f"quantize {self.mix.name} {label}")


def plan_variants(
    plan: Plan,
    stored: StoredType,
    mixes: Sequence[Mix],
    options: MixOptions,
    imatrix: Knowledge | None = None,
    kv_overrides: Sequence[KvOverride] = (),
) -> tuple[Plan, list[Variant]]:
    """Return the plan of the tensors that are written (pruned, renamed, in writing order) and a variant per mix.

    `stored(tensor)` is the type that a tensor has, or would have in the 16-bit GGUF that nobody writes.
    Raises PlanError and ImatrixError for what cannot be planned.
    """
    shapes = [TensorShape(tensor.name, tensor.shape, stored(tensor)) for tensor in plan.tensors]
    names = [shape.name for shape in shapes]
    n_layer_left = prune(writing_order(names), options.prune_layers)[1] if options.prune_layers else None
    facts = facts_of(plain(apply_kv_overrides(plan.fields, kv_overrides)), names)
    known = imatrix.names if imatrix else False
    every_override = [*kv_overrides, *(imatrix.metadata_overrides() if imatrix else ())]
    variants = []
    for mix in mixes:
        choices = choose_types(facts, shapes, mix, options, known)
        fields = quantized_metadata(
            plan.fields, mix.file_type, shapes, kv_overrides=every_override, n_layer_left=n_layer_left
        )
        variants.append(Variant(mix, tuple(choices), fields))
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    tensors = tuple(replace(by_name[choice.source_name], name=choice.name) for choice in variants[0].choices)
    return replace(plan, tensors=tensors), variants


def stored_in_source(tensor: PlannedTensor) -> GGMLQuantizationType:
    """Return the type of a tensor that comes from a GGUF file; experts of several float types count as F32."""
    if tensor.source_type == "mixed":
        return GGMLQuantizationType.F32
    return GGMLQuantizationType[tensor.source_type]


def parse_types(names: Sequence[str], parse: Callable[[str], FileType]) -> list[FileType]:
    """Parse --type options, each one name or several with commas. Raises PlanError when one is there twice."""
    file_types = [parse(name.strip()) for text in names for name in text.split(",") if name.strip()]
    if not file_types:
        raise PlanError("no type given; name at least one, as --type Q4_K_M")
    seen: set[str] = set()
    for file_type in file_types:
        if file_type.name in seen:
            raise PlanError(f"type {file_type.name} is given twice")
        seen.add(file_type.name)
    return file_types
