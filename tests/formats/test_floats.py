"""Float types: rounding as ggml's own encoders and the gguf package round, for every kind of number."""

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from moe_gguf.formats.floats import encode_float, first_nonfinite, to_bf16, widen
from moe_gguf.quantize.ggml import dequantize, quantize_chunk

T = GGMLQuantizationType
CORNERS = [
    0x00000000,  # zeros
    0x80000000,
    0x00000001,  # the least denormals
    0x80000001,
    0x007FFFFF,  # the largest denormal, the least normal number
    0x00800000,
    0x3F808000,  # ties of BF16: to even, down and up
    0x3F818000,
    0x3F807FFF,
    0x3F808001,
    0x7F7F7FFF,  # the largest that BF16 keeps finite, and the largest
    0x7F7F8000,
    0x7F7FFFFF,
    0x7F800000,  # infinities
    0xFF800000,
    0x7F800001,  # NaNs whose payload BF16 would lose
    0xFF800001,
    0x7FC00000,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x33000000,  # ties of F16's denormals
    0x33000001,
    0x33800000,
    0x387FE000,
    0x477FE000,  # F16: 65504, the largest that rounds to it, and the least beyond
    0x477FEFFF,
    0x477FF000,
]


def patterns() -> np.ndarray:
    """Return float32 [n, 64] of random bits, of the corners, and of random numbers near F16's range."""
    numbers = np.random.default_rng(5)
    bits = numbers.integers(0, 2**32, 2**16, np.uint32)
    bits[: len(CORNERS)] = CORNERS
    near = numbers.standard_normal(2**15) * 2.0 ** numbers.uniform(-26, 17, 2**15)
    return np.concatenate([bits.view(np.float32), near.astype(np.float32)]).reshape(-1, 64)


def test_bf16_is_that_of_ggml_and_of_the_gguf_package() -> None:
    rows = patterns()
    ours = to_bf16(rows)
    assert (ours == quantize_chunk(T.BF16, rows).view(np.uint16)).all()
    assert (ours == gguf.quantize(rows, T.BF16).view(np.uint16)).all()
    assert (encode_float(rows, T.BF16) == ours.view(np.uint8)).all()


def test_f16_is_that_of_ggml() -> None:
    rows = patterns()
    ours, theirs = encode_float(rows, T.F16).view(np.float16), quantize_chunk(T.F16, rows).view(np.float16)
    # Which bits a NaN keeps depends on the processor.
    numbers = ~np.isnan(rows)
    assert (ours.view(np.uint16)[numbers] == theirs.view(np.uint16)[numbers]).all()
    assert np.isnan(ours[~numbers]).all() and np.isnan(theirs[~numbers]).all()
    with np.errstate(over="ignore"):
        package = gguf.quantize(rows, T.F16)
    assert (ours.view(np.uint16)[numbers] == package.view(np.uint16)[numbers]).all()


def test_numbers_beyond_f16_become_infinite_and_are_found() -> None:
    rows = np.array([[1, 65504, 65519.996, 65520], [-1e30, 0, 0, 0]], np.float32)
    encoded = encode_float(rows, T.F16).view(np.float16)
    assert encoded.tolist() == [[1, 65504, 65504, np.inf], [-np.inf, 0, 0, 0]]
    assert first_nonfinite(encoded) == (0, 3)


def test_f32_is_copied_and_other_types_are_refused() -> None:
    rows = patterns()
    assert encode_float(rows, T.F32).tobytes() == rows.tobytes()
    with pytest.raises(ValueError, match="Q8_0 is not a float type"):
        encode_float(rows, T.Q8_0)


@pytest.mark.parametrize("qtype", [T.F16, T.BF16])
def test_every_16_bit_pattern_widens_exactly_and_comes_back(qtype: T) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(-1, 64)
    rows = bits.view(np.float16) if qtype is T.F16 else bits
    wide = widen(rows)
    numbers = ~np.isnan(wide)
    assert wide.dtype == np.float32
    assert (wide.view(np.uint32) == dequantize(qtype, bits.view(np.uint8)).view(np.uint32))[numbers].all()
    assert (encode_float(wide, qtype).view(np.uint16) == bits)[numbers].all()
    assert np.isnan(widen(encode_float(wide, qtype).view(rows.dtype))[~numbers]).all()
    assert (encode_float(rows, qtype) == bits.view(np.uint8)).all()


def test_rows_that_do_not_lie_together_are_encoded_in_order() -> None:
    rows = patterns()[::3, ::2]
    for qtype in (T.F32, T.F16, T.BF16):
        assert (encode_float(rows, qtype) == encode_float(np.ascontiguousarray(rows), qtype)).all()


@settings(max_examples=200)
@given(
    bits=hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)),
    dtype=st.sampled_from(["float32", "float16", "uint16", "float64"]),
    bad=st.lists(st.tuples(st.integers(0, 80), st.sampled_from([np.nan, np.inf, -np.inf])), max_size=3),
)
def test_the_first_nonfinite_is_found_where_numpy_finds_it(
    bits: np.ndarray, dtype: str, bad: list[tuple[int, float]]
) -> None:
    wide = bits.view(np.float32).copy()
    for at, value in bad:
        wide.flat[at % wide.size] = value
    with np.errstate(over="ignore", invalid="ignore"):
        rows = to_bf16(wide) if dtype == "uint16" else wide.astype(dtype)
        found = np.argwhere(~np.isfinite(rows if dtype == "float64" else widen(rows)))
    assert first_nonfinite(rows) == (tuple(found[0].tolist()) if len(found) else None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, np.float64])
def test_no_rows_are_finite(dtype: type) -> None:
    assert first_nonfinite(np.empty((0, 8), dtype)) is None
