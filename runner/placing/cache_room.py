"""A model and load options in; refuses a context whose cache no device here can hold.

llama.cpp would try: memory is promised by the system, then touched, until the process or another one is ended.
"""

from ...formats.errors import EngineError
from ...formats.gguf_file import GgufFile
from ...formats.sizes import granted, needed
from ..limits import system_memory
from ..load_options import LoadOptions
from .devices import list_devices
from .memory import context_length, kv_bytes, read_facts


def check_cache_room(file: GgufFile, options: LoadOptions) -> None:
    """Raise EngineError when the KV cache is larger than all memory of this machine and its devices."""
    facts = read_facts(file)
    n_bytes = sum(kv_bytes(facts, options))
    there = system_memory()[1] + sum(device.total_bytes for device in list_devices() if device.offloads)
    if n_bytes > there:
        raise EngineError(
            f"{file.path}: a context of {context_length(facts, options)} tokens needs {needed(n_bytes)} for its "
            f"cache, and there are {granted(there)}; use a smaller -c/--ctx-size"
        )
