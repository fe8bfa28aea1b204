"""A placement in, the same for people out: groups with their reasons, and llama.cpp's flags."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..load_options import LoadOptions
from .memory import BLOCK, CPU, EXPERTS, INPUT, device_of_layers, is_expert
from .placement import Placement, llama_order

AS_BUILT = LoadOptions()


@dataclass(frozen=True)
class Group:
    """Parts of the model that share a device, and why they are there."""

    what: str
    device: str
    n_bytes: int
    reason: str


def explain(placement: Placement) -> list[Group]:
    """Return what lies where, with a reason for each group, in the order in which the plan decided."""
    facts, options = placement.facts, placement.options
    groups = []
    embeddings = sum(n for name, n in facts.tensors.items() if INPUT.match(name))
    groups.append(Group("token embeddings", CPU, embeddings, "rows are looked up, not multiplied"))
    dense, experts = _by_device(placement)
    names = [name for name in (*(options.devices or ()), CPU) if name in dense or name in experts]
    has_experts = bool(experts)
    has_shared = any("_shexp." in name for name in facts.tensors)
    dense_part = "attention, norms, routers" + (", shared experts" if has_shared else "")
    for device in names:
        if device in dense:
            layers, n_bytes = dense[device]
            what = dense_part if has_experts else "layers"
            groups.append(Group(f"{what} {span(layers)}", device, n_bytes, _dense_reason(placement, device)))
    for device, (layers, n_bytes) in _caches(placement).items():
        reason = "beside its attention" if options.offload_kqv else "kept home by -nkvo"
        groups.append(Group(f"KV cache {span(layers)}", device, n_bytes, reason))
    for device in names:
        if device in experts:
            layers, n_bytes = experts[device]
            groups.append(Group(f"experts {span(layers)}", device, n_bytes, _expert_reason(placement, device)))
    last = device_of_layers(facts, options, options.devices or ())[-1]
    reason = "every token needs its logits" if last != CPU else _home_reason(placement)
    groups.append(Group("output", last, facts.output_bytes if last != CPU else _untied(placement), reason))
    for device in (*(options.devices or ()), CPU):
        if device in placement.memory:
            groups.append(Group("compute buffers", device, placement.memory[device].compute, "one batch in flight"))
    return groups


def _by_device(placement: Placement) -> tuple[dict[str, tuple[list[int], int]], dict[str, tuple[list[int], int]]]:
    """Return device -> (layers, bytes), of the dense parts and of the experts."""
    dense: dict[str, tuple[list[int], int]] = {}
    experts: dict[str, tuple[list[int], int]] = {}
    for name, device in placement.tensors.items():
        if block := BLOCK.match(name):
            target = experts if is_expert(name) else dense
            layers, n_bytes = target.get(device, ([], 0))
            target[device] = ([*layers, int(block[1])], n_bytes + placement.facts.tensors[name])
    return dense, experts


def _caches(placement: Placement) -> dict[str, tuple[list[int], int]]:
    facts, options = placement.facts, placement.options
    layers = device_of_layers(facts, options, options.devices or ())
    caches: dict[str, tuple[list[int], int]] = {}
    for layer in range(facts.n_layer):
        device = layers[layer] if options.offload_kqv else CPU
        held, _ = caches.get(device, ([], 0))
        caches[device] = ([*held, layer], placement.memory[device].kv)
    return caches


def _untied(placement: Placement) -> int:
    return placement.facts.output_bytes - placement.facts.tied_bytes


def _dense_reason(placement: Placement, device: str) -> str:
    return "every token needs them" if device != CPU else _home_reason(placement)


def _expert_reason(placement: Placement, device: str) -> str:
    if device != CPU:
        return "fit beside the rest"
    if not placement.options.devices:
        return _home_reason(placement)
    used = placement.options.n_expert_used or placement.facts.n_expert_used
    return f"the devices are full; a token reads only {used} of each layer's experts"


def _home_reason(placement: Placement) -> str:
    if placement.options.devices:
        return "the devices are full"
    return "no device has room for it" if llama_order(placement.devices) else "there is no other device"


def span(layers: Iterable[int]) -> str:
    """Return layer numbers as ranges: "0-3, 7"."""
    numbers = sorted(set(layers))
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def flags(placement: Placement) -> list[str]:
    """Return llama.cpp's flags that do the same, as separate words."""
    options = placement.options
    kinds = {device.name: device for device in placement.devices}
    n_gpu = placement.facts.n_layer + 1 if options.n_gpu_layers < 0 else options.n_gpu_layers
    words = ["-c", str(placement.n_ctx), "-ngl", str(n_gpu if options.devices else 0)]
    used = options.devices or ()
    workers = list(dict.fromkeys(kinds[name].description for name in used if kinds[name].kind == "rpc"))
    if workers:
        words += ["--rpc", ",".join(workers)]
    offered = [device.name for device in llama_order(placement.devices)]
    if used and list(used) != offered:
        words += ["-dev", ",".join(used)]
    if len(used) > 1:
        words += ["-ts", ",".join(f"{share:g}" for share in options.tensor_split)]
    for pattern, device in options.tensor_overrides:
        buffer_type = kinds[device].buffer_type if device in kinds else device
        words += ["-cmoe"] if pattern == EXPERTS and device == CPU else ["-ot", f"{pattern}={buffer_type or device}"]
    for flag, value, usual in (
        ("-ctk", options.cache_type_k, AS_BUILT.cache_type_k),
        ("-ctv", options.cache_type_v, AS_BUILT.cache_type_v),
        ("-fa", options.flash_attn, AS_BUILT.flash_attn),
        ("-b", options.n_batch, AS_BUILT.n_batch),
        ("-ub", options.n_ubatch, AS_BUILT.n_ubatch),
    ):
        if value != usual:
            words += [flag, str(value)]
    return words + ["-nkvo"] * (not options.offload_kqv) + ["--no-mmap"] * (not options.use_mmap)
