"""`moe-gguf imatrix` against what llama-imatrix made of the same model and text."""

import json
import signal
import subprocess
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_gguf.formats.errors import EngineError, ImatrixError, Interrupted, OutputError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.imatrix_file import ImatrixFile, read_gguf_imatrix, write_gguf_imatrix
from moe_gguf.formats.moments import MomentsFile
from moe_gguf.jobs import collecting
from moe_gguf.jobs import imatrix as job
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.measure.chunks import CalibrationText, cut_chunks
from moe_gguf.measure.importance_statistics import statistics_table
from moe_gguf.quantize.imatrix import load_imatrix
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model

from ..command import moe_gguf
from ..runner.tiny_gguf import N_EXPERT, N_FF, N_LAYER, write_tiny
from ..runner.workers import COMMAND, running_worker
from .imatrix_case import CHUNKS, N_CTX, TEXT

GOLDEN = Path(__file__).parent / "golden"
ALIKE = LoadRequest(n_batch=N_CTX, n_ubatch=N_CTX, n_threads=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def made(model: Path, text: Path, output: Path, **more: object) -> job.Report:
    fields = {"n_ctx": N_CTX, "n_chunk": CHUNKS, "process_output": True, "load": ALIKE, **more}
    request = job.Request(model, output, (text,), **fields)  # pyright: ignore[reportArgumentType]
    return job.run(job.prepare(request))


def demand_equal(ours: ImatrixFile, theirs: ImatrixFile) -> None:
    assert list(ours.entries) == list(theirs.entries)
    for name, (sums, counts) in theirs.entries.items():
        np.testing.assert_array_equal(ours.entries[name][1], counts)
        np.testing.assert_allclose(ours.entries[name][0], sums, rtol=1e-5)
    assert (ours.n_chunk, ours.n_ctx) == (theirs.n_chunk, theirs.n_ctx)


def test_sums_and_counts_are_llama_imatrix_s(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    report = made(tiny_path, text, tmp_path / "i.gguf")
    theirs = read_gguf_imatrix(GOLDEN / "imatrix.gguf")
    demand_equal(read_gguf_imatrix(tmp_path / "i.gguf"), theirs)
    assert report.n_chunk == CHUNKS and len(report.layers) == N_LAYER
    counts = theirs.entries["blk.0.ffn_down_exps.weight"][1]
    assert report.layers[0].tokens == tuple(counts.tolist()) and report.least == min(map(min, report_counts(theirs)))
    assert not (tmp_path / "i.gguf.partial").exists()


def report_counts(matrix: ImatrixFile) -> list[list[int]]:
    return [counts.tolist() for name, (_, counts) in matrix.entries.items() if "_exps." in name]


def test_dat_files_hold_the_same_importance(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    made(tiny_path, text, tmp_path / "i.dat", output_format="dat")
    ours, theirs = load_imatrix(tmp_path / "i.dat"), load_imatrix(GOLDEN / "imatrix.dat")
    assert ours.names == theirs.names and ours.n_chunk == theirs.n_chunk
    for name in theirs.names:
        np.testing.assert_allclose(ours.values[name], theirs.values[name], rtol=1e-5)


def test_statistics_are_llama_imatrix_s() -> None:
    table = statistics_table("imatrix.gguf", read_gguf_imatrix(GOLDEN / "imatrix.gguf").entries)
    assert table.rstrip("\n") == (GOLDEN / "imatrix_statistics.txt").read_text().rstrip("\n")


def test_a_written_file_is_llama_imatrix_s_to_the_byte(tmp_path: Path) -> None:
    write_gguf_imatrix(tmp_path / "i.gguf", read_gguf_imatrix(GOLDEN / "imatrix.gguf"))
    assert (tmp_path / "i.gguf").read_bytes() == (GOLDEN / "imatrix.gguf").read_bytes()


def test_files_are_added_up(tmp_path: Path) -> None:
    golden = str(GOLDEN / "imatrix.gguf")
    outcome = moe_gguf("imatrix", "--in-file", golden, "--in-file", golden, "-o", tmp_path / "sum.gguf")
    assert outcome.status == 0, outcome.stderr
    one, both = read_gguf_imatrix(GOLDEN / "imatrix.gguf"), read_gguf_imatrix(tmp_path / "sum.gguf")
    for name, (sums, counts) in one.entries.items():
        np.testing.assert_array_equal(both.entries[name][0], 2 * sums)
        np.testing.assert_array_equal(both.entries[name][1], 2 * counts)
    assert both.n_chunk == 2 * CHUNKS and both.datasets == 2 * one.datasets


def test_a_file_is_added_to_what_a_text_gives(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    report = made(tiny_path, text, tmp_path / "both.gguf", in_files=(GOLDEN / "imatrix.gguf",))
    one, both = read_gguf_imatrix(GOLDEN / "imatrix.gguf"), read_gguf_imatrix(tmp_path / "both.gguf")
    for name, (sums, counts) in one.entries.items():
        np.testing.assert_allclose(both.entries[name][0], 2 * sums, rtol=1e-5)
        np.testing.assert_array_equal(both.entries[name][1], 2 * counts)
    assert both.n_chunk == 2 * CHUNKS and report.datasets == (*one.datasets, str(text))
    assert report.n_chunk == CHUNKS


def test_the_command_prints_json_and_llama_imatrix_s_table(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "i.gguf"
    moments = tmp_path / "m.safetensors"
    options = ("-c", str(N_CTX), "--chunks", "2", "-t", "1", "--moments", moments, "--json", "-o", output)
    outcome = moe_gguf("imatrix", tiny_path, "-f", text, *options)
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert list(report) == [
        *("output", "datasets", "n_chunk", "n_ctx", "n_tokens", "n_entry", "least", "coverage", "moments", "seconds"),
    ]
    assert (report["n_chunk"], report["n_ctx"], report["n_tokens"]) == (2, N_CTX, 2 * N_CTX)
    assert report["output"] == str(output) and report["datasets"] == [str(text)]
    assert [each["layer"] for each in report["coverage"]] == list(range(N_LAYER))
    assert all(sum(each["tokens"]) == 2 * 2 * N_CTX and not sum(each["apart"]) for each in report["coverage"])
    assert report["least"] == min(min(each["tokens"]) for each in report["coverage"])
    assert set(report["moments"]) == {"path", "n_entry", "n_pass", "bytes"} and report["moments"]["n_pass"] == 1
    shown = moe_gguf("imatrix", "--show-statistics", "--in-file", GOLDEN / "imatrix.gguf")
    assert shown.stdout.splitlines()[2:] == (GOLDEN / "imatrix_statistics.txt").read_text().splitlines()[2:]
    refused = moe_gguf("imatrix", "--show-statistics", "--in-file", GOLDEN / "imatrix.dat")
    assert refused.status == 1 and "has forgotten how many tokens each expert saw" in refused.stderr


def test_graphs_that_are_cut_between_devices_are_collected_whole(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    """Attention on a worker, experts at home: a graph has several parts, of which the first ones end nothing."""
    options = ["-c", str(N_CTX), "--chunks", "2", "-t", "1", "--no-repack", "-fa", "off"]
    for name, more in (("cpu", ["--device", "none"]), ("both", ["--cpu-moe", "--rpc"])):
        output = ["-o", str(tmp_path / f"{name}.gguf"), "--moments", str(tmp_path / f"{name}.safetensors")]
        command = [*COMMAND, "imatrix", str(tiny_path), "-f", str(text), *options, *output, *more]
        with running_worker() if more[-1] == "--rpc" else nullcontext(((), None)) as (address, _):
            subprocess.run([*command, *([address] if address else [])], check=True, capture_output=True)
    cpu, both = (read_gguf_imatrix(tmp_path / f"{name}.gguf") for name in ("cpu", "both"))
    assert list(both.entries) == list(cpu.entries)
    for name, (sums, counts) in cpu.entries.items():
        np.testing.assert_array_equal(both.entries[name][1], counts)
        np.testing.assert_allclose(both.entries[name][0], sums, rtol=1e-3)
    cpu, both = (MomentsFile(tmp_path / f"{name}.safetensors").info for name in ("cpu", "both"))
    assert {entry.weights for entry in both.entries} == {entry.weights for entry in cpu.entries}


def test_an_interrupted_run_goes_on(
    tiny_path: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    keep = collecting.Collecting._keep

    def press(self: collecting.Collecting, *arguments: object) -> None:
        nonlocal calls
        keep(self, *arguments)  # pyright: ignore[reportArgumentType]
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(collecting.Collecting, "_keep", press)
    with pytest.raises(Interrupted, match="keeps 2 of 4 chunks"):
        made(tiny_path, text, tmp_path / "i.gguf")
    assert not (tmp_path / "i.gguf").exists() and (tmp_path / "i.gguf.partial").exists()
    calls = 2
    made(tiny_path, text, tmp_path / "i.gguf")
    assert calls == 4
    demand_equal(read_gguf_imatrix(tmp_path / "i.gguf"), read_gguf_imatrix(GOLDEN / "imatrix.gguf"))


def test_a_run_with_moments_goes_on_too(
    tiny_path: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several passes, what a pass has finished is not computed again."""
    few: dict[str, Any] = {"n_chunk": 2, "process_output": False, "memory": 4 * N_EXPERT * N_FF**2}
    (tmp_path / "whole").mkdir()
    made(tiny_path, text, tmp_path / "whole" / "i.gguf", moments=tmp_path / "whole" / "m", **few)
    passes = 0
    collect = collecting.Collecting._pass

    def press(self: collecting.Collecting, *arguments: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            with self._interrupted():
                raise KeyboardInterrupt
        collect(self, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(collecting.Collecting, "_pass", press)
    output, moments = tmp_path / "i.gguf", tmp_path / "m"
    with pytest.raises(Interrupted, match="keeps 2 of 2 chunks"):
        made(tiny_path, text, output, moments=moments, **few)
    assert not output.exists() and not moments.exists()
    report = made(tiny_path, text, output, moments=moments, **few)
    assert report.moments and report.moments.n_pass < passes
    for name in ("i.gguf", "m"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.gguf", "m", "whole"]


def test_coverage_raises_the_experts_and_counts_apart(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    plain = made(tiny_path, text, tmp_path / "plain.gguf", n_chunk=None)
    wanted = (plain.least or 0) + 20
    kept = made(tiny_path, text, tmp_path / "kept.gguf", n_chunk=None, coverage=wanted, raise_experts=False)
    assert kept.layers == plain.layers
    report = made(tiny_path, text, tmp_path / "i.gguf", n_chunk=None, coverage=wanted)
    assert (report.least or 0) >= wanted and report.n_chunk == plain.n_chunk
    for ours, theirs in zip(report.layers, plain.layers, strict=True):
        own = [n - more for n, more in zip(ours.tokens, ours.apart, strict=True)]
        assert own == list(theirs.tokens)
        assert all(not more for more, n in zip(ours.apart, own, strict=True) if n >= wanted)
    assert sum(sum(layer.apart) for layer in report.layers) > 0


def test_coverage_stops_once_it_is_reached(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    report = made(tiny_path, text, tmp_path / "i.gguf", n_chunk=1, coverage=1)
    assert report.n_chunk < len(TEXT) // N_CTX


def test_the_file_quantizes(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    made(tiny_path, text, tmp_path / "i.gguf")
    imatrix = load_imatrix(tmp_path / "i.gguf")
    shape = read_gguf(tiny_path).tensors["blk.0.ffn_down_exps.weight"].shape
    values = imatrix.for_tensor("blk.0.ffn_down_exps.weight", shape)
    assert values is not None and values.shape == (N_EXPERT, shape[0]) and not imatrix.warnings


def test_nan_is_reported_with_chunk_and_layer(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    """A token whose embedding is NaN comes in the third chunk first."""
    with Model(tiny_path, LoadOptions(n_ctx=N_CTX, n_threads=1)) as model:
        chunks = cut_chunks(model, [CalibrationText("text", TEXT + " qqq" * N_CTX)], N_CTX)
        seen = set(chunks[0]) | set(chunks[1])
        odd = next(int(token) for token in chunks[2:].ravel() if token not in seen)
        first = next(number for number, chunk in enumerate(chunks) if odd in chunk)
    path = tmp_path / "nan.gguf"
    write_tiny(path, lambda _, tensors: tensors["token_embd.weight"][odd].fill(np.nan))
    long = tmp_path / "long.txt"
    long.write_text(TEXT + " qqq" * N_CTX)
    words = rf"what blk.0.attn_\w+.weight is multiplied by is NaN or infinite in chunk {first}, and nothing before"
    with pytest.raises(EngineError, match=words):
        made(path, long, tmp_path / "i.gguf", n_chunk=None)
    assert not (tmp_path / "i.gguf").exists()


def test_refusals_are_one_line_and_leave_nothing(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    short, zeros, latin = tmp_path / "short.txt", tmp_path / "zeros.txt", tmp_path / "latin.txt"
    short.write_text("the cat")
    zeros.write_bytes(b"a\0b" * 999)
    latin.write_bytes("Grüße ".encode("latin-1") * 999)
    other = tmp_path / "other.gguf"
    write_gguf_imatrix(other, ImatrixFile({"blk.0.attn_q.weight": (np.ones((1, 32)), np.ones(1, int))}, (), 1, 64))
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "out.gguf"
    with pytest.raises(EngineError, match=r"short.txt: \d+ tokens, less than a chunk of 128"):
        made(tiny_path, short, output)
    with pytest.raises(EngineError, match=r"zeros.txt: holds zero bytes"):
        made(tiny_path, zeros, output)
    with pytest.raises(EngineError, match=r"latin.txt: no UTF-8 text"):
        made(tiny_path, latin, output)
    with pytest.raises(ImatrixError, match=r"other.gguf: made for another model: blk.0.attn_q.weight"):
        made(tiny_path, text, output, in_files=(other,))
    with pytest.raises(OutputError, match=r"exists already"):
        made(tiny_path, text, other)
    assert sorted(tmp_path.iterdir()) == before
