"""A load that failed for lack of memory in, the same model loaded with less on its devices out."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from ...formats.errors import EngineError
from ..load_options import LoadOptions
from .memory import CPU, EXPERTS, ModelFacts, context_length
from .placement import SMALLEST_CONTEXT, expert_pattern

Loaded = TypeVar("Loaded")
NO_MEMORY = re.compile(r"alloc|memory|reserve", re.IGNORECASE)


def load_with_fallback(
    load: Callable[[LoadOptions], Loaded],
    facts: ModelFacts,
    options: LoadOptions,
    say: Callable[[str], None],
    keep_context: bool = False,
) -> tuple[Loaded, LoadOptions]:
    """Call `load` with the options, then with less and less until memory suffices; return what it made, and how.

    Each step down is said. Raises the last EngineError when nothing is left to try, or one that is not about memory.
    """
    steps = steps_down(facts, options, keep_context)
    while True:
        try:
            return load(options), options
        except EngineError as error:
            step = next(steps, None) if NO_MEMORY.search(str(error)) else None
            if step is None:
                raise
            options, what = step
            say(f"{error}; trying with {what}")


def steps_down(facts: ModelFacts, options: LoadOptions, keep_context: bool) -> Iterator[tuple[LoadOptions, str]]:
    """Yield options that need less, each with its name: experts go home, then layers, then the context shrinks."""
    n_gpu = facts.n_layer + 1 if options.n_gpu_layers < 0 else min(options.n_gpu_layers, facts.n_layer + 1)
    on_devices = n_gpu > 0 and options.devices != ()
    if on_devices and any(layer.experts for layer in facts.layers):
        first = facts.n_layer + 1 - n_gpu
        home = _experts_at_home(options, first)
        while home < facts.n_layer:
            home += max(1, (facts.n_layer - home + 1) // 2)
            pattern = expert_pattern(first, home) if home < facts.n_layer or first else EXPERTS
            options = replace(options, tensor_overrides=((pattern, CPU),))
            yield options, f"the experts of {home - first} layers on the CPU"
    while on_devices and n_gpu > 0:
        n_gpu //= 2
        split = () if n_gpu == 0 else options.tensor_split
        options = replace(options, n_gpu_layers=n_gpu, tensor_split=split)
        if n_gpu == 0:
            options = replace(options, devices=(), tensor_overrides=())
        yield options, f"{n_gpu} layers on devices"
    n_ctx = context_length(facts, options)
    while not keep_context and n_ctx > SMALLEST_CONTEXT:
        n_ctx = max(n_ctx // 2, SMALLEST_CONTEXT)
        options = replace(options, n_ctx=n_ctx)
        yield options, f"a context of {n_ctx} tokens"


def _experts_at_home(options: LoadOptions, first: int) -> int:
    """Return the first layer from `first` whose experts no override sends home."""
    layer = first
    patterns = [pattern for pattern, device in options.tensor_overrides if device == CPU]
    while any(re.search(pattern, f"blk.{layer}.ffn_up_exps.weight") for pattern in patterns) and layer < 10_000:
        layer += 1
    return layer
