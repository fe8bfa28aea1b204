"""A GGUF file becomes a model with a context: a typed wish comes in, placed and with what memory allows it goes out."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import EngineError
from ..formats.llamacpp import listening
from .listener import SILENT, Listener

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..runner.engine import Engine
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model
    from ..runner.placing.devices import Device
    from ..runner.placing.memory import ModelFacts


@dataclass(frozen=True)
class LoadRequest:
    """How a model is to be loaded; None and empty leave a choice to the plan, or to llama.cpp's default.

    `vram` is bytes per device, `ram` bytes of this machine; `rpc` names workers (HOST:PORT); `devices` () is the CPU
    alone. `n_ctx` 0 is what the model was trained for. `override_tensors` are (regular expression, device).
    """

    fit: bool = True
    vram: tuple[int, ...] = ()
    ram: int | None = None
    rpc: tuple[str, ...] = ()
    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    flash_attn: str | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    n_expert_used: int | None = None
    n_seq_max: int = 1
    kv_unified: bool = True
    n_gpu_layers: int | None = None
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    override_tensors: tuple[tuple[str, str], ...] = ()
    tensor_split: tuple[float, ...] = ()
    main_gpu: int | None = None
    split_mode: str | None = None
    devices: tuple[str, ...] | None = None
    offload_kqv: bool = True
    n_threads: int | None = None
    n_threads_batch: int | None = None
    use_mmap: bool = True
    repack: bool | None = None
    use_mlock: bool = False
    numa: str | None = None

    @property
    def is_placed(self) -> bool:
        """Whether it places the model by itself, so that nothing is left to plan but the context."""
        chosen = (self.n_gpu_layers, self.main_gpu, self.split_mode)
        return (
            any(one is not None for one in chosen)
            or bool(self.cpu_moe or self.n_cpu_moe or self.override_tensors or self.tensor_split)
            or self.devices == ()
        )


DEFAULT_LOAD = LoadRequest()

# What LoadRequest and LoadOptions call by the same name, where None leaves llama.cpp's default.
_SAME = (
    *("n_threads", "n_threads_batch", "n_batch", "n_ubatch", "n_gpu_layers", "main_gpu", "split_mode", "numa"),
    *("flash_attn", "cache_type_k", "cache_type_v", "n_expert_used", "repack", "devices", "n_seq_max", "kv_unified"),
    *("use_mlock", "use_mmap", "offload_kqv", "tensor_split"),
)


@contextmanager
def opened_engine(
    path: Path, request: LoadRequest = DEFAULT_LOAD, listener: Listener = SILENT, on_eval: object = None
) -> "Iterator[Engine]":
    """Load a model and a context as `request` says, and close both in the end; what llama.cpp logs is a detail.

    `on_eval` is the callback of a runner.tap.Tap, which then hears the graphs that are computed.
    """
    with listening(_by_line(listener.detail)):
        (model, engine), _ = _load(path, request, listener, on_eval)
    with model, engine:
        yield engine


def _by_line(tell: Callable[[str], None]) -> Callable[[int, str], None]:
    """Return a listener of llama.cpp's log, which comes in pieces, that tells whole lines."""
    pending = ""

    def heard(_: int, text: str) -> None:
        nonlocal pending
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            tell(line)

    return heard


@contextmanager
def opened_model(
    path: Path, request: LoadRequest = DEFAULT_LOAD, listener: Listener = SILENT
) -> "Iterator[tuple[Model, LoadOptions]]":
    """Load a model for contexts of one's own, to be made with the options that come with it; close it in the end."""
    with listening(_by_line(listener.detail)):
        (model, engine), options = _load(path, request, listener)
    engine.close()
    with model:
        yield model, options


def load_model(
    path: Path, request: LoadRequest, listener: Listener = SILENT, on_eval: object = None
) -> "tuple[Model, Engine]":
    """Load a model and one context as `request` says, stepping down when memory does not suffice after all.

    `on_eval`: see runner.engine.Engine. The caller closes both, the engine first. Raises GgufError or EngineError.
    """
    return _load(path, request, listener, on_eval)[0]


def _load(
    path: Path, request: LoadRequest, listener: Listener, on_eval: object = None
) -> "tuple[tuple[Model, Engine], LoadOptions]":
    from ..formats.gguf_file import read_gguf
    from ..models.gguf_kind import demand_model
    from ..models.pre_tokenizers import missing_pre_tokenizer
    from ..runner.engine import Engine
    from ..runner.model import Model
    from ..runner.placing.fallback import load_with_fallback
    from ..runner.placing.memory import read_facts

    file = read_gguf(path)
    demand_model(file)
    if warning := missing_pre_tokenizer(file.metadata):
        listener.warn(warning)
    facts = read_facts(file)
    n_ctx = (request.n_ctx or 0) // (1 if request.kv_unified else request.n_seq_max)
    if facts.n_ctx_train and n_ctx > facts.n_ctx_train:
        listener.warn(
            f"a context of {n_ctx} tokens is more than the {facts.n_ctx_train} that {path} was trained for; "
            "answers become nonsense beyond them"
        )
    options = choose_options(file, facts, request, listener)

    def load(options: "LoadOptions") -> "tuple[Model, Engine]":
        model = Model(path, options, file)
        for remark in model.remarks:
            listener.warn(remark)
        try:
            return model, Engine(model, options, on_eval)
        except BaseException:
            model.close()
            raise

    if not request.fit:
        return load(options), options
    return load_with_fallback(load, facts, options, listener.warn, keep_context=bool(request.n_ctx))


def load_options(path: Path, request: LoadRequest, listener: Listener = SILENT) -> "LoadOptions":
    """Return how to load a file: the plan, unless the request places the model itself.

    Raises GgufError for a broken file and EngineError for wishes that make no sense or a model that does not fit.
    """
    from ..formats.gguf_file import read_gguf
    from ..models.gguf_kind import demand_model
    from ..runner.placing.memory import read_facts

    file = read_gguf(path)
    demand_model(file)
    return choose_options(file, read_facts(file), request, listener)


def choose_options(
    file: "GgufFile", facts: "ModelFacts", request: LoadRequest, listener: Listener = SILENT
) -> "LoadOptions":
    """Return how to load a file whose header was read; see `load_options`."""
    from ..runner.placing.placement import plan_file

    devices = available_devices(request, listener)
    manual = wished_options(request, facts, devices)
    if not request.fit:
        return manual
    if request.is_placed:
        return shrink_context(file, facts, devices, manual)
    placement = plan_file(file, facts, devices, manual, hurry=True)
    for note in placement.notes:
        listener.say(note)
    for name, memory in placement.memory.items():
        listener.detail(
            f"{name}: {memory.weights / 1e9:.2f} GB weights, {memory.kv / 1e9:.2f} cache, {memory.compute / 1e9:.2f}"
        )
    return placement.options


def shrink_context(
    file: "GgufFile", facts: "ModelFacts", devices: "list[Device]", manual: "LoadOptions"
) -> "LoadOptions":
    """Return manual options with the largest of the default contexts that fits; one that was asked for stays."""
    from ..runner.placing.memory import context_length
    from ..runner.placing.placement import contexts, evaluate, measured, overfull

    if manual.n_ctx or manual.split_mode == "row":
        return manual
    for n_ctx in contexts(context_length(facts, manual)):
        options = replace(manual, n_ctx=n_ctx)
        if not overfull(measured(file, evaluate(facts, devices, options)), devices):
            return options
    return manual


def available_devices(request: LoadRequest, listener: Listener = SILENT, hypothetical: bool = False) -> "list[Device]":
    """Return the devices to plan for: this machine's and the workers', as the request's devices and budgets leave them.

    Raises EngineError for a device that is not there and a worker that does not answer.
    """
    from ..runner.placing.devices import list_devices
    from ..runner.placing.placement import with_budgets
    from ..runner.placing.rpc import add_servers

    if request.rpc:
        add_servers(list(request.rpc))
    devices = list_devices()
    if request.devices is not None:
        by_name = {device.name: device for device in devices}
        if unknown := [name for name in request.devices if name not in by_name]:
            raise EngineError(f"there is no device {unknown[0]!r}; there are {', '.join(by_name)}")
        devices = [d for d in devices if not d.offloads and d.name not in request.devices]
        devices += [by_name[name] for name in request.devices]
    vram = list(request.vram)
    if not hypothetical and not any(device.offloads for device in devices):
        if flags := device_flags(request):
            listener.warn(
                f"{', '.join(flags)} {'changes' if len(flags) == 1 else 'change'} nothing here: llama.cpp has no "
                "device beside the CPU (see moe-gguf devices)"
            )
        vram = []
    return with_budgets(devices, vram, request.ram, hypothetical)


def device_flags(request: LoadRequest) -> list[str]:
    """Return the flags of a request that are about devices beside the CPU."""
    wishes = {
        "--vram": request.vram,
        "-ngl": request.n_gpu_layers,
        "-cmoe": request.cpu_moe,
        "-ncmoe": request.n_cpu_moe,
        "-ts": request.tensor_split,
        "-mg": request.main_gpu,
        "-sm": request.split_mode not in (None, "none"),
        "-nkvo": not request.offload_kqv,
    }
    return [flag for flag, wish in wishes.items() if wish]


def wished_options(request: LoadRequest, facts: "ModelFacts", devices: "list[Device]") -> "LoadOptions":
    """Return the load options that the request alone amounts to. Raises EngineError for an override of no device."""
    from ..runner.load_options import LoadOptions
    from ..runner.placing.memory import CPU, EXPERTS
    from ..runner.placing.placement import expert_pattern

    names = {device.buffer_type: device.name for device in devices} | {device.name: device.name for device in devices}
    overrides = []
    for pattern, device in request.override_tensors:
        if device not in names:
            raise EngineError(
                f"-ot {f'{pattern}={device}'!r}: write REGEX=DEVICE with one of the devices {', '.join(names.values())}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise EngineError(f"-ot {f'{pattern}={device}'!r}: {pattern!r} is no regular expression: {error}") from None
        overrides.append((pattern, names[device]))
    if request.cpu_moe:
        overrides.append((EXPERTS, CPU))
    if n_layer := min(request.n_cpu_moe, facts.n_layer):
        overrides.append((expert_pattern(0, n_layer), CPU))
    fields: dict[str, Any] = {name: getattr(request, name) for name in _SAME}
    fields["n_ctx"] = facts.n_ctx_train if request.n_ctx == 0 else request.n_ctx
    fields["tensor_overrides"] = tuple(overrides)
    return LoadOptions(**{key: value for key, value in fields.items() if value is not None})
