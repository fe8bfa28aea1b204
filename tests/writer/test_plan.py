"""Plans: rows of pieces, permuted or not, as one reads the whole; slabs that never cross tensors or experts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.gguf_fields import field_of
from moe_gguf.writer.plan import Piece, Plan, PlannedTensor, RopePermutation, cut_slabs, read_planned
from moe_gguf.writer.write import locate

from ..arrays import ArraySource, plan_of, random_arrays


def permuted_by_llama_cpp(weights: np.ndarray, n_head: int) -> np.ndarray:
    """Permute as LlamaModel.permute of llama.cpp's conversion/llama.py does."""
    split = weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


@given(n_head=st.integers(1, 5), half=st.integers(1, 6), data=st.data())
def test_rows_are_permuted_as_by_llama_cpp(n_head: int, half: int, data: st.DataObject) -> None:
    n_rows = n_head * half * 2
    weights = np.arange(n_rows * 3, dtype=np.float32).reshape(n_rows, 3)
    start = data.draw(st.integers(0, n_rows - 1))
    stop = data.draw(st.integers(start + 1, n_rows))
    tensor = PlannedTensor("q", (3, n_rows), "F32", (Piece("q", 0, n_rows),), RopePermutation(n_head))
    rows = read_planned(ArraySource({"q": weights}), tensor, start, stop)
    assert (rows == permuted_by_llama_cpp(weights, n_head)[start:stop]).all()
    for row in range(start, stop):
        name, source_row = locate(tensor, row)
        assert name == "q" and (weights[source_row] == rows[row - start]).all()


@given(n_head=st.integers(1, 5), half=st.integers(1, 6))
def test_a_bias_is_permuted_within_its_row(n_head: int, half: int) -> None:
    n = n_head * half * 2
    bias = np.arange(n, dtype=np.float32)
    tensor = PlannedTensor("b", (n,), "F32", (Piece("b", 0, 1),), RopePermutation(n_head))
    rows = read_planned(ArraySource({"b": bias}), tensor, 0, 1)
    assert (rows[0] == permuted_by_llama_cpp(bias, n_head)).all()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_are_read_as_if_they_were_one(data: st.DataObject) -> None:
    arrays, pieces, whole = {}, [], []
    for i in range(data.draw(st.integers(1, 4))):
        n_rows = data.draw(st.integers(1, 9))
        arrays[f"t{i}"] = np.arange(n_rows * 4, dtype=np.float32).reshape(n_rows, 4) + 1000 * i
        start = data.draw(st.integers(0, n_rows - 1))
        stop = data.draw(st.integers(start + 1, n_rows))
        pieces.append(Piece(f"t{i}", start, stop))
        whole.append(arrays[f"t{i}"][start:stop])
    expected, source = np.concatenate(whole), ArraySource(arrays)
    tensor = PlannedTensor("x", (4, len(expected)), "F32", tuple(pieces))
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    assert (read_planned(source, tensor, start, stop) == expected[start:stop]).all()
    assert sum(last - first for _, first, last in source.reads) == stop - start
    for row in range(start, stop):
        name, source_row = locate(tensor, row)
        assert (arrays[name][source_row] == expected[row]).all()


def test_computed_values_are_served_like_rows() -> None:
    values = np.arange(8, dtype=np.float32)
    tensor = PlannedTensor("rope_freqs.weight", (8,), "F32", (), values=values)
    assert (read_planned(ArraySource({}), tensor, 0, 1) == values).all()
    assert locate(tensor, 0) == ("rope_freqs.weight", 0)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 50)),
    st.tuples(st.integers(1, 30), st.integers(1, 50)),
    st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(1, 50)),
)


@given(shapes=st.lists(SHAPES, min_size=1, max_size=5), weights=st.integers(1, 400))
def test_slabs_cover_every_row_once_in_order(shapes: list[tuple[int, ...]], weights: int) -> None:
    plan = plan_of(random_arrays({f"t{i}": shape for i, shape in enumerate(shapes)}))
    rows = [(slab.index, row) for slab in cut_slabs(plan, weights) for row in range(slab.start, slab.stop)]
    assert rows == [(index, row) for index, tensor in enumerate(plan.tensors) for row in range(tensor.n_rows)]
    for slab in cut_slabs(plan, weights):
        tensor = plan.tensors[slab.index]
        assert (slab.stop - slab.start) * tensor.row_length <= max(weights, tensor.row_length)
        if tensor.n_expert:
            block = tensor.n_rows // tensor.n_expert
            assert slab.start // block == (slab.stop - 1) // block


@pytest.mark.parametrize("key", ["a", "new"])
def test_fields_are_replaced_in_place(key: str) -> None:
    plan = Plan("llama", {"a": field_of(1), "b": field_of(2)}, (), ArraySource({}))
    changed = plan.with_fields({key: field_of(3)})
    assert list(changed.fields) == (["a", "b"] if key == "a" else ["a", "b", "new"])
    assert changed.fields[key].value == 3 and plan.fields["a"].value == 1
