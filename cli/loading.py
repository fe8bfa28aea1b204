"""The options of every command that loads a model, with llama.cpp's names, and what they mean together."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ..formats.errors import EngineError
from ..jobs.loading import LoadRequest
from ..runner.load_options import CACHE_TYPES

Command = TypeVar("Command", bound=Callable[..., Any])
CACHE_TYPE = click.Choice(CACHE_TYPES, case_sensitive=False)
POSITIVE = click.IntRange(min=1)
# The keywords that a LoadRequest takes as they are, and what it calls them.
SAME = {
    "fit": "fit",
    "ctx_size": "n_ctx",
    "batch_size": "n_batch",
    "ubatch_size": "n_ubatch",
    "flash_attn": "flash_attn",
    "cache_type_k": "cache_type_k",
    "cache_type_v": "cache_type_v",
    "n_expert_used": "n_expert_used",
    "cpu_moe": "cpu_moe",
    "n_cpu_moe": "n_cpu_moe",
    "main_gpu": "main_gpu",
    "split_mode": "split_mode",
    "threads": "n_threads",
    "threads_batch": "n_threads_batch",
    "repack": "repack",
    "mlock": "use_mlock",
    "numa": "numa",
}

BUDGET_OPTIONS = (
    click.option("--fit/--no-fit", default=True, show_default=True, help="Place the model so that it fits."),
    click.option(
        "--vram", metavar="SIZE,...", help="Use at most this much memory on each device, e.g. 8G, or 8G,6G for two."
    ),
    click.option("--ram", metavar="SIZE", help="Use at most this much of this machine's memory."),
    click.option("--rpc", metavar="HOST:PORT,...", help="Use the devices of these workers too."),
)
# How tokens are read, whatever the context is.
READING_OPTIONS = (
    click.option("-b", "--batch-size", type=POSITIVE, help="Maximum tokens per call of llama.cpp  [default: 2048]"),
    click.option("-ub", "--ubatch-size", type=POSITIVE, help="Maximum tokens computed at once  [default: 512]"),
    click.option(
        "-fa", "--flash-attn", type=click.Choice(["auto", "on", "off"]), help="Flash attention  [default: auto]"
    ),
    click.option("-ctk", "--cache-type-k", type=CACHE_TYPE, help="Type of the K cache  [default: f16]"),
    click.option("-ctv", "--cache-type-v", type=CACHE_TYPE, help="Type of the V cache  [default: f16]"),
    click.option("--n-expert-used", type=POSITIVE, metavar="K", help="Experts per token (1 is the Switch layer)."),
)
CONTEXT_OPTIONS = (
    click.option(
        "-c", "--ctx-size", type=click.IntRange(min=0), help="Context size in tokens; 0 is what it was trained with."
    ),
    *READING_OPTIONS,
)
PLACING_OPTIONS = (
    click.option(
        "-ngl", "--n-gpu-layers", "--gpu-layers", metavar="N", help="Number of layers on devices, from the last one."
    ),
    click.option("-cmoe", "--cpu-moe", is_flag=True, help="Keep all experts on the CPU."),
    click.option(
        "-ncmoe", "--n-cpu-moe", type=click.IntRange(min=0), help="Keep the experts of the first N layers on the CPU."
    ),
    click.option(
        "-ot",
        "--override-tensor",
        multiple=True,
        metavar="REGEX=DEVICE",
        help="Place tensors that match REGEX on DEVICE.",
    ),
    click.option("-ts", "--tensor-split", metavar="N,N,...", help="Shares of the layers per device."),
    click.option("-mg", "--main-gpu", type=click.IntRange(min=0), help="The device that -sm none uses."),
    click.option(
        "-sm",
        "--split-mode",
        type=click.Choice(["none", "layer", "row"]),
        help="How to split the model across devices.",
    ),
    click.option("-dev", "--device", metavar="NAME,...", help="Use only these devices, in this order (or none)."),
    click.option("-nkvo", "--no-kv-offload", is_flag=True, help="Keep the KV cache on the CPU."),
)
MACHINE_OPTIONS = (
    click.option("-t", "--threads", type=POSITIVE, help="Threads  [default: physical cores]"),
    click.option("-tb", "--threads-batch", type=POSITIVE, help="Threads for prompts  [default: as -t]"),
    click.option("--no-mmap", is_flag=True, help="Read the file into memory instead of mapping it."),
    click.option(
        "--repack/--no-repack",
        default=None,
        help="Let the CPU copy weights into a layout that makes prompts faster; reads the whole file first  "
        "[default: files up to 1 GB]",
    ),
    click.option("--mlock", is_flag=True, help="Keep the model in memory: the system may not page it out."),
    click.option("--numa", type=click.Choice(["distribute", "isolate", "numactl"]), help="Strategy on NUMA machines."),
)
OPTIONS = BUDGET_OPTIONS + CONTEXT_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS


def loading_options(command: Command) -> Command:
    """Give a command the options of loading; it receives them as keywords, for `load_request`."""
    return with_options(OPTIONS)(command)


def with_options(options: tuple[Callable[..., Any], ...]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command some of the options, in their order."""

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def load_request(values: Mapping[str, Any]) -> LoadRequest:
    """Return what the keywords of `loading_options` ask for; what is missing has its default.

    Raises EngineError and PlanError for a value that makes no sense.
    """
    from ..formats.sizes import parse_size

    fields: dict[str, Any] = {field: values[key] for key, field in SAME.items() if values.get(key) is not None}
    fields["override_tensors"] = tuple(
        read_override(word) for value in values.get("override_tensor") or () for word in split_list(value)
    )
    fields["n_gpu_layers"] = read_layer_count(values.get("n_gpu_layers"))
    fields["tensor_split"] = read_shares(values.get("tensor_split") or "")
    fields["use_mmap"] = not values.get("no_mmap")
    fields["offload_kqv"] = not values.get("no_kv_offload")
    fields["rpc"] = tuple(split_list(values.get("rpc") or ""))
    fields["vram"] = tuple(parse_size(size, "memory") for size in split_list(values.get("vram") or ""))
    fields["ram"] = parse_size(values["ram"], "memory") if values.get("ram") else None
    if values.get("device"):
        fields["devices"] = () if values["device"] == "none" else tuple(split_list(values["device"]))
    return LoadRequest(**fields)


def read_override(word: str) -> tuple[str, str]:
    """Return the regular expression and the device of one -ot REGEX=DEVICE."""
    pattern, _, device = word.rpartition("=")
    if not pattern:
        raise EngineError(f"-ot {word!r}: write REGEX=DEVICE")
    return pattern, device


def read_layer_count(text: str | None) -> int | None:
    """Return the layers of -ngl: a number, or -1 for "all"."""
    if text is None or text in ("all", "auto", "-1"):
        return None if text is None else -1
    if not text.isdigit():
        raise EngineError(f"-ngl {text!r}: write a number of layers, or all")
    return int(text)


def read_shares(text: str) -> tuple[float, ...]:
    """Return the numbers of -ts "3,1"; raises EngineError for others."""
    try:
        shares = tuple(float(word) for word in split_list(text.replace("/", ",")))
    except ValueError:
        shares = (-1.0,)
    if not all(0 <= share < float("inf") for share in shares) or (shares and not sum(shares)):
        raise EngineError(f"-ts {text!r}: write the share of each device, such as 3,1")
    return shares


def split_list(text: str) -> list[str]:
    """Return the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
