"""`moe-gguf fit`: its table, its JSON, the other quantizations, and flags that mean the same again."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType
from moe_gguf.cli.loading import load_request
from moe_gguf.cli.root import root
from moe_gguf.formats.errors import EngineError, GgufError, PlanError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.jobs.fit import type_sizes
from moe_gguf.jobs.loading import load_options

from ..runner.tiny_moe import write_moe
from ..runner.workers import COMMAND, running_worker

BIG: dict[str, Any] = {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_vocab": 32000}


@pytest.fixture(scope="module")
def four_by_seven(tmp_path_factory) -> Path:
    """A 4x7B in F16 as a header with nothing behind it."""
    path = tmp_path_factory.mktemp("models") / "4x7B.gguf"
    return write_moe(path, **BIG, n_ctx_train=32768, qtype=GGMLQuantizationType.Q4_K, weights=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_moe(tmp_path_factory.mktemp("models") / "tiny.gguf")


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(root, ["fit", *(str(argument) for argument in arguments)], catch_exceptions=False)


def test_json_has_what_a_program_needs(four_by_seven):
    report = json.loads(fit(four_by_seven, "--vram", "8G", "--ram", "16G", "-c", 8192, "--json").stdout)
    assert report["n_ctx"] == 8192
    cpu, gpu = report["devices"]
    keys = ["name", "kind", "free_bytes", "total_bytes", "weights_bytes", "kv_bytes", "compute_bytes"]
    assert list(cpu) == list(gpu) == keys
    assert (cpu["name"], cpu["kind"], cpu["total_bytes"]) == ("CPU", "cpu", 16 * 2**30)
    assert (gpu["kind"], gpu["total_bytes"]) == ("gpu", 8 * 2**30)
    assert gpu["weights_bytes"] + gpu["kv_bytes"] + gpu["compute_bytes"] <= gpu["free_bytes"]
    tensors = read_gguf(four_by_seven).tensors
    assert {entry["name"] for entry in report["tensors"]} == set(tensors)
    placed = sum(tensors[entry["name"]].n_bytes for entry in report["tensors"] if entry["device"] == gpu["name"])
    assert placed == gpu["weights_bytes"]
    assert report["flags"][:2] == ["-c", "8192"]
    assert "hypothetical" in report["notes"][0]


def test_the_table_names_parts_reasons_and_other_quantizations(four_by_seven):
    text = fit(four_by_seven, "--vram", "8G", "--ram", "16G").stdout
    assert "note: there is no such device here: GPU0" in text
    assert re.search(r"4x7B.gguf: 13.59 GB, 32 layers; a context of 8192 tokens \(largest that fits: \d+", text)
    assert re.search(r"attention, norms, routers 0-31 +GPU0 .*every token needs them", text)
    assert re.search(r"experts 0-\d+ +CPU .*a token reads only 2 of each layer's experts", text)
    assert re.search(r"Q5_K_M +17.13 GB  would fit with \d+ of 32 layers on devices", text)
    assert re.search(r"Q8_0 +25.67 GB  would not fit", text)
    assert re.search(r"flags for this: -c 8192 -ngl 33 -ot '.*exps=CPU'", text)


def test_sizes_of_other_quantizations_are_those_of_published_files(four_by_seven):
    sizes = {name: round(sum(parts.values()) / 1e9, 2) for name, parts in type_sizes(read_gguf(four_by_seven)).items()}
    assert sizes == sizes | {"Q4_K_M": 14.61, "Q5_K_M": 17.13, "Q6_K": 19.82, "Q8_0": 25.67, "F16": 48.31}


def test_without_a_gpu_everything_is_on_the_cpu(tiny):
    report = json.loads(fit(tiny, "-dev", "none", "--json").stdout)
    assert [device["name"] for device in report["devices"]] == ["CPU"]
    assert report["flags"] == ["-c", "4096", "-ngl", "0"]
    assert report["largest_n_ctx"] == 4096
    assert "would fit (context up to 4096)" in fit(tiny, "-dev", "none").stdout


def test_options_of_the_context_are_planned_with(tiny):
    usual = json.loads(fit(tiny, "-c", 4096, "--json").stdout)["devices"][0]
    small = json.loads(fit(tiny, "-c", 4096, "-ctk", "q8_0", "-ctv", "q8_0", "-ub", 256, "--json").stdout)["devices"][0]
    assert small["kv_bytes"] == pytest.approx(usual["kv_bytes"] * 17 / 32, rel=0.01)
    assert small["compute_bytes"] < usual["compute_bytes"]
    one = json.loads(fit(tiny, "-c", 4096, "--n-expert-used", 1, "--json").stdout)["devices"][0]
    assert one["compute_bytes"] < usual["compute_bytes"]


def test_what_cannot_be_planned_is_one_line(tiny, four_by_seven, tmp_path):
    with pytest.raises(EngineError, match="too large for this machine"):
        fit(four_by_seven, "--ram", "4G")
    with pytest.raises(PlanError, match="not an amount of memory"):
        fit(tiny, "--vram", "lots")
    with pytest.raises(EngineError, match="there is no device 'CUDA9'"):
        fit(tiny, "-dev", "CUDA9")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(30))
    with pytest.raises(GgufError):
        fit(tmp_path / "broken.gguf")


def test_a_worker_is_planned_like_a_local_device(tiny):
    with running_worker() as (address, _):
        arguments = ["fit", str(tiny), "--rpc", address, "--vram", "16M", "-c", "1024", "--json"]
        process = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
        assert process.returncode == 0, process.stderr
        report = json.loads(process.stdout)
        _, worker = report["devices"]
        assert (worker["name"], worker["kind"], worker["free_bytes"]) == ("RPC0", "rpc", 16 * 2**20)
        assert 0 < worker["weights_bytes"] < 7_000_000
        assert report["flags"][report["flags"].index("--rpc") + 1] == address
        assert report["notes"] == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"n_gpu_layers": "3"}, {"n_gpu_layers": 3}),
        ({"n_gpu_layers": "all"}, {"n_gpu_layers": -1}),
        ({"cpu_moe": True}, {"tensor_overrides": ((r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),)}),
        ({"n_cpu_moe": 2}, {"tensor_overrides": ((r"blk\.([0-1])\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),)}),
        ({"override_tensor": ("a=CPU,b=CPU",)}, {"tensor_overrides": (("a", "CPU"), ("b", "CPU"))}),
        ({"tensor_split": "3,1"}, {"tensor_split": (3.0, 1.0)}),
        ({"split_mode": "row", "main_gpu": 1}, {"split_mode": "row", "main_gpu": 1}),
        ({"no_kv_offload": True, "no_mmap": True, "mlock": True}, {"offload_kqv": False, "use_mmap": False}),
        ({"threads": 2, "threads_batch": 1, "numa": "isolate"}, {"n_threads": 2, "n_threads_batch": 1}),
        ({"ctx_size": 0}, {"n_ctx": 4096}),
        ({"fit": False}, {"n_ctx": None, "devices": None}),
        ({"device": "none"}, {"devices": (), "n_ctx": 4096}),
    ],
)
def test_manual_flags_win(tiny, values, expected):
    options = load_options(tiny, load_request(values))
    assert {key: getattr(options, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"override_tensor": ("exps",)}, "write REGEX=DEVICE"),
        ({"override_tensor": ("exps=CUDA3",)}, "write REGEX=DEVICE"),
        ({"override_tensor": ("(=CPU",)}, "is no regular expression"),
        ({"tensor_split": "a,b"}, "write the share of each device"),
        ({"tensor_split": "0,0"}, "write the share of each device"),
        ({"n_gpu_layers": "many"}, "write a number of layers"),
        ({"device": "CUDA3"}, "there is no device 'CUDA3'"),
    ],
)
def test_manual_flags_that_make_no_sense_are_refused(tiny, values, message):
    with pytest.raises(EngineError, match=message):
        load_options(tiny, load_request(values))
