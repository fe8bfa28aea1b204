"""The options of every command that loads a model, with llama.cpp's names, and what they mean together."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..formats.errors import EngineError
from .terminal import detail, say, warn

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..runner.engine import Engine
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model
    from ..runner.placing.devices import Device
    from ..runner.placing.memory import ModelFacts

Command = TypeVar("Command", bound=Callable[..., Any])
CACHE_TYPES = click.Choice(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
POSITIVE = click.IntRange(min=1)
PLACING = ("n_gpu_layers", "cpu_moe", "n_cpu_moe", "override_tensor", "tensor_split", "split_mode", "main_gpu")

BUDGET_OPTIONS = (
    click.option("--fit/--no-fit", default=True, show_default=True, help="Place the model so that it fits."),
    click.option("--vram", metavar="SIZE,...", help="Use at most this much memory of each device (8G, or 8G,6G)."),
    click.option("--ram", metavar="SIZE", help="Use at most this much of the machine's memory."),
    click.option("--rpc", metavar="HOST:PORT,...", help="Use the devices of these workers too."),
)
CONTEXT_OPTIONS = (
    click.option("-c", "--ctx-size", type=click.IntRange(min=0), help="Tokens of context (0: as many as trained)."),
    click.option("-b", "--batch-size", type=POSITIVE, help="Most tokens per call of llama.cpp  [default: 2048]"),
    click.option("-ub", "--ubatch-size", type=POSITIVE, help="Most tokens computed at once  [default: 512]"),
    click.option(
        "-fa", "--flash-attn", type=click.Choice(["auto", "on", "off"]), help="Flash attention  [default: auto]"
    ),
    click.option("-ctk", "--cache-type-k", type=CACHE_TYPES, help="Type of the K cache  [default: f16]"),
    click.option("-ctv", "--cache-type-v", type=CACHE_TYPES, help="Type of the V cache  [default: f16]"),
    click.option("--n-expert-used", type=POSITIVE, metavar="K", help="Experts per token (1 is the Switch layer)."),
)
PLACING_OPTIONS = (
    click.option("-ngl", "--n-gpu-layers", "--gpu-layers", metavar="N", help="Layers on devices, from the last one."),
    click.option("-cmoe", "--cpu-moe", is_flag=True, help="Keep all experts on the CPU."),
    click.option("-ncmoe", "--n-cpu-moe", type=click.IntRange(min=0), help="Keep the first N layers' experts there."),
    click.option("-ot", "--override-tensor", multiple=True, metavar="REGEX=DEVICE", help="Put matching tensors there."),
    click.option("-ts", "--tensor-split", metavar="N,N,...", help="Shares of the layers per device."),
    click.option("-mg", "--main-gpu", type=click.IntRange(min=0), help="The device that -sm none uses."),
    click.option("-sm", "--split-mode", type=click.Choice(["none", "layer", "row"]), help="Split over devices how."),
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
    click.option("--mlock", is_flag=True, help="Forbid the system to drop the model from memory."),
    click.option("--numa", type=click.Choice(["distribute", "isolate", "numactl"]), help="Strategy on NUMA machines."),
)
OPTIONS = BUDGET_OPTIONS + CONTEXT_OPTIONS + PLACING_OPTIONS + MACHINE_OPTIONS


def loading_options(command: Command) -> Command:
    """Give a command the options of loading; it receives them as keywords, for `build_load_options`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def load_model(path: Path, values: Mapping[str, Any]) -> "tuple[Model, Engine]":
    """Load a model and one context as the options say, stepping down when memory does not suffice after all.

    The caller closes both, the engine first. Raises GgufError or EngineError.
    """
    from ..formats.gguf_file import read_gguf
    from ..runner.engine import Engine
    from ..runner.model import Model
    from ..runner.placing.fallback import load_with_fallback
    from ..runner.placing.memory import read_facts

    file = read_gguf(path)
    facts = read_facts(file)
    options = choose_options(file, facts, values)

    def load(options: "LoadOptions") -> "tuple[Model, Engine]":
        model = Model(path, options)
        try:
            return model, Engine(model, options)
        except BaseException:
            model.close()
            raise

    if not values.get("fit", True):
        return load(options)
    return load_with_fallback(load, facts, options, warn, keep_context=bool(values.get("ctx_size")))[0]


def build_load_options(path: Path, values: Mapping[str, Any]) -> "LoadOptions":
    """Return how to load a file: the plan, unless the manual flags say otherwise.

    `values` are the keywords of `loading_options`; what is missing has its default. Raises GgufError for a broken
    file and EngineError for options that make no sense or a model that does not fit.
    """
    from ..formats.gguf_file import read_gguf
    from ..runner.placing.memory import read_facts

    file = read_gguf(path)
    return choose_options(file, read_facts(file), values)


def choose_options(file: "GgufFile", facts: "ModelFacts", values: Mapping[str, Any]) -> "LoadOptions":
    """Return how to load a file whose header was read; see `build_load_options`."""
    from ..runner.placing.placement import plan_file

    devices = available_devices(values)
    manual = read_manual(values, facts, devices)
    if not values.get("fit", True):
        return manual
    if is_placed(values):
        return shrink_context(file, facts, devices, manual)
    placement = plan_file(file, facts, devices, manual, hurry=True)
    for note in placement.notes:
        say(note)
    for name, memory in placement.memory.items():
        detail(
            f"{name}: {memory.weights / 1e9:.2f} GB weights, {memory.kv / 1e9:.2f} cache, {memory.compute / 1e9:.2f}"
        )
    return placement.options


def is_placed(values: Mapping[str, Any]) -> bool:
    """Tell whether the manual flags place the model, so that nothing is left to plan but the context."""
    return any(values.get(key) not in (None, False, ()) for key in PLACING) or values.get("device") == "none"


def shrink_context(
    file: "GgufFile", facts: "ModelFacts", devices: "list[Device]", manual: "LoadOptions"
) -> "LoadOptions":
    """Return manual options with the largest of the default contexts that fits; one that was asked for stays."""
    from dataclasses import replace

    from ..runner.placing.memory import context_length
    from ..runner.placing.placement import contexts, evaluate, measured, overfull

    if manual.n_ctx or manual.split_mode == "row":
        return manual
    for n_ctx in contexts(context_length(facts, manual)):
        options = replace(manual, n_ctx=n_ctx)
        if not overfull(measured(file, evaluate(facts, devices, options)), devices):
            return options
    return manual


def available_devices(values: Mapping[str, Any], hypothetical: bool = False) -> "list[Device]":
    """Return the devices to plan for: this machine's and the workers', as --device and the budgets leave them."""
    from ..formats.sizes import parse_size
    from ..runner.placing.devices import list_devices
    from ..runner.placing.placement import with_budgets
    from ..runner.placing.rpc import add_servers

    if values.get("rpc"):
        add_servers(split_list(values["rpc"]))
    devices = list_devices()
    if values.get("device"):
        names = [] if values["device"] == "none" else split_list(values["device"])
        by_name = {device.name: device for device in devices}
        if unknown := [name for name in names if name not in by_name]:
            raise EngineError(f"there is no device {unknown[0]!r}; there are {', '.join(by_name)}")
        devices = [d for d in devices if not d.offloads and d.name not in names] + [by_name[name] for name in names]
    vram = [parse_size(size, "memory") for size in split_list(values.get("vram") or "")]
    ram = parse_size(values["ram"], "memory") if values.get("ram") else None
    if vram and not hypothetical and not any(device.offloads for device in devices):
        warn("--vram changes nothing here: llama.cpp has no device beside the CPU (see moe-gguf devices)")
        vram = []
    return with_budgets(devices, vram, ram, hypothetical)


def read_manual(values: Mapping[str, Any], facts: "ModelFacts", devices: "list[Device]") -> "LoadOptions":
    """Return the load options that the manual flags alone amount to."""
    from ..runner.load_options import LoadOptions
    from ..runner.placing.memory import CPU, EXPERTS
    from ..runner.placing.placement import expert_pattern

    names = {device.buffer_type: device.name for device in devices} | {device.name: device.name for device in devices}
    overrides = []
    for word in (part for value in values.get("override_tensor") or () for part in split_list(value)):
        pattern, _, device = word.rpartition("=")
        if not pattern or device not in names:
            raise EngineError(f"-ot {word!r}: write REGEX=DEVICE with one of the devices {', '.join(names.values())}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise EngineError(f"-ot {word!r}: {pattern!r} is no regular expression: {error}") from None
        overrides.append((pattern, names[device]))
    if values.get("cpu_moe"):
        overrides.append((EXPERTS, CPU))
    if n_layer := min(values.get("n_cpu_moe") or 0, facts.n_layer):
        overrides.append((expert_pattern(0, n_layer), CPU))
    n_ctx = values.get("ctx_size")
    fields: dict[str, Any] = {
        "n_ctx": facts.n_ctx_train if n_ctx == 0 else n_ctx,
        "n_threads": values.get("threads"),
        "n_threads_batch": values.get("threads_batch"),
        "n_batch": values.get("batch_size"),
        "n_ubatch": values.get("ubatch_size"),
        "n_gpu_layers": read_layer_count(values.get("n_gpu_layers")),
        "tensor_overrides": tuple(overrides),
        "tensor_split": read_shares(values.get("tensor_split") or ""),
        "main_gpu": values.get("main_gpu"),
        "split_mode": values.get("split_mode"),
        "numa": values.get("numa"),
        "flash_attn": values.get("flash_attn"),
        "cache_type_k": values.get("cache_type_k"),
        "cache_type_v": values.get("cache_type_v"),
        "n_expert_used": values.get("n_expert_used"),
        "repack": values.get("repack"),
        "use_mlock": bool(values.get("mlock")),
        "use_mmap": not values.get("no_mmap"),
        "offload_kqv": not values.get("no_kv_offload"),
    }
    if values.get("device"):
        fields["devices"] = () if values["device"] == "none" else tuple(split_list(values["device"]))
    return LoadOptions(**{key: value for key, value in fields.items() if value is not None})


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
