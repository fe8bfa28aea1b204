"""One pass over a plan writes every output: the same bytes for any number of threads, each row read once, and what is
not finite found where it lies in the source.
"""

import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from gguf.constants import GGMLQuantizationType
from moe_gguf.convert.build_plan import build_plan
from moe_gguf.formats.checkpoint import open_checkpoint
from moe_gguf.formats.errors import CheckpointError, MoeGgufError, OutputError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.positional import PositionalFile
from moe_gguf.quantize.encode import Encoder
from moe_gguf.writer import write as writing
from moe_gguf.writer.gguf_source import GgufSource, plan_from_gguf
from moe_gguf.writer.plan import Piece, Plan, PlannedTensor
from moe_gguf.writer.write import write

from .. import checkpoints
from ..arrays import ArraySource, output_of, plan_of, random_arrays
from ..checkpoints import Stored, Tiny, write_checkpoint, write_safetensors

T = GGMLQuantizationType
SHAPES = {"a": (40, 64), "norm": (64,), "experts": (3, 20, 32), "b": (9, 96)}
TYPES = (T.F32, T.F16, T.BF16, T.Q8_0)


@pytest.fixture
def many_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SLAB_WEIGHTS", 400)


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("n_threads", [1, 2, 9])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"])
def test_all_outputs_are_those_of_the_gguf_package(dtype: str, n_threads: int, tmp_path: Path) -> None:
    arrays = random_arrays(SHAPES, dtype)
    plan = plan_of(arrays)
    source = plan.source
    assert isinstance(source, ArraySource)
    told: list[int] = []
    outputs = [output_of(plan, tmp_path / f"{qtype.name}.gguf", qtype) for qtype in TYPES]
    written = write(plan, outputs, Encoder(), n_threads=n_threads, advance=told.append)
    rows = [(name, row) for name, start, stop in source.reads for row in range(start, stop)]
    assert len(rows) == len(set(rows)) == sum(tensor.n_rows for tensor in plan.tensors)
    assert sum(told) == sum(tensor.n_weights for tensor in plan.tensors)
    for output, qtype in zip(written, TYPES, strict=True):
        for tensor in gguf.GGUFReader(output.paths[0]).tensors:
            array = arrays[tensor.name]
            wide = (array.astype(np.uint32) << 16).view(np.float32) if dtype == "uint16" else array.astype(np.float32)
            assert tensor.tensor_type == qtype
            assert tensor.data.tobytes() == gguf.quantize(wide, qtype).tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{qtype.name}.gguf" for qtype in TYPES)


BAD = {"F32": np.float32(np.inf), "F16": np.float16(-np.inf), "BF16": np.uint16(0x7FC1)}


def poisoned(tensors: dict[str, Stored], name: str, at: list[int]) -> dict[str, Stored]:
    dtype, shape, data = tensors[name]
    array = np.frombuffer(data, BAD[dtype].dtype).reshape(shape).copy()
    array[tuple(at)] = BAD[dtype]
    return {**tensors, name: (dtype, shape, array.tobytes())}


def expert_of(name: str, at: list[int]) -> str:
    """Return what a refusal must say of the expert of a source tensor."""
    named = re.search(r"experts\.(\d+)\.", name)
    return f"expert {named[1]}, " if named else f"expert {at[0]}, " if len(at) == 3 else ""


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("layout", ["classic", "fused", "dense"])
def test_what_is_not_finite_is_found_in_any_tensor_of_any_layout(layout: str, dtype: str, tmp_path: Path) -> None:
    tiny = Tiny(1, 16, 24, n_head=2, n_head_kv=1, n_vocab=320, n_expert=3, layout=layout, dtype=dtype)
    folder = write_checkpoint(tmp_path / "Model", tiny)
    tensors = checkpoints.tensors(tiny)
    dice = np.random.default_rng(len(layout))
    for name, (_, shape, _) in tensors.items():
        at = [int(dice.integers(0, n)) for n in shape]
        write_safetensors(folder / "model.safetensors", poisoned(tensors, name, at))
        plan = build_plan(open_checkpoint(folder))
        with pytest.raises(CheckpointError) as caught:
            write(plan, [output_of(plan, tmp_path / "x.gguf", T.F32)])
        place = f"{expert_of(name, at)}row {at[-2] if len(at) > 1 else 0}, column {at[-1]}, "
        where = rf" in {re.escape(name)} \(model\.safetensors at byte \d+\), {place}"
        assert re.search(where, str(caught.value)), str(caught.value)
        assert not [path for path in tmp_path.iterdir() if path != folder]


def test_what_is_not_finite_in_a_gguf_is_found_and_may_be_allowed(tmp_path: Path) -> None:
    arrays = random_arrays(SHAPES)
    arrays["experts"][2, 7, 5] = np.nan
    plan = plan_of(arrays)
    write(plan, [output_of(plan, tmp_path / "in.gguf")], allow_nonfinite=True)
    again = plan_from_gguf(read_gguf(tmp_path / "in.gguf"))
    with pytest.raises(CheckpointError, match=r"expert 2, row 7, column 5, for experts; .*--allow-nonfinite"):
        write(again, [output_of(again, tmp_path / "out.gguf", T.F16)])
    [written] = write(again, [output_of(again, tmp_path / "out.gguf", T.F16)], allow_nonfinite=True)
    assert np.isnan(GgufSource(read_gguf(written.paths[0])).read_rows("experts", 47, 48)[0, 5])


@pytest.mark.parametrize(
    ("number", "dtype", "qtype", "words"),
    [(70000.0, "float32", T.F16, "too large for F16"), (1e300, "float64", T.F32, "too large for F32")],
)
def test_numbers_that_a_type_cannot_hold_are_refused(
    number: float, dtype: str, qtype: T, words: str, tmp_path: Path
) -> None:
    arrays = random_arrays({"a": (8, 32)}, dtype)
    arrays["a"][3, 9] = number
    plan = plan_of(arrays)
    with pytest.raises(CheckpointError, match=f"{words} in a .*row 3, column 9.*--allow-nonfinite"):
        write(plan, [output_of(plan, tmp_path / "x.gguf", qtype)])
    write(plan, [output_of(plan, tmp_path / "x.gguf", qtype)], allow_nonfinite=True)
    if qtype is T.F16:
        write(plan, [output_of(plan, tmp_path / "y.gguf", T.BF16)])


def test_computed_values_are_looked_at_as_well(tmp_path: Path) -> None:
    tensor = PlannedTensor("rope_freqs.weight", (4,), "F32", (), values=np.array([1, 2, np.inf, 4], np.float32))
    plan = Plan("llama", {}, (tensor,), ArraySource({}))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight \(the plan\), row 0, column 2"):
        write(plan, [output_of(plan, tmp_path / "x.gguf")])


def raising(error: BaseException, after: int = 0) -> Callable[..., None]:
    """Return a function that fails when it is called for the n-th time."""
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error

    return fail


@pytest.mark.usefixtures("many_slabs")
@pytest.mark.parametrize("after", [0, 3])
def test_a_progress_that_fails_stops_the_run_and_publishes_nothing(after: int, tmp_path: Path) -> None:
    plan = plan_of(random_arrays(SHAPES))
    broken = raising(BrokenPipeError(errno.EPIPE, "Broken pipe"), after)
    with pytest.raises(OutputError, match="Broken pipe; run the same command again"):
        write(plan, [output_of(plan, tmp_path / "x.gguf")], advance=broken)
    assert not (tmp_path / "x.gguf").exists()
    write(plan, [output_of(plan, tmp_path / "x.gguf")])
    assert (tmp_path / "x.gguf").read_bytes()[-9 * 96 * 4 :] == random_arrays(SHAPES)["b"].tobytes()


@pytest.mark.usefixtures("many_slabs")
def test_a_failing_sync_waits_for_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(random_arrays(SHAPES))
    entered, released = threading.Event(), threading.Event()

    def slow(tensor: PlannedTensor, row: int, rows: np.ndarray, qtype: T) -> np.ndarray:
        if tensor.name != "a" or row:
            entered.set()
            assert released.wait(60)
        return np.zeros((len(rows), rows.shape[1] // 32 * 34), np.uint8)

    def sync(_: PositionalFile) -> None:
        assert entered.wait(60)
        threading.Timer(0.2, released.set).start()
        raise OSError(errno.EIO, "Input/output error", "disk")

    monkeypatch.setattr(writing, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(PositionalFile, "sync", sync)
    before = threading.active_count()
    with pytest.raises(OutputError, match="disk: Input/output error"):
        run = [output_of(plan, tmp_path / "copy.gguf"), output_of(plan, tmp_path / "x.gguf", T.Q8_0)]
        write(plan, run, slow, n_threads=2)
    assert released.is_set()
    assert threading.active_count() <= before + 1


def test_an_unreadable_source_is_named_not_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(random_arrays(SHAPES))
    write(plan, [output_of(plan, tmp_path / "in.gguf")])
    again = plan_from_gguf(read_gguf(tmp_path / "in.gguf"))
    monkeypatch.setattr(PositionalFile, "_read", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OutputError, match=r"in\.gguf: Input/output error"):
        write(again, [output_of(again, tmp_path / "out.gguf")])


def test_a_file_too_large_for_the_file_system_is_to_be_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(random_arrays(SHAPES))
    monkeypatch.setattr(os, "ftruncate", raising(OSError(errno.EFBIG, "File too large")))
    with pytest.raises(OutputError, match=r"x\.gguf: larger than .*--split-max-size"):
        write(plan, [output_of(plan, tmp_path / "x.gguf")])


def test_a_check_that_fails_keeps_the_name_free(tmp_path: Path) -> None:
    plan = plan_of(random_arrays(SHAPES))
    outputs = [output_of(plan, tmp_path / name) for name in ("a.gguf", "b.gguf")]
    with pytest.raises(OutputError, match="bad"):
        write(plan, outputs, check=raising(OutputError("bad"), after=1))
    assert not list(tmp_path.glob("*.gguf"))
    assert len(write(plan, outputs)) == 2


def test_nothing_encodes_what_has_no_encoder(tmp_path: Path) -> None:
    plan = plan_of(random_arrays({"a": (4, 32)}))
    with pytest.raises(MoeGgufError, match="nothing encodes F32 as Q8_0"):
        write(plan, [output_of(plan, tmp_path / "x.gguf", T.Q8_0)])


def open_files(folder: Path) -> set[str]:
    """Return the names of this process's open files in a folder."""
    return {Path(file.path).name for file in psutil.Process().open_files() if Path(file.path).parent == folder}


def test_no_file_stays_open(tmp_path: Path) -> None:
    plan = plan_of(random_arrays(SHAPES))
    write(plan, [output_of(plan, tmp_path / "in.gguf")])
    again = plan_from_gguf(read_gguf(tmp_path / "in.gguf"))
    write(again, [output_of(again, tmp_path / "x.gguf", T.F16)])
    assert open_files(tmp_path) == {"in.gguf"}
    del again
    assert not open_files(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("x"), KeyboardInterrupt()])
def test_no_output_stays_open_after_an_error(error: BaseException, tmp_path: Path) -> None:
    plan = plan_of(random_arrays(SHAPES))
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        write(plan, [output_of(plan, tmp_path / "x.gguf", T.F16)], advance=raising(error))
    assert not open_files(tmp_path)


def test_a_plan_with_other_pieces_is_not_continued(tmp_path: Path) -> None:
    plan = plan_of(random_arrays(SHAPES))
    with pytest.raises(OutputError):
        write(plan, [output_of(plan, tmp_path / "x.gguf")], advance=raising(OSError(errno.EIO, "x"), 2))
    first = plan.tensors[0]
    swapped = PlannedTensor(first.name, first.shape, first.source_type, (Piece("a", 20, 40), Piece("a", 0, 20)))
    other = Plan(plan.architecture, plan.fields, (swapped, *plan.tensors[1:]), plan.source)
    with pytest.raises(OutputError, match="the unfinished run it belongs to differs"):
        write(other, [output_of(other, tmp_path / "x.gguf")])
