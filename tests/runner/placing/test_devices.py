"""Devices as the system shows them: llama.cpp's own, GPUs that a build cannot use, memory behind a limit."""

from pathlib import Path

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.limits import system_memory
from moe_gguf.runner.placing import devices
from moe_gguf.runner.placing.devices import (
    advise,
    describe_build,
    device_handle,
    find_gpus,
    list_devices,
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def no_tools(tmp_path, monkeypatch):
    """No GPU tools in PATH, and a system that is not Apple's."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(devices.sys, "platform", "linux")


def test_the_cpu_is_a_device_with_the_memory_that_is_there():
    cpu = next(device for device in list_devices() if device.kind == "cpu")
    assert cpu.name == cpu.buffer_type == "CPU"
    assert 0 < cpu.free_bytes <= cpu.total_bytes == system_memory()[1]
    assert not cpu.offloads


def test_the_build_names_its_backends():
    build = describe_build()
    assert "CPU" in build.backends
    assert "CPU :" in build.system_info


def test_a_device_is_found_by_name_and_an_unknown_one_named():
    assert device_handle("CPU")
    with pytest.raises(EngineError, match=r"no device 'CUDA7'.*has CPU"):
        device_handle("CUDA7")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"proc/driver/nvidia/version": "NVRM version: 570"}, [("NVIDIA GPU", "CUDA")]),
        ({"usr/lib/wsl/lib/libcuda.so.1": ""}, [("NVIDIA GPU", "CUDA")]),
        ({"sys/class/drm/card0/device/vendor": "0x1002\n"}, [("AMD GPU", "VULKAN")]),
        ({"sys/class/drm/card1/device/vendor": "0x8086\n"}, [("Intel GPU", "VULKAN")]),
        ({"sys/class/drm/card0/device/vendor": "0x1af4\n"}, []),
    ],
)
def test_gpus_are_seen_in_the_system_files(tmp_path, no_tools, files, expected):
    for name, text in files.items():
        write(tmp_path / name, text)
    assert find_gpus(tmp_path) == expected


def test_a_gpu_is_seen_by_its_tool(tmp_path, monkeypatch):
    tool = tmp_path / ("nvidia-smi.exe" if devices.sys.platform == "win32" else "nvidia-smi")
    tool.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ("NVIDIA GPU", "CUDA") in find_gpus(tmp_path)


def test_the_rebuild_command_is_complete(no_tools):
    assert advise("NVIDIA GPU", "CUDA", ("CPU",)) == (
        'NVIDIA GPU: CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall '
        "--no-binary llama-cpp-python llama-cpp-python"
    )
    assert "driver" in advise("NVIDIA GPU", "CUDA", ("CUDA", "CPU"))
    assert "driver" in advise("AMD GPU", "HIP", ("ROCm", "CPU"))
