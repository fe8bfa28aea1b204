"""llama.cpp's own quantizer, called in this process: a job comes in, a file and what llama.cpp logged go out.

The C structures are those of include/llama.h; `oracle.py` runs this in a process of its own.
"""

import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from moe_gguf.formats.llamacpp import listening, llama
from moe_gguf.quantize.overrides import KvOverride

OnTensor = Callable[[int, int, str, str], None]

_START = re.compile(r"^\[ *(\d+)/ *(\d+)\] (\S+) +- \[([\d, ]+)\], type = +(\S+), ")
_CONVERTING = re.compile(r"converting to (\S+) \.\. ")
_PLANNED = re.compile(r"size = .* MiB -> .* MiB \((\S+)\)")
_FALLBACK = re.compile(r"^warning: (\S+) +- ncols .* \(required for type +(\S+)\) .*-> falling back to +(\S+)")
_FAILED = re.compile(r"failed to quantize: (.*)", re.DOTALL)
_WARNS, _FAILS = 3, 4

# What llama.cpp warns of although it was asked for, or although the log has a place of its own for it.
_TOLD_OTHERWISE = ("applying manual override", "required fallback quantization", "will require an imatrix")


@dataclass(frozen=True)
class StockJob:
    """What llama_model_quantize is asked to do; paths as text, `ftype` is a number, types None when unset."""

    source: str
    target: str
    ftype: int
    only_copy: bool = False
    n_threads: int = 0
    imatrix: Mapping[str, np.ndarray] | None = None
    tensor_types: Sequence[tuple[str, GGMLQuantizationType]] = ()
    output_tensor_type: GGMLQuantizationType | None = None
    token_embedding_type: GGMLQuantizationType | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    allow_requantize: bool = False
    kv_overrides: Sequence[KvOverride] = ()
    prune_layers: Sequence[int] = ()
    keep_split: bool = False
    dry_run: bool = False
    max_buffer_bytes: int = 0


@dataclass(frozen=True)
class StockTensor:
    """One tensor of llama.cpp's log: its shape in GGUF order, its type in the source and in the output."""

    name: str
    shape: tuple[int, ...]
    source_qtype: GGMLQuantizationType
    qtype: GGMLQuantizationType


@dataclass
class StockLog:
    """What llama.cpp's log said; `error` is its last word when it failed."""

    tensors: list[StockTensor] = field(default_factory=list)
    fallbacks: dict[str, GGMLQuantizationType] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    needs_imatrix: bool = False


class _ImatrixData(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


class _TensorOverride(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class _KvValue(ctypes.Union):
    _fields_ = (
        ("val_i64", ctypes.c_int64),
        ("val_f64", ctypes.c_double),
        ("val_bool", ctypes.c_bool),
        ("val_str", ctypes.c_char * 128),
    )


class _KvOverride(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", _KvValue))


def run_stock(job: StockJob, on_tensor: OnTensor | None = None) -> StockLog:
    """Run llama_model_quantize and return what it logged; blocks until done and cannot be stopped.

    `on_tensor(done, total, name, type)` is called after each tensor. A failure is reported in the log's
    `error`; some broken inputs make llama.cpp end the whole process instead.
    """
    llama_cpp = llama()
    parser = _LogParser(on_tensor)
    parameters, keep_alive = _parameters(llama_cpp, job)
    with listening(parser.listen):
        status = llama_cpp.llama_model_quantize(
            os.fsencode(job.source), os.fsencode(job.target), ctypes.byref(parameters)
        )
    del keep_alive
    parser.log.error = parser.failure() if status else ""
    return parser.log


def _parameters(llama_cpp: ModuleType, job: StockJob) -> tuple[ctypes.Structure, list[Any]]:
    """Build the C parameters, and the list of what must stay alive while llama.cpp reads them."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = job.n_threads
    parameters.ftype = job.ftype
    parameters.only_copy = job.only_copy
    parameters.quantize_output_tensor = not job.leave_output_tensor
    parameters.pure = job.pure
    parameters.allow_requantize = job.allow_requantize
    parameters.keep_split = job.keep_split
    parameters.dry_run = job.dry_run
    if job.output_tensor_type is not None:
        parameters.output_tensor_type = job.output_tensor_type
    if job.token_embedding_type is not None:
        parameters.token_embedding_type = job.token_embedding_type
    if job.max_buffer_bytes:
        parameters.max_buf_size = job.max_buffer_bytes
    keep_alive: list[Any] = []
    arrays = {
        "imatrix": _imatrix_array(job.imatrix, keep_alive) if job.imatrix else None,
        "kv_overrides": _kv_array(llama_cpp, job.kv_overrides) if job.kv_overrides else None,
        "tt_overrides": _tensor_type_array(job.tensor_types) if job.tensor_types else None,
        "prune_layers": _layer_array(job.prune_layers) if job.prune_layers else None,
    }
    field_types = {name: kind for name, kind, *_ in type(parameters)._fields_}
    for name, array in arrays.items():
        if array is not None:
            setattr(parameters, name, ctypes.cast(array, field_types[name]))
            keep_alive.append(array)
    return parameters, keep_alive


def _imatrix_array(imatrix: Mapping[str, np.ndarray], keep_alive: list[Any]) -> ctypes.Array[_ImatrixData]:
    array = (_ImatrixData * (len(imatrix) + 1))()
    for entry, (name, values) in zip(array, imatrix.items(), strict=False):
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        keep_alive.append(flat)
        entry.name = name.encode()
        entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = flat.size
    return array


def _kv_array(llama_cpp: ModuleType, overrides: Sequence[KvOverride]) -> ctypes.Array[_KvOverride]:
    array = (_KvOverride * (len(overrides) + 1))()
    for entry, override in zip(array, overrides, strict=False):
        value = override.value
        entry.key = override.key.encode()
        if isinstance(value, bool):
            entry.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_BOOL
            entry.value.val_bool = value
        elif isinstance(value, int):
            entry.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
            entry.value.val_i64 = value
        elif isinstance(value, float):
            entry.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_FLOAT
            entry.value.val_f64 = value
        else:
            entry.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            entry.value.val_str = value.encode("utf-8", "surrogateescape")
    return array


def _tensor_type_array(
    tensor_types: Sequence[tuple[str, GGMLQuantizationType]],
) -> ctypes.Array[_TensorOverride]:
    rows = [_TensorOverride(pattern.encode(), qtype) for pattern, qtype in tensor_types]
    return (_TensorOverride * (len(rows) + 1))(*rows)


def _layer_array(layers: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    ordered = [*sorted(set(layers)), -1]
    return (ctypes.c_int32 * len(ordered))(*ordered)


class _LogParser:
    """Reads llama.cpp's log as it comes: pieces of lines, the type after the name, warnings between."""

    def __init__(self, on_tensor: OnTensor | None) -> None:
        self.log = StockLog()
        self.on_tensor = on_tensor
        self.line = ""
        self.loud = ""
        self.current: tuple[int, int, StockTensor] | None = None

    def listen(self, level: int, text: str) -> None:
        if level == _FAILS:
            self.loud += text
        self.line += text
        while "\n" in self.line:
            line, _, self.line = self.line.partition("\n")
            self._read(line, level)

    def failure(self) -> str:
        """Return the reason of a failure as one line."""
        match = _FAILED.search(self.loud)
        return " ".join((match[1] if match else self.loud or "no reason given").split())

    def _read(self, line: str, level: int) -> None:
        if start := _START.match(line):
            shape = tuple(int(n) for n in start[4].split(","))
            source = GGMLQuantizationType[start[5].upper()]
            self.current = (int(start[1]), int(start[2]), StockTensor(start[3], shape, source, source))
        if self.current and (found := _PLANNED.search(line) or _CONVERTING.search(line)):
            done, total, tensor = self.current
            qtype = GGMLQuantizationType[found[1].upper()]
            self.current = (done, total, StockTensor(tensor.name, tensor.shape, tensor.source_qtype, qtype))
        if self.current and "size = " in line:
            self._finish(*self.current)
        if fallback := _FALLBACK.match(line):
            self.log.fallbacks[fallback[1]] = GGMLQuantizationType[fallback[2].upper()]
        elif "did not find weights" in line or "imatrix size" in line:
            self.log.warnings.append(line.strip("= "))
        elif level == _WARNS and line.strip() and not any(words in line for words in _TOLD_OTHERWISE):
            self.log.warnings.append(line.strip())
        self.log.needs_imatrix |= "will require an imatrix" in line

    def _finish(self, done: int, total: int, tensor: StockTensor) -> None:
        self.current = None
        self.log.tensors.append(tensor)
        if self.on_tensor:
            self.on_tensor(done, total, tensor.name, tensor.qtype.name)
