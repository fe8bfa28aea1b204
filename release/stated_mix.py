"""Whether a file's types are those that its name and its metadata say: the mix is read from the file itself.

Also told apart: the mixture that llama.cpp made of experts before 2024 had seen its fix, which lacks bits in every
expert's ffn_down.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGMLQuantizationType, Keys, LlamaFileType

from ..formats.errors import MoeGgufError
from ..formats.gguf_fields import plain
from ..formats.gguf_file import tensor_bytes
from ..formats.words import count
from ..models.tensor_roles import Part, Role, part_of, role_of
from ..models.tensor_types import TensorShape, is_quantized
from ..quantize.choices import MixOptions
from ..quantize.facts import facts_of
from ..quantize.file_types import FILE_TYPES, FileType
from ..quantize.mixes import plan_types
from ..quantize.stock_policy import stock
from ..writer.plan import Plan
from .problems import Kind, Problem

IMATRIX = "quantize.imatrix."
LABEL = re.compile(r"[-.](?P<type>[A-Za-z0-9_]+?)(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
Types = Mapping[str, GGMLQuantizationType]


@dataclass(frozen=True)
class StatedMix:
    """What a file says of its types: `stated` by its metadata, `named` by its name; None where it says nothing."""

    types: Types
    shapes: tuple[TensorShape, ...]
    stated: FileType | None
    named: FileType | None
    plan: Plan

    @property
    def imatrix(self) -> str | None:
        """The importance matrix that the file says it was made with, and on what; None without."""
        file = self.plan.fields.get(f"{IMATRIX}file")
        if file is None:
            return None
        dataset, chunks = (self.plan.fields.get(IMATRIX + key) for key in ("dataset", "chunks_count"))
        told = [f"dataset {dataset.value}"] if dataset else []
        told += [f"{chunks.value} chunks"] if chunks else []
        more = f" ({', '.join(told)})" if told else ""
        return f"{file.value}{more}"

    @property
    def moments(self) -> str | None:
        """The model and text of the moments that the file says its weights were rounded by; None without."""
        text = self.plan.fields.get("quantize.moments.text")
        return str(text.value) if text else None

    def stock_types(self, file_type: FileType) -> Types | None:
        """Return the types that llama.cpp's mixture of a file type gives these tensors; None where it gives none."""
        if file_type.qtype is None:
            return None
        try:
            facts = facts_of(plain(self.plan.fields), self.types)
            choices = plan_types(facts, self.shapes, stock(file_type), MixOptions(), self.imatrix is not None)
        except MoeGgufError:
            return None
        return {choice.name: choice.qtype for choice in choices}

    def differences(self, wanted: Types) -> dict[str, tuple[GGMLQuantizationType, GGMLQuantizationType]]:
        """Return the tensors of other types than wanted, each with both."""
        return {
            name: (qtype, wanted[name])
            for name, qtype in self.types.items()
            if name in wanted and qtype != wanted[name]
        }


def stated_mix(plan: Plan, path: Path) -> StatedMix:
    """Read the mix of a file from its own plan and its name."""
    shapes = tuple(
        TensorShape(tensor.name, tensor.shape, GGMLQuantizationType[tensor.source_type])
        for tensor in plan.tensors
        if tensor.source_type in GGMLQuantizationType.__members__
    )
    field = plan.fields.get(Keys.General.FILE_TYPE)
    number = int(field.value) & ~int(LlamaFileType.GUESSED) if field and isinstance(field.value, int) else None
    stated = next((one for one in FILE_TYPES if one.ftype == number and one.qtype is not None), None)
    label = LABEL.search(path.name)
    # UD-Q4_K_M is the name of another mix, as much as Q4_K_L is.
    name = label["type"].upper() if label and "UD-" not in path.name else ""
    named = next((one for one in FILE_TYPES if name in (one.name, *one.aliases) and one.qtype is not None), None)
    return StatedMix({one.name: one.qtype for one in shapes}, shapes, stated, named, plan)


def mix_problems(mix: StatedMix, in_manifest: Mapping[str, str] | None = None) -> Iterator[Problem]:
    """Yield what is wrong with the types of a file; `in_manifest` are those that its manifest gives it."""
    if in_manifest is not None:
        yield from _against_manifest(mix, in_manifest)
    if mix.named and mix.stated and mix.named.name != mix.stated.name:
        message = f"named {mix.named.name}, and says {mix.stated.name} of itself (general.file_type)"
        yield Problem(Kind.MIX, message)
    file_type = mix.stated or mix.named
    wanted = mix.stock_types(file_type) if file_type else None
    if file_type is None or wanted is None:
        return
    different = mix.differences(wanted)
    if not different:
        return
    if _is_broken_mix(file_type, mix, different, wanted):
        yield Problem(Kind.MIX, _broken(file_type, mix, wanted), next(iter(different)))
        return
    other = _same_as_another(mix, file_type)
    if other:
        yield Problem(Kind.MIX, f"says {file_type.name}, and its types are those of {other}", next(iter(different)))
    elif in_manifest is None and mix.named:
        message = f"named {mix.named.name}, and {_told(different)} as llama.cpp's {file_type.name} has them"
        yield Problem(Kind.MIX, message, next(iter(different)))


def mix_in_words(mix: StatedMix) -> str:
    """Return what the types of a file are, in a few words."""
    file_type = mix.stated or mix.named
    if file_type is None:
        return "types of its own"
    wanted = mix.stock_types(file_type)
    if wanted is None:
        return file_type.name
    different = mix.differences(wanted)
    return f"llama.cpp's {file_type.name}" if not different else f"{file_type.name}, but {_told(different)}"


def _against_manifest(mix: StatedMix, in_manifest: Mapping[str, str]) -> Iterator[Problem]:
    wrong = [name for name, qtype in mix.types.items() if in_manifest.get(name, qtype.name) != qtype.name]
    if wrong:
        first = f"{wrong[0]} is {mix.types[wrong[0]].name}, not {in_manifest[wrong[0]]}"
        yield Problem(Kind.MIX, f"{count(len(wrong), 'tensor')} of other types than in the manifest: {first}", wrong[0])
    if missing := sorted(set(in_manifest) ^ set(mix.types)):
        yield Problem(Kind.MIX, f"{missing[0]} is in the file or in the manifest, not in both", missing[0])


def _is_broken_mix(file_type: FileType, mix: StatedMix, different: Mapping[str, object], wanted: Types) -> bool:
    """Tell the mixture of before the fix of early 2024: experts, and attention outputs, got the base type only.

    The rules went by names such as ffn_down.weight, which the tensors of single experts (ffn_down.0.weight) have not.
    """
    down = [name for name in wanted if role_of(name) is Role.FFN_DOWN and part_of(name) is Part.EXPERTS]
    raised = [name for name in down if wanted[name] != file_type.qtype]
    if not raised or any(mix.types[name] != file_type.qtype for name in (*down, *different)):
        return False
    return all(part_of(name) is Part.EXPERTS or role_of(name) is Role.ATTN_OUTPUT for name in different)


def _broken(file_type: FileType, mix: StatedMix, wanted: Types) -> str:
    def size(types: Types) -> int:
        return sum(tensor_bytes(one.shape, types[one.name]) for one in mix.shapes)

    lacks = (size(wanted) - size(mix.types)) / 1e9
    base = file_type.qtype.name if file_type.qtype else ""
    return (
        f"the broken MoE mix of early 2024: ffn_down of all experts is {base} where "
        f"{file_type.name} gives some of them more bits ({lacks:.2f} GB less than there should be); quantize it "
        "again from a 16-bit file"
    )


def _same_as_another(mix: StatedMix, than: FileType) -> str | None:
    for other in FILE_TYPES:
        if other.name != than.name and other.qtype is not None and is_quantized(other.qtype):
            wanted = mix.stock_types(other)
            if wanted is not None and not mix.differences(wanted):
                return other.name
    return None


def _told(different: Mapping[str, tuple[GGMLQuantizationType, GGMLQuantizationType]]) -> str:
    first, (found, wanted) = next(iter(different.items()))
    more = f" and {len(different) - 1} more are not" if len(different) > 1 else " is not"
    return f"{first} ({found.name}, not {wanted.name}){more}"
