"""`moe-gguf devices`: the table and the JSON."""

import json
import os
import subprocess
import sys

from click.testing import CliRunner
from moe_gguf.cli.root import root
from moe_gguf.runner.placing.devices import list_devices

from ..runner.workers import COMMAND, running_worker


def test_json_lists_devices_and_the_build():
    report = json.loads(CliRunner().invoke(root, ["devices", "--json"], catch_exceptions=False).stdout)
    cpu = next(device for device in report["devices"] if device["name"] == "CPU")
    assert list(cpu) == ["name", "kind", "free_bytes", "total_bytes"]
    assert cpu["kind"] == "cpu"
    assert "CPU" in report["build"]["backends"]


def test_the_table_names_the_cpu_and_the_backends():
    text = CliRunner().invoke(root, ["devices"], catch_exceptions=False).stdout
    assert text.startswith("device  kind")
    assert "\nCPU " in text
    assert "llama.cpp is built with" in text


def test_workers_devices_are_listed_too():
    with running_worker() as (address, _):
        process = subprocess.run([*COMMAND, "devices", "--rpc", address], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "RPC0    rpc" in process.stdout
    assert address in process.stdout


def test_a_gpu_that_the_build_cannot_use_comes_with_the_command_that_changes_it(tmp_path, monkeypatch):
    tool = tmp_path / ("nvidia-smi.exe" if sys.platform == "win32" else "nvidia-smi")
    tool.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    text = CliRunner().invoke(root, ["devices"], catch_exceptions=False).stdout
    usable = any(device.kind in ("gpu", "igpu") for device in list_devices())
    assert ("-DGGML_CUDA=ON" in text) == (not usable)
