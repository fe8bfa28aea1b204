"""Plans whose weights are numpy arrays, and the files that the `gguf` package writes of the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from moe_gguf.formats.gguf_fields import Field, field_of
from moe_gguf.formats.gguf_layout import TensorEntry
from moe_gguf.formats.source import TensorInfo
from moe_gguf.writer.partial import Output
from moe_gguf.writer.plan import Piece, Plan, PlannedTensor

DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64"}
FIELDS: dict[str, Field] = {
    "general.architecture": field_of("llama"),
    "general.name": field_of("Arrays"),
    "llama.block_count": field_of(2),
    "tokenizer.ggml.tokens": field_of(["<unk>", "<s>", "a", "ß"]),
    "tokenizer.ggml.scores": field_of([0.0, 0.0, -1.0, -2.0]),
}


class ArraySource:
    """A TensorSource over arrays; uint16 is BF16. `version` is part of its identity, `reads` what was asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray], version: str = "1") -> None:
        self.arrays, self.version = arrays, version
        self.reads: list[tuple[str, int, int]] = []
        self.tensors = {
            name: TensorInfo(name, DTYPES[array.dtype.name], array.shape, f"memory of {name}")
            for name, array in arrays.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        self.reads.append((name, start, stop))
        array = self.arrays[name]
        return array.reshape(-1, array.shape[-1])[start:stop].copy()

    def identity(self) -> dict[str, str]:
        return {"version": self.version}


def plan_of(arrays: Mapping[str, np.ndarray], version: str = "1", fields: Mapping[str, Field] = FIELDS) -> Plan:
    """Return the plan that copies each array into a tensor of its name."""
    source = ArraySource(arrays, version)
    tensors = [
        PlannedTensor(
            name,
            tuple(reversed(info.shape)),
            info.dtype,
            (Piece(name, 0, info.n_rows),),
            n_expert=info.shape[0] if len(info.shape) == 3 else 0,
        )
        for name, info in source.tensors.items()
    ]
    return Plan("llama", fields, tuple(tensors), source)


def output_of(plan: Plan, path: Path, qtype: GGMLQuantizationType | None = None, label: str = "") -> Output:
    """Return an output with all tensors in one type, or each in its own."""
    entries = [
        TensorEntry(tensor.name, tensor.shape, GGMLQuantizationType[tensor.source_type] if qtype is None else qtype)
        for tensor in plan.tensors
    ]
    return Output(path, plan.fields, tuple(entries), label)


def random_arrays(shapes: Mapping[str, Sequence[int]], dtype: str = "float32") -> dict[str, np.ndarray]:
    """Return finite random arrays; for uint16 they are BF16 patterns."""
    numbers = np.random.default_rng(1)
    if dtype == "uint16":
        return {name: numbers.integers(0, 0x4000, shape, np.uint16) for name, shape in shapes.items()}
    return {name: numbers.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_with_gguf(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    fields: Mapping[str, Field] = FIELDS,
    raw: Mapping[str, GGMLQuantizationType] | None = None,
    split_max_size: int = 0,
) -> list[Path]:
    """Write arrays with the `gguf` package; `raw` are the types of arrays that hold bytes. Return all files."""
    writer = gguf.GGUFWriter(path, arch="llama", split_max_size=split_max_size)
    for key, field in fields.items():
        if key == "general.alignment":
            writer.add_custom_alignment(field.value)
        writer.add_key_value(key, field.value, field.type, sub_type=field.item_type)
    for name, array in arrays.items():
        qtype = GGMLQuantizationType.BF16 if array.dtype == np.uint16 else (raw or {}).get(name)
        writer.add_tensor(name, array.view(np.uint8) if qtype is not None else array, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))
