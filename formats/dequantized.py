"""Quantized checkpoints as float32 rows: FP8, GPTQ and compressed-tensors, equal to llama.cpp's converter to the bit.

A source comes in, a source goes out whose quantized weights read as F32; only what the rows asked for need is read.
Source: dequant_model in llama.cpp's conversion/base.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Protocol

import numpy as np

from .errors import CheckpointError
from .floats import widen
from .source import TensorInfo, TensorSource

FP8 = ("F8_E4M3", "F8_E5M2")
# Scales of activations, which nothing multiplies with here.
ACTIVATIONS = (".activation_scale", "_activation_scale", ".qscale_act", ".input_scale", ".k_scale", ".v_scale")
SCALES = ("_scale_inv", ".qscale_weight", ".weight_scale")


class ValueSource(TensorSource, Protocol):
    """A TensorSource that can also read a part of a row."""

    def read_values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return values [start, stop) of a tensor, counted through all of its rows."""
        ...


Read = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Quantized:
    """A weight that is made of several stored tensors, and how its rows [start, stop) are read as float32."""

    info: TensorInfo
    made_of: tuple[str, ...]
    read: Read


class DequantizedSource:
    """A source with quantized weights as F32; what they are made of is not there any more."""

    def __init__(self, source: ValueSource, weights: Mapping[str, Quantized]) -> None:
        self._source, self._weights = source, weights
        first = {weight.made_of[0]: weight for weight in weights.values()}
        gone = {name for weight in weights.values() for name in weight.made_of}
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            if name in first:
                self.tensors[first[name].info.name] = first[name].info
            elif name not in gone and not name.endswith(ACTIVATIONS):
                self.tensors[name] = info

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        weight = self._weights.get(name)
        return self._source.read_rows(name, start, stop) if weight is None else weight.read(start, stop)

    def identity(self) -> Mapping[str, str]:
        """Return the identity of the source."""
        return self._source.identity()


def scaled_weights(source: ValueSource, block: tuple[int, int] | None) -> dict[str, Quantized]:
    """Return the weights that have a scale beside them: one, one a row, or one for each `block` (rows, columns).

    Raises CheckpointError for scales of another shape.
    """
    found: dict[str, Quantized] = {}
    for name in source.tensors:
        ending = next((ending for ending in SCALES if name.endswith(ending)), None)
        if ending is None or name.endswith(ACTIVATIONS):
            continue
        tail = {"_scale_inv": "", ".qscale_weight": ".weight", ".weight_scale": ".weight"}[ending]
        weight = name.removesuffix(ending) + tail
        if weight in source.tensors and source.tensors[weight].dtype in (*FP8, "I8"):
            found[weight] = _scaled(source, weight, name, block)
    return found


def _scaled(source: ValueSource, name: str, scale: str, block: tuple[int, int] | None) -> Quantized:
    info, scales = source.tensors[name], source.tensors[scale]
    rows, columns = (info.shape[-2] if len(info.shape) > 1 else 1), info.row_length
    height, width = _block_of(info, scales, block)
    per_matrix = -(-rows // height)  # rows of scales for one matrix of `rows` rows

    def read(start: int, stop: int) -> np.ndarray:
        values = _codes(source.read_rows(name, start, stop), info.dtype)
        at = np.arange(start, stop)
        wanted = at // rows * per_matrix + at % rows // height
        if scales.row_length * scales.n_rows == 1:
            wanted[:] = 0
        n_across = -(-columns // width)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        part = widen(source.read_values(scale, low * n_across, high * n_across)).reshape(high - low, n_across)
        with np.errstate(invalid="ignore", over="ignore"):
            return values * np.repeat(part, width, axis=1)[:, :columns][wanted - low]

    return Quantized(TensorInfo(name, "F32", info.shape, info.where), (name, scale), read)


def _block_of(info: TensorInfo, scales: TensorInfo, block: tuple[int, int] | None) -> tuple[int, int]:
    """Return how many rows and columns share a scale."""
    rows, columns = (info.shape[-2] if len(info.shape) > 1 else 1), info.row_length
    outer = info.shape[:-2]
    if block and scales.shape == (*outer, -(-rows // block[0]), -(-columns // block[1])):
        return block
    if prod(scales.shape) == 1:
        return rows, columns
    shape = scales.shape
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    if not block and shape == info.shape[:-1]:
        return 1, columns
    if not block and outer and shape == outer:
        return rows, columns
    raise CheckpointError(
        f"{scales.name} ({scales.where}) has the shape {list(scales.shape)}, which does not fit {info.name} of "
        f"{list(info.shape)}{f' in blocks of {block[0]} by {block[1]}' if block else ''}"
    )


def _codes(stored: np.ndarray, dtype: str) -> np.ndarray:
    return stored.astype(np.float32) if dtype == "I8" else _fp8_values(dtype)[stored]


@cache
def _fp8_values(dtype: str) -> np.ndarray:
    """Return the 256 values of an FP8 type: a sign, 4 or 5 bits of exponent, 3 or 2 of mantissa.

    E4M3 is the kind without infinities, whose NaN has all bits set; E5M2 is the upper half of float16.
    """
    codes = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":
        return (codes << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal).astype(np.float32)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -values, values)


def gptq_weights(source: ValueSource, bits: Any, has_offset: bool) -> dict[str, Quantized]:
    """Return GPTQ's weights; `has_offset` says that stored zeros are one less than meant (all but gptq_v2).

    Raises CheckpointError for other bits than 2, 4 and 8, and for parts that are missing or do not fit.
    """
    if bits not in (2, 4, 8):
        raise CheckpointError(f"GPTQ with {bits!r} bits is not supported; 2, 4 and 8 are")
    names = [name.removesuffix(".qweight") for name in source.tensors if name.endswith(".qweight")]
    return {f"{name}.weight": _gptq(source, name, bits, has_offset) for name in names}


def _gptq(source: ValueSource, name: str, bits: int, has_offset: bool) -> Quantized:
    """Return one weight of GPTQ.

    qweight [n_in / n, n_out] int32   n = 32 / bits inputs of one output, the first in the lowest bits
    qzeros  [n_group, n_out / n]      the zeros of n outputs
    scales  [n_group, n_out]
    g_idx   [n_in]                    the group of each input
    """
    parts = tuple(f"{name}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    infos = _parts(source, parts)
    packed, mask = 32 // bits, np.uint32(2**bits - 1)
    n_in, n_out = infos[0].shape[0] * packed, infos[0].row_length
    n_group = infos[2].shape[0]
    fits = infos[0].dtype == infos[1].dtype == infos[3].dtype == "I32" and infos[3].shape == (n_in,)
    fits = fits and infos[2].shape == (n_group, n_out) and infos[1].shape == (n_group, n_out // packed)
    if not fits or n_out % packed:
        raise CheckpointError(f"{infos[0].where}: the parts of {name} do not fit GPTQ with {bits} bits")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)

    def read(start: int, stop: int) -> np.ndarray:
        groups = source.read_values(parts[3], 0, n_in)
        if groups.min(initial=0) < 0 or groups.max(initial=0) >= n_group:
            raise CheckpointError(f"{infos[3].where}: {parts[3]} names a group that is not there")
        columns = _columns(source, parts[0], start, stop).view(np.uint32)
        weights = (columns[:, None, :] >> shifts[None, :, None] & mask).reshape(n_in, stop - start).astype(np.int16)
        first = start // packed
        of_zeros = _columns(source, parts[1], first, -(-stop // packed)).view(np.uint32)
        zeros = (of_zeros[:, :, None] >> shifts & mask).reshape(n_group, -1).astype(np.int16) + np.int16(has_offset)
        zeros = zeros[:, start - first * packed : stop - first * packed]
        scales = widen(_columns(source, parts[2], start, stop))
        return np.ascontiguousarray((scales[groups] * (weights - zeros[groups]).astype(np.float32)).T)

    return Quantized(TensorInfo(f"{name}.weight", "F32", (n_out, n_in), infos[0].where), parts, read)


def packed_weights(source: ValueSource, bits: Any, group: Any) -> dict[str, Quantized]:
    """Return the weights of compressed-tensors' pack-quantized format. Raises CheckpointError for what does not fit."""
    if bits not in (2, 4, 8) or not isinstance(group, int) or group < 1:
        raise CheckpointError(f"compressed-tensors with {bits!r} bits in groups of {group!r} is not supported")
    names = [name.removesuffix("_packed") for name in source.tensors if name.endswith(".weight_packed")]
    return {name: _packed(source, name, bits, group) for name in names}


def _packed(source: ValueSource, name: str, bits: int, group: int) -> Quantized:
    """Return one weight of the pack-quantized format.

    packed     [n_out, n_in / n] int32   n = 32 / bits inputs, the first in the lowest bits
    scale      [n_out, n_in / group]
    zero_point [n_out / n, n_in / group] int32   the zeros of n outputs; none for symmetric weights
    """
    parts = tuple(name + part for part in ("_packed", "_scale", "_shape"))
    infos = _parts(source, parts)
    shape = tuple(int(n) for n in source.read_values(parts[2], 0, prod(infos[2].shape)))
    zero_point = f"{name}_zero_point" if f"{name}_zero_point" in source.tensors else None
    packed, mask = 32 // bits, np.uint32(2**bits - 1)
    fits = len(shape) == 2 and infos[0].dtype == "I32" and infos[0].shape == (shape[0], -(-shape[1] // packed))
    fits = fits and shape[1] % group == 0 and infos[1].shape == (shape[0], shape[1] // group)
    if zero_point and fits:
        fits = source.tensors[zero_point].shape == (-(-shape[0] // packed), shape[1] // group)
        fits = fits and source.tensors[zero_point].dtype == "I32"
    if not fits:
        raise CheckpointError(f"{infos[0].where}: the parts of {name} do not fit {bits} bits in groups of {group}")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)

    def read(start: int, stop: int) -> np.ndarray:
        n_rows = stop - start
        words = source.read_rows(parts[0], start, stop).view(np.uint32)
        values = (words[:, :, None] >> shifts & mask).reshape(n_rows, -1)[:, : shape[1]].astype(np.int32)
        grouped = values.reshape(n_rows, -1, group)
        if zero_point is None:
            offset = np.int32(1 << (bits - 1))
        else:
            first = start // packed
            zeros = source.read_rows(zero_point, first, -(-stop // packed)).view(np.uint32)
            unpacked = (zeros[:, None, :] >> shifts[None, :, None] & mask).reshape(-1, zeros.shape[1])
            offset = unpacked[start - first * packed :][:n_rows].astype(np.int32)[:, :, None]
        scales = widen(source.read_rows(parts[1], start, stop))
        return ((grouped - offset).astype(np.float32) * scales[:, :, None]).reshape(n_rows, shape[1])

    made_of = (*parts, zero_point) if zero_point else parts
    return Quantized(TensorInfo(name, "F32", shape, infos[0].where), made_of, read)


def _parts(source: ValueSource, names: tuple[str, ...]) -> list[TensorInfo]:
    for name in names:
        if name not in source.tensors:
            raise CheckpointError(f"tensor {name} is missing, beside {names[0]}; is the checkpoint whole?")
    infos = [source.tensors[name] for name in names]
    if len(infos[0].shape) != 2:
        raise CheckpointError(f"{infos[0].name} ({infos[0].where}) has the shape {list(infos[0].shape)}; not a matrix")
    return infos


def _columns(source: ValueSource, name: str, start: int, stop: int) -> np.ndarray:
    """Return columns [start, stop) of all rows of a matrix."""
    info = source.tensors[name]
    rows = [source.read_values(name, at + start, at + stop) for at in range(0, prod(info.shape), info.row_length)]
    return np.stack(rows)
