"""Finished files are read back by two readers; whatever differs from the plan is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType
from moe_gguf.formats.errors import OutputError
from moe_gguf.writer.partial import split_output
from moe_gguf.writer.readback import check_structure, check_with_gguf_reader, count_weights
from moe_gguf.writer.write import write

from ..arrays import output_of, plan_of, random_arrays

T = GGMLQuantizationType
CHECKS = (check_structure, check_with_gguf_reader)


@pytest.fixture(params=[10**9, 700])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, ...]:
    plan = plan_of(random_arrays({f"t{i}": (4, 32) for i in range(4)}))
    return write(plan, [split_output(output_of(plan, tmp_path / "x.gguf"), request.param)])[0].paths


@pytest.mark.parametrize("check", CHECKS)
def test_what_differs_is_named(check: Callable[..., None], written: tuple[Path, ...]) -> None:
    plan = plan_of(random_arrays({f"t{i}": (4, 32) for i in range(4)}))
    entries = output_of(plan, written[0]).entries
    check(written, entries)
    assert count_weights(entries) == 512
    for other in (replace(entries[2], qtype=T.F16), replace(entries[2], shape=(64, 2)), replace(entries[2], name="x")):
        with pytest.raises(OutputError, match=f"tensor {other.name} was read back differently"):
            check(written, [*entries[:2], other, entries[3]])
    with pytest.raises(OutputError, match="unexpected tensors were read back: t3"):
        check(written, entries[:3])


@pytest.mark.parametrize("check", CHECKS)
def test_a_file_that_cannot_be_read_is_named(check: Callable[..., None], written: tuple[Path, ...]) -> None:
    written[-1].write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(OutputError, match="cannot be read back") as caught:
        check(written, ())
    assert str(written[-1]) in str(caught.value) and "\n" not in str(caught.value)
