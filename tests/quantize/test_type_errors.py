"""Errors of types are those of llama.cpp's rounding of some rows, however the columns count."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.quantize.encode import Encoder
from moe_gguf.quantize.ggml import dequantize, quantize_chunk
from moe_gguf.quantize.type_errors import type_errors
from moe_gguf.writer.gguf_source import plan_from_gguf
from moe_gguf.writer.plan import read_planned

from .tiny_files import write_tiny

TYPES = (Type.Q2_K, Type.IQ4_XS, Type.Q4_K, Type.Q8_0)


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_those_of_rounding_some_rows(weighted: bool, tmp_path: Path) -> None:
    plan = plan_from_gguf(read_gguf(write_tiny(tmp_path / "tiny.gguf", qtype="BF16")))
    tensor = next(tensor for tensor in plan.tensors if tensor.name == "blk.1.ffn_down_exps.weight")
    importance = np.random.default_rng(1).uniform(0.1, 9, (4, 256)).astype(np.float32)
    found = type_errors(plan.source, tensor, TYPES, Encoder(lambda _: importance if weighted else None))
    assert list(found) == [qtype.name for qtype in TYPES]
    assert found["Q2_K"] > found["IQ4_XS"] > found["Q8_0"] and found["Q2_K"] > found["Q4_K"] > found["Q8_0"]
    bits = read_planned(plan.source, tensor, 0, tensor.n_rows).astype(np.uint32) << 16
    rows = bits.view(np.float32).reshape(4, -1, 256)
    for qtype in TYPES:
        ratios = []
        for expert in (0, 2):
            exact = rows[expert]
            weights = importance[expert] if weighted else None
            some = np.ascontiguousarray(exact[:: len(exact) // 32])
            wrong = dequantize(qtype, quantize_chunk(qtype, some, weights)) - some
            error = (np.square(wrong, dtype=np.float64) * (1 if weights is None else weights)).sum()
            ratios.append(error / (np.square(some, dtype=np.float64) * (1 if weights is None else weights)).sum())
        assert found[qtype.name] == pytest.approx(np.mean(ratios), rel=1e-5)


def test_types_that_do_not_fit_and_tensors_of_zeros(tmp_path: Path) -> None:
    plan = plan_from_gguf(read_gguf(write_tiny(tmp_path / "tiny.gguf")))
    tensor = next(tensor for tensor in plan.tensors if tensor.name == "blk.0.attn_q.weight")

    class Zeros:
        tensors = plan.source.tensors

        def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return np.zeros((stop - start, self.tensors[name].row_length), np.float32)

        def identity(self) -> dict[str, str]:
            return {}

    assert type_errors(Zeros(), tensor, TYPES, Encoder()) == dict.fromkeys((t.name for t in TYPES), 0.0)
