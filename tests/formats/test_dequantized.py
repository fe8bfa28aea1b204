"""Quantized checkpoints, equal to llama.cpp's converter to the bit, whichever rows are asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.checkpoint import open_checkpoint
from moe_gguf.formats.safetensors import SafetensorsFile

from ..checkpoints import Stored, write_safetensors

GOLDEN = SafetensorsFile(Path(__file__).parent / "golden" / "quantized.safetensors")
CONFIGS = json.loads(GOLDEN.metadata["configs"])


def golden(case: str, part: str) -> dict[str, Stored]:
    prefix = f"{case}/{part}/"
    return {
        name.removeprefix(prefix): (info.dtype, info.shape, GOLDEN.read_rows(name, 0, info.n_rows).tobytes())
        for name, info in GOLDEN.tensors.items()
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("case", CONFIGS)
def test_rows_are_those_of_llamacpps_converter(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": CONFIGS[case]}))
    write_safetensors(tmp_path / "model.safetensors", golden(case, "in"))
    source = open_checkpoint(tmp_path).source
    expected = golden(case, "out")
    assert set(source.tensors) == set(expected)
    for name, (dtype, shape, data) in expected.items():
        info = source.tensors[name]
        assert (info.dtype, info.shape) == (dtype, shape) == ("F32", shape)
        rows = np.frombuffer(data, np.uint32).reshape(info.n_rows, -1)
        for start in range(info.n_rows):
            for stop in {start + 1, min(start + 3, info.n_rows), info.n_rows}:
                read = source.read_rows(name, start, stop).view(np.uint32)
                same = (read == rows[start:stop]) | (np.isnan(read.view("f4")) & np.isnan(rows[start:stop].view("f4")))
                assert same.all()
