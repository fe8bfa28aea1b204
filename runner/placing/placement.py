"""Where the parts of a model go: facts, devices and wishes in, load options with reasons out.

The order is that of a mixture of experts: what every token needs first (attention, norms, routers, shared experts,
the KV cache, the output), then the experts of as many layers as fit, and never what would not fit.

Long because it is one search, from what is wished to what fits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...formats.errors import EngineError
from ...formats.gguf_file import GgufFile
from ...formats.sizes import granted, needed
from ...models.kv_cache import CONTEXT_STEP
from ..load_options import LoadOptions
from .devices import Device
from .dryload import measure
from .memory import (
    BLOCK,
    CPU,
    EXPERTS,
    Memory,
    ModelFacts,
    context_length,
    kv_bytes,
    locate,
    predict,
)

SMALLEST_CONTEXT = 512
ATTEMPTS = 5
MARGIN_SHARE, LARGEST_MARGIN = 0.06, 512 * 1024 * 1024
HYPOTHETICAL = "hypothetical"
KIND_ORDER = {"gpu": 0, "igpu": 1, "rpc": 2}


@dataclass(frozen=True)
class Placement:
    """A plan. `options` carries it out; `memory` is by device name; `devices` are those planned with."""

    facts: ModelFacts
    devices: tuple[Device, ...]
    options: LoadOptions
    memory: Mapping[str, Memory]
    tensors: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def n_ctx(self) -> int:
        """Tokens of context that the plan allots."""
        return context_length(self.facts, self.options)


Predict = Callable[[ModelFacts, LoadOptions, Sequence[str]], dict[str, Memory]]


def plan(facts: ModelFacts, devices: Sequence[Device], wish: LoadOptions, predict: Predict = predict) -> Placement:
    """Return where everything goes, within what each device has free; a pure function.

    `wish` fixes what is not placement (context, cache types, batch); its `offload_kqv` is obeyed. A context that is
    not asked for shrinks to fit. Raises EngineError when the model does not fit with any placement.
    """
    order = rank(devices)
    wish = replace(wish, devices=None, tensor_overrides=(), tensor_split=(), n_gpu_layers=-1)
    asked = context_length(facts, wish)
    for n_ctx in [asked] if wish.n_ctx else contexts(asked):
        if options := arrange(facts, order, replace(wish, n_ctx=n_ctx), predict):
            notes = () if n_ctx == asked else (f"the context is {n_ctx} tokens, because {asked} do not fit",)
            return evaluate(facts, devices, options, predict, notes)
    raise too_large(facts, order, replace(wish, n_ctx=wish.n_ctx or SMALLEST_CONTEXT), predict)


def evaluate(
    facts: ModelFacts,
    devices: Sequence[Device],
    options: LoadOptions,
    predict: Predict = predict,
    notes: tuple[str, ...] = (),
) -> Placement:
    """Return the placement that given options amount to, without judging whether it fits."""
    names = options.devices if options.devices is not None else tuple(d.name for d in llama_order(devices))
    if len(names) > 1 and not options.tensor_split:
        free = {device.name: device.free_bytes for device in devices}
        options = replace(options, tensor_split=tuple(float(free[name]) for name in names))
    options = replace(options, devices=names)
    memory = predict(facts, options, names)
    cpu = next((device for device in devices if device.kind == "cpu"), None)
    if cpu and memory[CPU].total > cpu.free_bytes:
        notes += (
            f"{needed(memory[CPU].total)} are more than the {granted(cpu.free_bytes)} of memory that are free now; "
            "the system reads weights from the file again whenever it drops them, which is slow",
        )
    return Placement(facts, tuple(devices), options, memory, locate(facts, options, names), notes)


def plan_file(
    file: GgufFile, facts: ModelFacts, devices: Sequence[Device], wish: LoadOptions, hurry: bool = False
) -> Placement:
    """Plan, then let llama.cpp simulate the load, and plan again with less room where it needs more.

    The memory of the result is llama.cpp's own where it says it; in a hurry, a model that needs no device and little
    of the memory is not simulated. Raises EngineError when nothing fits.
    """
    if hurry and not any(device.offloads for device in devices):
        placement = plan(facts, devices, wish)
        if 2 * placement.memory[CPU].total < min(device.free_bytes for device in rank(devices)):
            return placement
    reserved: dict[str, int] = {}
    for _ in range(ATTEMPTS):
        shrunk = [replace(d, free_bytes=d.free_bytes - reserved.get(d.name, 0)) for d in devices]
        placement = measured(file, plan(facts, shrunk, wish))
        if not overfull(placement, devices):
            break
        for name, memory in placement.memory.items():
            estimate = predict(facts, placement.options, placement.options.devices or ())[name]
            reserved[name] = max(reserved.get(name, 0), memory.total - estimate.total)
    else:
        raise too_large(facts, rank(devices), wish, predict)
    return replace(placement, devices=tuple(devices))


def measured(file: GgufFile, placement: Placement) -> Placement:
    """Return the placement with the compute buffers and the size of the cache that llama.cpp simulates."""
    compute, cache = measure(file, placement.options)
    predicted = sum(memory.kv for memory in placement.memory.values())
    scale = cache / predicted if cache and predicted else 1.0
    memory = {
        name: replace(m, kv=round(m.kv * scale), compute=compute.get(name, 0)) for name, m in placement.memory.items()
    }
    return replace(placement, memory=memory)


def overfull(placement: Placement, devices: Sequence[Device]) -> list[str]:
    """Return the names of the devices that the plan would fill more than they have room."""
    return [d.name for d in rank(devices) if not fits(d, placement.memory, placement.options, devices)]


def fits(device: Device, memory: Mapping[str, Memory], options: LoadOptions, devices: Sequence[Device]) -> bool:
    """Tell whether a device has room for its part.

    Weights in a mapped file may exceed the memory that is free now, since the system can drop and read them again,
    but not all that there is. Integrated GPUs live in the CPU's memory.
    """
    need = memory.get(device.name, Memory())
    if device.kind != "cpu":
        return need.total <= room(device)
    shared = sum(memory[d.name].total for d in devices if d.shares_ram and d.name in memory)
    if options.use_mmap and not options.use_mlock:
        margin = device.free_bytes - room(device)
        return need.kv + need.compute + shared <= room(device) and need.total + shared <= device.total_bytes - margin
    return need.total + shared <= room(device)


def complete_layers(placement: Placement) -> int:
    """Return how many layers lie on devices with all their tensors."""
    home = {block[1] for name, d in placement.tensors.items() if d == CPU and (block := BLOCK.match(name))}
    return placement.facts.n_layer - len(home)


def llama_order(devices: Sequence[Device]) -> list[Device]:
    """Return the devices that llama.cpp uses unless told which, in its order (src/llama.cpp): workers come first."""
    local = [device for device in devices if device.kind == "gpu"]
    local = local or [device for device in devices if device.kind == "igpu"]
    return [device for device in devices if device.kind == "rpc"] + local


def rank(devices: Sequence[Device]) -> list[Device]:
    """Return the devices to fill, the fastest kind with the most room first; the CPU last.

    Integrated GPUs are left out beside others, as llama.cpp does, and so is what does not tell its memory.
    """
    usable = [device for device in llama_order(devices) if device.free_bytes > 0]
    usable.sort(key=lambda device: (KIND_ORDER[device.kind], -device.free_bytes))
    return usable + [device for device in devices if device.kind == "cpu"][:1]


def room(device: Device) -> int:
    """Return the bytes of a device that a plan may use: a part stays free for what drivers take unasked."""
    return device.free_bytes - int(min(MARGIN_SHARE * device.free_bytes, LARGEST_MARGIN))


def arrange(facts: ModelFacts, order: Sequence[Device], wish: LoadOptions, predict: Predict) -> LoadOptions | None:
    """Return the options that put the most on devices at this context, or None when nothing fits.

    Searched: all layers with as many complete ones as fit; else as many layers as fit without their experts;
    else the CPU alone. What the CPU must hold is asked last: whatever puts less on devices needs more of it.
    """
    has_experts = any(layer.experts for layer in facts.layers)
    positions = facts.n_layer + 1
    options = None
    if len(order) > 1:
        if has_experts:
            options = _largest(0, facts.n_layer, lambda n: fill(facts, order, wish, positions, n, predict))
        options = options or _largest(
            1, positions, lambda n: fill(facts, order, wish, n, 0 if has_experts else n, predict)
        )
    options = options or replace(wish, n_gpu_layers=0, devices=())
    memory = predict(facts, options, options.devices or ())
    return options if fits(order[-1], memory, options, order) else None


def _largest(low: int, high: int, attempt: Callable[[int], LoadOptions | None]) -> LoadOptions | None:
    """Return the attempt at the largest number that succeeds, by bisection."""
    if found := attempt(high):
        return found
    while low < high:
        middle = (low + high) // 2
        if candidate := attempt(middle):
            found, low = candidate, middle + 1
        else:
            high = middle
    return found


def fill(
    facts: ModelFacts, order: Sequence[Device], wish: LoadOptions, n_gpu: int, n_complete: int, predict: Predict
) -> LoadOptions | None:
    """Fill one device after the other with the last n_gpu layers (the output is one of them).

    The last `n_complete` repeating layers keep their experts, the others leave them on the CPU. Returns None when
    the devices do not hold that; the CPU is not asked.
    """
    first = facts.n_layer + 1 - n_gpu
    homeless = range(first, max(first, facts.n_layer - n_complete))
    overrides: tuple[tuple[str, str], ...] = ()
    if any(facts.layers[i].experts for i in homeless):
        overrides = ((expert_pattern(homeless.start, homeless.stop), CPU),)
    base = replace(wish, n_gpu_layers=n_gpu, tensor_overrides=overrides)
    targets = [device for device in order if device.kind != "cpu"]
    sizes = layer_sizes(facts, wish, first, homeless)
    # the buffers for computing depend on what a device holds: start without, then count what a trial shows
    compute: dict[str, int] = {}
    for _ in range(ATTEMPTS):
        counts = _pack(sizes, [room(device) - compute.get(device.name, 0) for device in targets])
        if counts is None:
            return None
        used = [(device.name, count) for device, count in zip(targets, counts, strict=True) if count]
        split = tuple(float(count) for _, count in used) if len(used) > 1 else ()
        options = replace(base, devices=tuple(name for name, _ in used), tensor_split=split)
        need = predict(facts, options, [name for name, _ in used])
        if all(fits(device, need, options, order) for device in targets):
            return options
        compute |= {name: memory.compute for name, memory in need.items() if name != CPU}
    return None


def layer_sizes(facts: ModelFacts, wish: LoadOptions, first: int, homeless: range) -> list[int]:
    """Return the bytes, caches included, of the layers from `first` and of the output."""
    caches = kv_bytes(facts, wish) if wish.offload_kqv else [0] * facts.n_layer
    layers = list(enumerate(facts.layers))[first:]
    sizes = [layer.dense + caches[i] + (0 if i in homeless else layer.experts) for i, layer in layers]
    return [*sizes, facts.output_bytes]


def _pack(sizes: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """Return how many consecutive sizes go into each room, filling them in order; None when they do not fit."""
    counts, at = [0] * len(rooms), 0
    for index, free in enumerate(rooms):
        while at < len(sizes) and sizes[at] <= free:
            free -= sizes[at]
            counts[index] += 1
            at += 1
    return counts if at == len(sizes) else None


def expert_pattern(start: int, stop: int) -> str:
    """Return a regular expression for the expert tensors of the layers start..stop-1, without commas."""
    numbers = []
    for ten in range(start // 10, (stop - 1) // 10 + 1):
        low, high = max(start - ten * 10, 0), min(stop - 1 - ten * 10, 9)
        digits = str(low) if low == high else f"[{low}-{high}]"
        numbers.append(f"{ten or ''}{digits}")
    return rf"blk\.({'|'.join(numbers)}){EXPERTS}"


def largest_context(facts: ModelFacts, order: Sequence[Device], wish: LoadOptions, predict: Predict) -> int:
    """Return the largest context, up to the trained one, with which some placement fits; 0 when none does."""
    steps = max(facts.n_ctx_train, context_length(facts, wish), CONTEXT_STEP) // CONTEXT_STEP
    found = _largest(1, steps, lambda n: arrange(facts, order, replace(wish, n_ctx=n * CONTEXT_STEP), predict))
    return (found.n_ctx or 0) if found else 0


def contexts(n_ctx: int) -> list[int]:
    """Return the contexts to try when none is asked for."""
    sizes = [n_ctx]
    while sizes[-1] > SMALLEST_CONTEXT:
        sizes.append(max(sizes[-1] // 2 // CONTEXT_STEP * CONTEXT_STEP, SMALLEST_CONTEXT))
    return sizes


def too_large(facts: ModelFacts, order: Sequence[Device], options: LoadOptions, predict: Predict) -> EngineError:
    """Return the error that says how much is missing, and what would help."""
    memory = predict(facts, replace(options, n_gpu_layers=0, devices=()), [])[CPU]
    need, what = memory.total, f"{needed(memory.total)} with"
    rooms = {device.name: max(room(device), 0) for device in order}
    cpu = next((device for device in order if device.kind == "cpu"), None)
    if cpu and options.use_mmap and not options.use_mlock and memory.kv + memory.compute <= room(cpu):
        rooms[cpu.name] = max(cpu.total_bytes - (cpu.free_bytes - room(cpu)), 0)
    elif cpu and len(order) == 1 and memory.total <= cpu.total_bytes:
        need = memory.kv + memory.compute
        what = f"{needed(need)} of cache and buffers for"
    listed = " and ".join(f"{name} ({granted(n_bytes)})" for name, n_bytes in rooms.items())
    divided = " in whole layers" if sum(rooms.values()) >= need else ""
    return EngineError(
        f"{facts.name}: too large for this machine: {what} a context of {context_length(facts, options)} tokens do "
        f"not fit into {listed}{divided}; use a smaller quantization, a smaller -c/--ctx-size, or --no-fit to try it "
        "all the same"
    )


def with_budgets(
    devices: Sequence[Device], vram: Sequence[int], ram: int | None, hypothetical: bool = False
) -> list[Device]:
    """Return the devices with no more memory than the budgets: one for each device that offloads, or one for all.

    `hypothetical` adds a GPU per budget when there is none, and lets `ram` exceed what the machine has.
    Raises EngineError when there are more budgets than devices.
    """
    targets = [device for device in devices if device.offloads]
    if vram and not targets and hypothetical:
        made = [Device(f"GPU{i}", "gpu", n, n, HYPOTHETICAL) for i, n in enumerate(vram)]
        devices, targets, vram = [*devices, *made], [], ()
    if len(vram) > max(len(targets), 1):
        raise EngineError(f"--vram names {len(vram)} amounts, but there are {len(targets)} devices")
    budgets = dict(zip((d.name for d in targets), list(vram) * len(targets) if len(vram) == 1 else vram, strict=False))
    result = []
    for device in devices:
        budget = budgets.get(device.name)
        if device.kind == "cpu" and ram is not None:
            budget = ram
        if budget is not None and (device.kind != "cpu" or not hypothetical):
            device = replace(
                device, free_bytes=min(budget, device.free_bytes), total_bytes=min(budget, device.total_bytes)
            )
        elif budget is not None:
            device = replace(device, free_bytes=budget, total_bytes=budget)
        result.append(device)
    return result
