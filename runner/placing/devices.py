"""The devices that the loaded llama.cpp can compute on, how it was built, and the GPUs it cannot use.

In: the ggml libraries, /proc, /sys and PATH. Out: frozen records, and the command of a better build.
"""

import ctypes
import platform
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from ...formats.errors import EngineError
from ...formats.llamacpp import c_text, llama
from ..limits import system_memory
from ..linked import linked

# enum ggml_backend_dev_type in ggml/include/ggml-backend.h
KINDS = ("cpu", "gpu", "igpu", "accel", "meta")


@dataclass(frozen=True)
class Device:
    """A device; `buffer_type` is its name in llama.cpp's log and in `--override-tensor`."""

    name: str
    kind: str
    free_bytes: int
    total_bytes: int
    description: str = ""
    buffer_type: str = ""

    @property
    def offloads(self) -> bool:
        """Whether layers can be placed on it (BLAS and the CPU itself take none)."""
        return self.kind in ("gpu", "igpu", "rpc")

    @property
    def shares_ram(self) -> bool:
        """Whether its memory is the CPU's: integrated GPUs, and Metal's on Apple silicon."""
        return self.kind == "igpu" or self.name.startswith("MTL") or self.name == "Metal"


@dataclass(frozen=True)
class Build:
    """How the loaded llama.cpp was built: its backends, its own feature line, and what would make it better."""

    backends: tuple[str, ...]
    system_info: str
    rebuild: tuple[str, ...]


def list_devices() -> list[Device]:
    """Return every device of the loaded llama.cpp, in its order.

    The CPU's memory is what the system and the container's limits leave, not what ggml reports (all of it).
    Raises EngineError when llama.cpp cannot be loaded.
    """
    base = _ggml()
    devices = []
    for index in range(base.ggml_backend_dev_count()):
        handle = base.ggml_backend_dev_get(index)
        name = _text(base.ggml_backend_dev_name(handle))
        kind = KINDS[base.ggml_backend_dev_type(handle)]
        if _text(base.ggml_backend_reg_name(base.ggml_backend_dev_backend_reg(handle))) == "RPC":
            kind = "rpc"
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        free_bytes, total_bytes = free.value, total.value
        if kind in ("cpu", "accel"):
            free_bytes, total_bytes = system_memory()
        buffer_type = base.ggml_backend_dev_buffer_type(handle)
        devices.append(
            Device(
                name,
                kind,
                free_bytes,
                total_bytes,
                _text(base.ggml_backend_dev_description(handle)),
                _text(base.ggml_backend_buft_name(buffer_type)) if buffer_type else "",
            )
        )
    return devices


def device_handle(name: str) -> int:
    """Return the `ggml_backend_dev_t` of a device by its name; raises EngineError when there is none."""
    handle = _ggml().ggml_backend_dev_by_name(c_text(name, "the name of a device"))
    if not handle:
        known = ", ".join(device.name for device in list_devices())
        raise EngineError(f"there is no device {name!r}; this build of llama.cpp has {known}")
    return handle


def describe_build() -> Build:
    """Return the backends of the loaded llama.cpp and the commands for GPUs that it cannot use."""
    base = _ggml()
    backends = tuple(
        _text(base.ggml_backend_reg_name(base.ggml_backend_reg_get(i))) for i in range(base.ggml_backend_reg_count())
    )
    usable = any(device.kind in ("gpu", "igpu") for device in list_devices())
    found = [] if usable else find_gpus()
    return Build(
        backends,
        _text(llama().llama_print_system_info()).strip().rstrip("|").strip(),
        tuple(advise(vendor, backend, backends) for vendor, backend in found),
    )


def advise(vendor: str, backend: str, backends: tuple[str, ...]) -> str:
    """Return one line on a GPU of `vendor` that this build cannot use: the exact command that rebuilds it."""
    if backend in backends or (backend == "HIP" and "ROCm" in backends) or (backend == "METAL" and "MTL" in backends):
        return f"{vendor}: this build has {backend}, but its driver offers no device; check the driver"
    arguments = f"-DGGML_{backend}=ON -DGGML_RPC=ON"
    install = "pip install --no-cache-dir --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
    if sys.platform == "win32":
        return f'{vendor}: set "CMAKE_ARGS={arguments}" && {install}'
    return f'{vendor}: CMAKE_ARGS="{arguments}" {install}'


def find_gpus(root: Path = Path("/")) -> list[tuple[str, str]]:
    """Return (vendor, llama.cpp backend) of GPUs seen by the system, whether or not this build can use them.

    Looks at files below `root` and at tools in PATH; starts no process.
    """
    found = []
    nvidia = (root / "proc/driver/nvidia/version").exists() or (root / "usr/lib/wsl/lib/libcuda.so.1").exists()
    if nvidia or shutil.which("nvidia-smi"):
        found.append(("NVIDIA GPU", "CUDA"))
    vendors = {_read(path).lower() for path in sorted(root.glob("sys/class/drm/card*/device/vendor"))}
    if "0x1002" in vendors:
        found.append(("AMD GPU", "HIP" if shutil.which("hipcc") else "VULKAN"))
    if "0x8086" in vendors:
        found.append(("Intel GPU", "VULKAN"))
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.append(("Apple GPU", "METAL"))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


@cache
def _ggml() -> SimpleNamespace:
    """Return the functions used here with their signatures, those of the registry and those of a device."""
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    registry = {
        "ggml_backend_dev_count": ((), size),
        "ggml_backend_dev_get": ((size,), pointer),
        "ggml_backend_dev_by_name": ((text,), pointer),
        "ggml_backend_reg_count": ((), size),
        "ggml_backend_reg_get": ((size,), pointer),
    }
    device = {
        "ggml_backend_dev_name": ((pointer,), text),
        "ggml_backend_dev_description": ((pointer,), text),
        "ggml_backend_dev_type": ((pointer,), ctypes.c_int),
        "ggml_backend_dev_backend_reg": ((pointer,), pointer),
        "ggml_backend_dev_buffer_type": ((pointer,), pointer),
        "ggml_backend_reg_name": ((pointer,), text),
        "ggml_backend_buft_name": ((pointer,), text),
        "ggml_backend_dev_memory": ((pointer, pointer, pointer), None),
    }
    functions = {name: linked(name, "ggml", *signature) for name, signature in registry.items()}
    functions |= {name: linked(name, "ggml-base", *signature) for name, signature in device.items()}
    return SimpleNamespace(**functions)
