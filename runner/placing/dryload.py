"""What llama.cpp itself would allocate: a GGUF file and load options in, bytes per device out, nothing loaded.

llama.cpp reads the header, simulates the load (`no_alloc`) and logs the size of each compute buffer.
"""

import os
import re
from collections import defaultdict
from dataclasses import replace

from ...formats.errors import EngineError
from ...formats.gguf_file import GgufFile
from ...formats.llamacpp import listening, llama
from ..interrupt import held_interrupts
from ..load_options import LoadOptions
from ..load_parameters import context_parameters, model_parameters
from .devices import list_devices
from .memory import CPU

COMPUTE = re.compile(r"(\S+) +compute buffer size = +([\d.]+) MiB")
CACHE = re.compile(r"size = +([\d.]+) MiB \( *\d+ cells")
BUFFER = re.compile(r"(\S+) +(model|KV|compute) buffer size = +([\d.]+) MiB")
MIB = 1024 * 1024


def measure(file: GgufFile, options: LoadOptions) -> tuple[dict[str, int], int]:
    """Return the bytes of the compute buffer on each device, and of the whole KV cache.

    Raises EngineError when llama.cpp refuses the model or the context.
    """
    api, log = llama(), []
    parameters, keep = model_parameters(file, replace(options, use_mmap=False, use_mlock=False))
    parameters.no_alloc = True
    with held_interrupts(), listening(lambda level, text: log.append((level, text))):
        model = api.llama_model_load_from_file(os.fsencode(file.path), parameters)
        try:
            context = model and api.llama_init_from_model(
                model, context_parameters(options, api.llama_model_n_ctx_train(model))
            )
            if context:
                api.llama_free(context)
        finally:
            if model:
                api.llama_model_free(model)
    del keep
    if not model or not context:
        reason = next((text.strip() for level, text in log if level == 4), "it does not say why")
        raise EngineError(f"{file.path}: llama.cpp cannot plan it: {reason}")
    text = "".join(line for _, line in log)
    compute: dict[str, int] = defaultdict(int)
    names = buffer_owners()
    for buffer_type, size in COMPUTE.findall(text):
        compute[owner(buffer_type, names)] += round(float(size) * MIB)
    return dict(compute), round(sum(map(float, CACHE.findall(text))) * MIB)


def read_allocations(log: str) -> dict[str, dict[str, int]]:
    """Return device -> {"model", "KV", "compute"} -> bytes from the log of a real load."""
    sizes: dict[str, dict[str, int]] = defaultdict(lambda: {"model": 0, "KV": 0, "compute": 0})
    names = buffer_owners()
    for buffer_type, kind, size in BUFFER.findall(log):
        sizes[owner(buffer_type, names)][kind] += round(float(size) * MIB)
    return dict(sizes)


def buffer_owners() -> dict[str, str]:
    """Return buffer type -> device name for every device."""
    return {device.buffer_type: device.name for device in list_devices() if device.buffer_type}


def owner(buffer_type: str, names: dict[str, str]) -> str:
    """Return the device of a buffer named in the log; host buffers such as CPU_Mapped or CUDA_Host are the CPU's."""
    return names.get(buffer_type, CPU)
