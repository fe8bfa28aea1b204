"""How a model is loaded: what placement decides and the engine carries out, in llama.cpp's own words."""

from dataclasses import dataclass

# kv_cache_types in llama.cpp's common/arg.cpp
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


@dataclass(frozen=True)
class LoadOptions:
    """Everything that `llama_model_params` and `llama_context_params` are filled from.

    `None` asks for llama.cpp's or the engine's own choice: the context that the model was trained on (at
    most), physical cores, all devices.

    - n_ctx: tokens of context in total, shared by `n_seq_max` sequences (the cache is unified).
    - kv_unified: whether sequences share one cache; else each has n_ctx / n_seq_max tokens of its own, as in
      llama.cpp's measuring tools.
    - n_batch, n_ubatch: most tokens per call of llama_decode, and per graph computed.
    - n_gpu_layers: layers on devices, counted from the last one; -1 is all of them.
    - tensor_overrides: (regular expression over tensor names, device name), first match wins, as in llama.cpp's
      `--override-tensor`; the device "CPU" is plain memory.
    - tensor_split: shares of the layers per device, in the order of `devices`.
    - devices: names of devices to use, in order; () uses none but the CPU.
    - split_mode: "layer", "row" or "none"; main_gpu is the one that "none" uses.
    - offload_kqv: whether the KV cache of a layer lies on the layer's device.
    - numa: "distribute", "isolate", "numactl" or None.
    - flash_attn: "auto", "on" or "off"; cache_type_k, cache_type_v: ggml types by name, such as "f16", "q8_0".
    - n_expert_used: experts per token instead of the file's `<arch>.expert_used_count`.
    - repack: whether the CPU copies weights into a layout that makes prompts faster: the whole file is then read
      and held in memory that cannot be given back. None does so for files that this takes under a second for.
    - vocab_only: load the vocabulary and no weights.
    """

    n_ctx: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_gpu_layers: int = -1
    tensor_overrides: tuple[tuple[str, str], ...] = ()
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    split_mode: str = "layer"
    devices: tuple[str, ...] | None = None
    offload_kqv: bool = True
    use_mmap: bool = True
    use_mlock: bool = False
    numa: str | None = None
    flash_attn: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    n_expert_used: int | None = None
    n_seq_max: int = 1
    kv_unified: bool = True
    repack: bool | None = None
    vocab_only: bool = False
