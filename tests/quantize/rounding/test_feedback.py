"""Error feedback against its definition, solved anew by numpy for each column, and against errors of outputs."""

import gguf
import numpy as np
import pytest
from moe_gguf.formats.moments import Moment
from moe_gguf.quantize.ggml import dequantize, quantize_chunk
from moe_gguf.quantize.rounding import TYPES, round_rows
from moe_gguf.quantize.rounding.cholesky import factorize
from moe_gguf.quantize.rounding.factor import column_order, factor_of
from moe_gguf.quantize.rounding.held_out import output_errors

N = 512


def inputs_of(n: int, n_tokens: int, seed: int = 1) -> np.ndarray:
    """Return inputs whose columns are correlated, some much larger than others."""
    numbers = np.random.default_rng(7)
    mixing = numbers.normal(size=(n // 2, n)) * np.exp(numbers.normal(size=n))
    numbers = np.random.default_rng(seed)
    return (numbers.normal(size=(n_tokens, n // 2)) @ mixing + numbers.normal(size=(n_tokens, n))).astype(np.float32)


def moment_of(inputs: np.ndarray, width: int | None = None) -> Moment:
    n = inputs.shape[1]
    h = inputs.T @ inputs
    blocks = tuple(np.ascontiguousarray(h[i : i + (width or n), i : i + (width or n)]) for i in range(0, n, width or n))
    return Moment(blocks, len(inputs), float(len(inputs)), np.zeros((0, n), np.float32))


def weights_of(n_rows: int, n: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n_rows, n)).astype(np.float32) / 20


@pytest.mark.parametrize("qtype", TYPES, ids=lambda qtype: qtype.name)
def test_errors_of_outputs_on_other_inputs_fall(qtype: gguf.GGMLQuantizationType) -> None:
    moment, rows = moment_of(inputs_of(N, 3000)), weights_of(40, N)
    others = inputs_of(N, 300, seed=2)
    factor = factor_of(moment, gguf.GGML_QUANT_SIZES[qtype][0])
    encoded, doubtful = round_rows(qtype, rows, factor)
    assert not doubtful.any()
    plain = quantize_chunk(qtype, rows, moment.diagonal)
    before, after = (output_errors(rows, dequantize(qtype, one), others) for one in (plain, encoded))
    exact = ((dequantize(qtype, encoded) - rows) @ others.T) ** 2
    np.testing.assert_allclose(after, exact.sum(axis=1), rtol=1e-3)
    assert after.sum() < 0.6 * before.sum()


@pytest.mark.parametrize("width", [None, 256])
def test_each_level_is_the_nearest_once_errors_before_it_are_made_up_for(width: int | None) -> None:
    qtype, n, block = gguf.GGMLQuantizationType.Q8_0, 256 if width is None else 512, 32
    moment, rows = moment_of(inputs_of(n, 2000), width), weights_of(3, n)
    factor = factor_of(moment, block, damping=0.01, shrinkage=1e9)
    encoded, _ = round_rows(qtype, rows, factor, sweeps=0)
    decoded = dequantize(qtype, encoded)
    steps = encoded.reshape(3, -1, 34)[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float64)
    start = 0
    for h in moment.blocks:
        damped = h.astype(np.float64) + 0.01 * h.diagonal().mean() * np.eye(len(h))
        order, blocks = column_order(h.diagonal().astype(np.float64), block)
        columns = order + np.repeat(blocks, block) * block
        for position in range(0, len(h), 37):
            before, column, after = columns[:position], columns[position], columns[position:]
            error = rows[:, start + before].astype(np.float64) - decoded[:, start + before]
            # The changes of all later columns that make up best for the errors: what GPTQ's inverse gives.
            best = -np.linalg.solve(damped[np.ix_(after, after)], damped[np.ix_(after, before)] @ error.T)
            target = rows[:, start + column] - best[0]
            step = steps[:, (start + column) // block]
            missed = np.abs(decoded[:, start + column] - target) / np.abs(step)
            clamped = np.abs(decoded[:, start + column]) >= 126.5 * np.abs(step)
            assert (clamped | (missed < 0.5 + 1e-2)).all()
        start += len(h)


def test_sweeps_lessen_the_error_that_they_see() -> None:
    qtype = gguf.GGMLQuantizationType.Q4_0
    moment, rows = moment_of(inputs_of(N, 3000)), weights_of(40, N)
    factor = factor_of(moment, 32, shrinkage=1e9)
    damped = moment.blocks[0] + 0.01 * moment.diagonal.mean() * np.eye(N)
    errors = []
    for sweeps in (0, 1, 3):
        difference = dequantize(qtype, round_rows(qtype, rows, factor, sweeps)[0]) - rows
        errors.append(np.einsum("ij,jk,ik->i", difference, damped, difference))
    assert (errors[1] < errors[0]).all() and (errors[2] <= errors[1] * (1 + 1e-4)).all()
    assert errors[2].sum() < 0.97 * errors[0].sum()


def test_a_row_is_rounded_alike_whatever_is_beside_it() -> None:
    qtype = gguf.GGMLQuantizationType.Q4_K
    moment, rows = moment_of(inputs_of(N, 2000)), weights_of(45, N)
    factor = factor_of(moment, 256)
    whole, _ = round_rows(qtype, rows, factor)
    for start, stop in ((0, 1), (7, 41), (44, 45)):
        np.testing.assert_array_equal(round_rows(qtype, rows[start:stop], factor)[0], whole[start:stop])


def test_stored_16_bit_rows_are_rounded_as_their_float32_values() -> None:
    qtype = gguf.GGMLQuantizationType.Q6_K
    factor = factor_of(moment_of(inputs_of(N, 2000)), 256)
    halves = weights_of(5, N).astype(np.float16)
    bfloat16 = (weights_of(5, N).view(np.uint32) >> 16).astype(np.uint16)
    wide = (bfloat16.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(
        round_rows(qtype, halves, factor)[0], round_rows(qtype, halves.astype(np.float32), factor)[0]
    )
    np.testing.assert_array_equal(round_rows(qtype, bfloat16, factor)[0], round_rows(qtype, wide, factor)[0])


def test_correlations_count_less_the_fewer_tokens_they_come_from() -> None:
    inputs = inputs_of(N, 2000)
    moment = moment_of(inputs)
    sizes = []
    for n_tokens in (1, 50, 2000):
        few = Moment(moment.blocks, n_tokens, float(n_tokens), moment.sample)
        sizes.append(float(np.abs(factor_of(few, 32).segments[0].coefficients).sum()))
    assert sizes[0] < sizes[1] < sizes[2]
    diagonal = Moment((np.diag(moment.diagonal),), 2000, 2000.0, moment.sample)
    assert not factor_of(diagonal, 32).segments[0].coefficients.any()


def test_a_matrix_that_is_not_positive_is_pulled_towards_its_diagonal() -> None:
    h = np.full((64, 64), 1.0, np.float32)
    h[0, 1:] = h[1:, 0] = -1.5
    factor = factor_of(Moment((h,), 10**9, 1.0, np.zeros((0, 64), np.float32)), 32)
    assert np.isfinite(factor.segments[0].coefficients).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e36])
def test_rows_that_the_search_cannot_take_are_told(value: float) -> None:
    rows = weights_of(40, N)
    rows[3, 5] = value
    _, doubtful = round_rows(gguf.GGMLQuantizationType.Q4_K, rows, factor_of(moment_of(inputs_of(N, 2000)), 256))
    assert np.flatnonzero(doubtful).tolist() == [3]


@pytest.mark.parametrize("n", [1, 31, 64, 200])
def test_the_factor_is_numpys(n: int) -> None:
    h = moment_of(inputs_of(200, 900)).blocks[0][:n, :n].astype(np.float64)
    h = h / np.sqrt(np.outer(h.diagonal(), h.diagonal())) + 0.01 * np.eye(n)
    lower = factorize(h.copy())
    assert lower is not None
    np.testing.assert_allclose(np.tril(lower), np.linalg.cholesky(h), rtol=1e-9, atol=1e-12)
    h[n // 2, n // 2] = -1.0
    assert factorize(h) is None
