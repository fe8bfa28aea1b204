"""GGUF files as sources: their rows, and the plan that writes them again with experts stacked."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from moe_gguf.formats.errors import MoeGgufError
from moe_gguf.formats.gguf_fields import Field, field_of
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.writer.gguf_source import GgufSource, plan_from_gguf
from moe_gguf.writer.write import write

from ..arrays import FIELDS, output_of, random_arrays, write_with_gguf
from ..refusal import refusal

T = GGMLQuantizationType
SHAPES = {"token_embd.weight": (4, 32), "blk.0.ffn_norm.weight": (9,)}
EXPERTS = {f"blk.0.ffn_{matrix}.{expert}.weight": (3, 32) for matrix in ("gate", "up") for expert in range(3)}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    fields = {**FIELDS, "llama.expert_count": field_of(3)}
    return write_with_gguf(tmp_path / "small.gguf", random_arrays(SHAPES | EXPERTS), fields)[0]


def plan(path: Path) -> None:
    plan_from_gguf(read_gguf(path))


def test_quantized_rows_are_their_bytes(tmp_path: Path) -> None:
    data = gguf.quantize(random_arrays({"x": (6, 64)})["x"], T.Q8_0)
    [path] = write_with_gguf(tmp_path / "x.gguf", {"x": data}, raw={"x": T.Q8_0})
    source = GgufSource(read_gguf(path))
    assert source.tensors["x"].shape == (6, 64) and source.tensors["x"].dtype == "Q8_0"
    assert (source.read_rows("x", 2, 5) == data[2:5]).all()
    assert source.read_rows("x", 2, 2).shape == (0, 68)


def test_separate_experts_are_stacked_in_order(small: Path, tmp_path: Path) -> None:
    planned = plan_from_gguf(read_gguf(small))
    assert [tensor.name for tensor in planned.tensors[-2:]] == [
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_up_exps.weight",
    ]
    assert planned.warnings
    arrays = random_arrays(SHAPES | EXPERTS)
    [written] = write(planned, [output_of(planned, tmp_path / "stacked.gguf")])
    source = GgufSource(read_gguf(written.paths[0]))
    stacked = source.read_rows("blk.0.ffn_up_exps.weight", 0, 9).reshape(3, 3, 32)
    for expert in range(3):
        assert (stacked[expert] == arrays[f"blk.0.ffn_up.{expert}.weight"]).all()


SEPARATE = {"blk.0.ffn_up.0.weight": (3, 32), "blk.0.ffn_up.1.weight": (3, 32)}
BROKEN_EXPERTS: dict[str, tuple[dict[str, tuple[int, ...]], Field | None, str]] = {
    "one is missing": (SEPARATE, field_of(3), "only the experts 0, 1 of 3"),
    "2**32 - 1 are promised": (SEPARATE, field_of(2**32 - 1), "of 4294967295"),
    "a count in words": (SEPARATE, field_of("many"), "of 'many'"),
    "another number": ({"blk.0.ffn_up.0.weight": (3, 32), "blk.0.ffn_up.2.weight": (3, 32)}, None, "experts 0, 2 of 2"),
    "vectors": (dict.fromkeys(SEPARATE, (32,)), None, "not matrices"),
    "other shapes": ({**SEPARATE, "blk.0.ffn_up.1.weight": (4, 32)}, None, "different shapes"),
    "stacked as well": ({**SEPARATE, "blk.0.ffn_up_exps.weight": (2, 3, 32)}, None, "one by one and stacked"),
}


@pytest.mark.parametrize("name", BROKEN_EXPERTS)
def test_broken_experts_are_refused(name: str, tmp_path: Path) -> None:
    shapes, count, words = BROKEN_EXPERTS[name]
    fields = {**FIELDS, **({"llama.expert_count": count} if count else {})}
    [path] = write_with_gguf(tmp_path / "x.gguf", random_arrays(shapes), fields)
    assert words in refusal(path, plan)


def test_names_that_only_look_like_experts_stay(tmp_path: Path) -> None:
    names = ["blk.0.ffn_up.00.weight", "blk.01.ffn_up.0.weight", f"blk.{'9' * 90}.ffn_up.0.weight"]
    [path] = write_with_gguf(tmp_path / "x.gguf", random_arrays(dict.fromkeys(names, (2, 32))))
    assert [tensor.name for tensor in plan_from_gguf(read_gguf(path)).tensors] == names


def test_experts_of_several_float_types_are_stacked_and_of_others_refused(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"blk.0.ffn_up.0.weight": random_arrays({"x": (3, 32)})["x"]}
    arrays["blk.0.ffn_up.1.weight"] = arrays["blk.0.ffn_up.0.weight"].astype(np.float16)
    [path] = write_with_gguf(tmp_path / "x.gguf", arrays)
    planned = plan_from_gguf(read_gguf(path))
    assert planned.tensors[0].source_type == "mixed"
    [written] = write(planned, [output_of(planned, tmp_path / "stacked.gguf", T.F16)])
    rows = GgufSource(read_gguf(written.paths[0])).read_rows("blk.0.ffn_up_exps.weight", 0, 6)
    assert (rows[:3] == rows[3:]).all()
    quantized = gguf.quantize(arrays["blk.0.ffn_up.0.weight"], T.Q8_0)
    [path] = write_with_gguf(
        tmp_path / "y.gguf", arrays | {"blk.0.ffn_up.1.weight": quantized}, raw={"blk.0.ffn_up.1.weight": T.Q8_0}
    )
    assert "different types (F32, Q8_0)" in refusal(path, plan)


def test_a_source_that_became_shorter_says_so(small: Path) -> None:
    file = read_gguf(small)
    source = GgufSource(file)
    with small.open("r+b") as handle:
        handle.truncate(file.header_bytes + 16)
    with pytest.raises(MoeGgufError, match="is it whole"):
        source.read_rows("token_embd.weight", 0, 4)
