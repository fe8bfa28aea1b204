"""llama.cpp's quantizer behind our function: what it writes, says, refuses, and leaves behind when it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import EngineError, GgufError, ImatrixError, OutputError, PlanError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.models.tensor_types import parse_tensor_type, parse_tensor_type_option
from moe_gguf.quantize.choices import MixOptions
from moe_gguf.quantize.facts import facts_of
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.imatrix import load_imatrix
from moe_gguf.quantize.mixes import choose_types
from moe_gguf.quantize.output_metadata import quantized_metadata
from moe_gguf.quantize.overrides import apply_kv_overrides, parse_kv_override
from moe_gguf.quantize.pruning import parse_layers
from moe_gguf.quantize.stock_policy import stock

from .gguf_headers import Shape, tensors_of, write_header
from .golden_cases import CASES, GoldenCase, write_sources
from .oracle import OracleReport, quantize_file
from .tiny_files import TINY, write_tiny

GOLDEN = json.loads((Path(__file__).parent / "golden" / "llama_quantize.json").read_text())


@dataclass(frozen=True)
class Output:
    """A golden case's file and report."""

    path: Path
    report: OracleReport


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny models and importance matrices of the golden cases."""
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    quantize_file(folder / "f32.gguf", folder / "q8_0.gguf", "Q8_0", n_threads=2)
    return folder


@pytest.fixture(scope="module")
def outputs(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Output]]:
    """Return a function that runs a golden case, once, in the folder of the sources."""
    folder = tmp_path_factory.mktemp("outputs")

    @cache
    def run(name: str) -> Output:
        target = folder / f"{name}.gguf"
        return Output(target, run_case(CASES[name], target))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sources)
        yield run


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def run_case(case: GoldenCase, target: Path) -> OracleReport:
    """Run a golden case in the current folder, where the paths are as short as they were for llama-quantize."""

    def qtype(name: str | None) -> GGMLQuantizationType | None:
        return parse_tensor_type(name) if name else None

    return quantize_file(
        Path(case.source),
        target,
        case.file_type,
        n_threads=1,
        imatrix=load_imatrix(Path(case.imatrix)) if case.imatrix else None,
        tensor_types=[parse_tensor_type_option(text) for text in case.tensor_types],
        output_tensor_type=qtype(case.output_tensor_type),
        token_embedding_type=qtype(case.token_embedding_type),
        leave_output_tensor="leave-output-tensor" in case.flags,
        pure="pure" in case.flags,
        allow_requantize="allow-requantize" in case.flags,
        kv_overrides=[parse_kv_override(text) for text in case.kv_overrides],
        prune_layers=parse_layers(case.prune_layers) if case.prune_layers else (),
    )


def test_the_sources_are_those_of_the_golden_file(sources: Path) -> None:
    assert {path.name: digest(path) for path in sources.iterdir()} == GOLDEN["sources"]


@pytest.mark.parametrize("name", CASES)
def test_files_equal_those_of_llama_quantize(outputs: Callable[[str], Output], name: str) -> None:
    """The options and importance matrices that we parse must mean the same to the program itself."""
    path, report = outputs(name).path, outputs(name).report
    assert digest(path) == GOLDEN["outputs"][name]
    written = read_gguf(path)
    assert {tensor.name: tensor.qtype for tensor in written.tensors.values()} == report.types
    assert sum(tensor.n_bytes for tensor in written.tensors.values()) == report.n_bytes


@pytest.mark.parametrize("name", CASES)
def test_our_plan_and_metadata_are_those_of_the_file(outputs: Callable[[str], Output], name: str) -> None:
    """Types, order, every key with its type and place."""
    case = CASES[name]
    written, source = read_gguf(outputs(name).path), read_gguf(Path(case.source))
    file_type = parse_file_type(case.file_type)
    overrides = [parse_kv_override(text) for text in case.kv_overrides]
    imatrix = load_imatrix(Path(case.imatrix)) if case.imatrix else None
    options = MixOptions(
        tensor_types=[parse_tensor_type_option(text) for text in case.tensor_types],
        output_tensor_type=parse_tensor_type(case.output_tensor_type) if case.output_tensor_type else None,
        token_embedding_type=parse_tensor_type(case.token_embedding_type) if case.token_embedding_type else None,
        leave_output_tensor="leave-output-tensor" in case.flags,
        pure="pure" in case.flags,
        allow_requantize="allow-requantize" in case.flags,
        prune_layers=parse_layers(case.prune_layers) if case.prune_layers else (),
    )
    changed = {key: field.value for key, field in apply_kv_overrides(source.fields, overrides).items()}
    facts = facts_of(changed, source.tensors)
    names = imatrix.names if imatrix else False
    choices = choose_types(facts, list(source.tensors.values()), stock(file_type), options, names)
    assert [(c.name, c.qtype, c.n_bytes) for c in choices] == [
        (tensor.name, tensor.qtype, tensor.n_bytes) for tensor in written.tensors.values()
    ]
    fields = quantized_metadata(
        source.fields,
        file_type,
        source.tensors.values(),
        kv_overrides=[*overrides, *(imatrix.metadata_overrides() if imatrix else [])],
        n_layer_left=TINY.n_layer - 1 if options.prune_layers else None,
    )
    assert list(fields.items()) == list(written.fields.items())


def test_copying_a_file_without_a_file_type_guesses_one(tmp_path: Path) -> None:
    tensors = tensors_of(TINY, GGMLQuantizationType.Q4_K)
    source = write_header(tmp_path / "source.gguf", TINY, tensors, file_type=None)
    quantize_file(source, tmp_path / "out.gguf", "COPY")
    written = read_gguf(tmp_path / "out.gguf")
    fields = quantized_metadata(read_gguf(source).fields, parse_file_type("COPY"), tensors)
    assert list(fields.items()) == list(written.fields.items())
    assert fields["general.file_type"].value == 1024 + 15


def test_progress_and_report(sources: Path, tmp_path: Path) -> None:
    events: list[tuple[int, int, str, str]] = []
    report = quantize_file(
        sources / "bf16.gguf", tmp_path / "out.gguf", "Q4_K_M", on_tensor=lambda *event: events.append(event)
    )
    n_tensors = len(tensors_of(TINY))
    assert [(done, total) for done, total, *_ in events] == [(i + 1, n_tensors) for i in range(n_tensors)]
    assert {name: qtype for *_, name, qtype in events} == {name: each.name for name, each in report.types.items()}
    assert report.outputs == (tmp_path / "out.gguf",)
    assert report.fallbacks == {}
    planned = quantize_file(sources / "bf16.gguf", None, "Q4_K_M", dry_run=True)
    assert (planned.types, planned.n_bytes, planned.outputs) == (report.types, report.n_bytes, ())
    assert list(tmp_path.iterdir()) == [tmp_path / "out.gguf"]


def test_a_dry_run_needs_headers_only(tmp_path: Path) -> None:
    source = write_header(tmp_path / "huge.gguf", Shape(n_layer=32, n_expert=8, n_embd=4096, n_ff=14336))
    assert source.stat().st_size > 80e9
    report = quantize_file(source, None, "IQ2_XS", dry_run=True)
    assert report.needs_imatrix
    assert report.types["blk.0.attn_k.weight"] == GGMLQuantizationType.Q4_K


def test_shards_stay_shards(tmp_path: Path) -> None:
    tensors = tensors_of(TINY, GGMLQuantizationType.F16)
    for i, part in enumerate((tensors[:9], tensors[9:])):
        write_header(tmp_path / f"model-{i + 1:05}-of-00002.gguf", TINY, part, (i, 2, len(tensors)))
    first = tmp_path / "model-00001-of-00002.gguf"
    report = quantize_file(first, tmp_path / "out.gguf", "Q8_0", keep_split=True)
    assert [path.name for path in report.outputs] == ["out-00001-of-00002.gguf", "out-00002-of-00002.gguf"]
    written = read_gguf(report.outputs[0])
    assert {name: tensor.qtype for name, tensor in written.tensors.items()} == report.types
    joined = quantize_file(first, tmp_path / "joined.gguf", "Q8_0")
    assert read_gguf(joined.outputs[0]).tensors.keys() == written.tensors.keys()
    assert not list(tmp_path.glob("*partial*"))


def test_warnings_tell_of_tensors_that_the_matrix_lacks(sources: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    report = quantize_file(
        sources / "f32.gguf", tmp_path / "out.gguf", "Q4_K_M", imatrix={name: np.ones(256, np.float32)}
    )
    assert any("did not find weights for blk.0.attn_k.weight" in warning for warning in report.warnings)
    assert not any(name in warning for warning in report.warnings)


def test_what_was_asked_for_is_no_warning(tmp_path: Path) -> None:
    source = write_header(tmp_path / "header.gguf", Shape(n_layer=2, n_embd=576))
    types = [("attn_v", GGMLQuantizationType.Q8_0)]
    report = quantize_file(source, None, "IQ3_XXS", tensor_types=types, dry_run=True)
    assert report.types["blk.1.attn_v.weight"] == GGMLQuantizationType.Q8_0
    assert report.fallbacks["blk.1.attn_q.weight"] == GGMLQuantizationType.IQ2_S
    assert report.needs_imatrix is False
    assert report.warnings == ()


def test_refusals_are_one_line_and_leave_nothing(sources: Path, tmp_path: Path) -> None:
    source, target = sources / "f32.gguf", tmp_path / "out.gguf"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    short = {"blk.0.attn_q.weight": np.ones(5, np.float32)}
    infinite = {"blk.0.attn_q.weight": np.full(256, np.inf, np.float32)}
    cases = [
        (ImatrixError, lambda: quantize_file(source, target, "IQ2_XS")),
        (ImatrixError, lambda: quantize_file(source, target, "Q4_K_M", imatrix=short)),
        (ImatrixError, lambda: quantize_file(source, target, "Q4_K_M", imatrix=infinite)),
        (PlanError, lambda: quantize_file(sources / "q8_0.gguf", target, "Q4_0")),
        (PlanError, lambda: quantize_file(source, target, "Q4_Q")),
        (EngineError, lambda: quantize_file(broken, target, "Q4_0")),
        (GgufError, lambda: quantize_file(tmp_path / "none.gguf", target, "Q4_0")),
        (OutputError, lambda: quantize_file(source, tmp_path / "none" / "out.gguf", "Q4_0")),
        (OutputError, lambda: quantize_file(source, source, "Q4_0")),
        (OutputError, lambda: quantize_file(source, None, "Q4_0")),
    ]
    for kind, call in cases:
        with pytest.raises(kind) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == [broken]


def test_an_abort_of_llamacpp_becomes_an_error(tmp_path: Path) -> None:
    """Token embeddings in a type that cannot do without a matrix: llama.cpp ends its process."""
    source = write_tiny(tmp_path / "source.gguf", replace(TINY, n_layer=1))
    with pytest.raises(EngineError, match=r"ended without a result.*GGML_ASSERT"):
        quantize_file(source, tmp_path / "out.gguf", "Q4_0", token_embedding_type=GGMLQuantizationType.IQ2_XS)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_ctrl_c_ends_the_quantizer_and_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(sources / "f32.gguf", tmp_path / "out.gguf", "Q4_K_M", on_tensor=interrupt)
    assert not list(tmp_path.iterdir())
    assert not psutil.Process().children()


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_no_quantizer_outlives_its_parent(tmp_path: Path, how: str) -> None:
    source = write_header(tmp_path / "large.gguf", Shape(n_layer=8, n_expert=8, n_embd=2048, n_ff=8192))
    program = (
        "import sys; from pathlib import Path; from tests.quantize.oracle import quantize_file\n"
        "say = lambda *event: print(event[0], flush=True)\n"
        "quantize_file(Path(sys.argv[1]), Path(sys.argv[2]), 'Q3_K_M', n_threads=1, on_tensor=say)\n"
    )
    target = tmp_path / "out.gguf"
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(source), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"1\n"
    children = psutil.Process(parent.pid).children()
    assert children
    if how == "killed":
        parent.kill()
    else:
        os.killpg(parent.pid, signal.SIGINT)
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "the quantizer still runs"
        time.sleep(0.05)
    assert not target.exists()
    if how == "interrupted":
        assert list(tmp_path.iterdir()) == [source]
