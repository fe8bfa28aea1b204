"""Load options in, llama.cpp's parameter structs out, with the arrays that they point to."""

import ctypes
from typing import Any

from gguf.constants import GGMLQuantizationType, Keys

from ..formats.errors import EngineError
from ..formats.gguf_file import GgufFile
from ..formats.llamacpp import c_text, ggml, llama
from .load_options import CACHE_TYPES, LoadOptions
from .placing.devices import device_handle
from .threads import best_thread_count

LARGEST_DEFAULT_CONTEXT = 8192
REPACKED_IN_A_SECOND = 10**9

SPLIT_MODES = {"none": "NONE", "layer": "LAYER", "row": "ROW"}
FLASH_ATTENTION = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}


class TensorOverride(ctypes.Structure):
    """struct llama_model_tensor_buft_override of llama.h."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def model_parameters(file: GgufFile, options: LoadOptions) -> tuple[Any, list[Any]]:
    """Return `llama_model_params` and what must stay alive as long as the model.

    Raises EngineError for a device that is not there.
    """
    api = llama()
    parameters, keep = api.llama_model_default_params(), []
    parameters.n_gpu_layers = options.n_gpu_layers
    parameters.split_mode = getattr(api, f"LLAMA_SPLIT_MODE_{SPLIT_MODES[options.split_mode]}")
    parameters.main_gpu = options.main_gpu
    parameters.load_mode = {
        (False, False): api.LLAMA_LOAD_MODE_NONE,
        (True, False): api.LLAMA_LOAD_MODE_MMAP,
        (False, True): api.LLAMA_LOAD_MODE_MLOCK,
        (True, True): api.LLAMA_LOAD_MODE_MMAP_MLOCK,
    }[options.use_mmap, options.use_mlock]
    parameters.use_extra_bufts = repacks(file, options)
    parameters.vocab_only = options.vocab_only
    if options.devices is not None:
        devices = (ctypes.c_void_p * (len(options.devices) + 1))(*map(device_handle, options.devices), None)
        parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
        keep.append(devices)
    if options.tensor_split:
        shares = (ctypes.c_float * api.LLAMA_MAX_DEVICES)(*options.tensor_split)
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        keep.append(shares)
    if options.tensor_overrides:
        overrides = (TensorOverride * (len(options.tensor_overrides) + 1))()
        for slot, (pattern, name) in zip(overrides, options.tensor_overrides, strict=False):
            slot.pattern, slot.buffer_type = c_text(pattern, "-ot"), buffer_type(name)
        parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        keep.append(overrides)
    if options.n_expert_used is not None:
        keys = _experts_used(file, options.n_expert_used)
        parameters.kv_overrides = ctypes.cast(keys, ctypes.POINTER(api.llama_model_kv_override))
        keep.append(keys)
    return parameters, keep


def context_parameters(options: LoadOptions, n_ctx_train: int) -> Any:
    """Return `llama_context_params`. Raises EngineError for an unknown cache type."""
    api = llama()
    parameters = api.llama_context_default_params()
    parameters.n_ctx = options.n_ctx or default_context(n_ctx_train)
    parameters.n_batch = min(options.n_batch, parameters.n_ctx)
    parameters.n_ubatch = min(options.n_ubatch, parameters.n_batch)
    parameters.n_seq_max = options.n_seq_max
    parameters.kv_unified = options.kv_unified
    parameters.n_threads = options.n_threads or best_thread_count()
    parameters.n_threads_batch = options.n_threads_batch or options.n_threads or best_thread_count()
    parameters.offload_kqv = options.offload_kqv
    parameters.flash_attn_type = getattr(api, f"LLAMA_FLASH_ATTN_TYPE_{FLASH_ATTENTION[options.flash_attn]}")
    parameters.type_k = cache_type(options.cache_type_k)
    parameters.type_v = cache_type(options.cache_type_v)
    return parameters


def default_context(n_ctx_train: int) -> int:
    """Return the context when none is asked for: the trained one, up to what fits most machines."""
    return min(n_ctx_train or LARGEST_DEFAULT_CONTEXT, LARGEST_DEFAULT_CONTEXT)


def repacks(file: GgufFile, options: LoadOptions) -> bool:
    """Decide whether the CPU may copy weights into its own layout, which reads all of the file."""
    if options.repack is not None:
        return options.repack
    return sum(tensor.n_bytes for tensor in file.tensors.values()) <= REPACKED_IN_A_SECOND


def cache_type(name: str) -> int:
    """Return the number of a ggml type that the KV cache can have."""
    if name not in CACHE_TYPES:
        raise EngineError(f"{name!r} is not a type for the KV cache; use one of {', '.join(CACHE_TYPES)}")
    return int(GGMLQuantizationType[name.upper()])


def buffer_type(name: str) -> int:
    """Return the buffer type in which tensors on a device lie; that of "CPU" is plain, mappable memory."""
    base = ggml("ggml-base")
    base.ggml_backend_dev_buffer_type.restype = ctypes.c_void_p
    base.ggml_backend_dev_buffer_type.argtypes = [ctypes.c_void_p]
    return base.ggml_backend_dev_buffer_type(device_handle(name))


def _experts_used(file: GgufFile, n_expert_used: int) -> Any:
    """Return llama.cpp's override of the experts per token, ended by an empty key."""
    n_expert = file.hyper(Keys.LLM.EXPERT_COUNT, 0)
    if not 1 <= n_expert_used <= n_expert:
        raise EngineError(f"{file.path}: cannot use {n_expert_used} of its {n_expert} experts per token")
    api = llama()
    keys = (api.llama_model_kv_override * 2)()
    keys[0].tag = api.LLAMA_KV_OVERRIDE_TYPE_INT
    keys[0].key = Keys.LLM.EXPERT_USED_COUNT.format(arch=file.architecture).encode()
    keys[0].value.val_i64 = n_expert_used
    return keys
