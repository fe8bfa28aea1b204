"""How far the planner's estimates are from what llama.cpp would allocate, for large models on one or two devices.

Two workers on loopback stand for GPUs; models are headers without weights, since llama.cpp only simulates the load.

python -m benchmarks.placement
"""

import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.sizes import parse_size
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.placing.devices import list_devices
from moe_gguf.runner.placing.memory import read_facts
from moe_gguf.runner.placing.placement import measured, overfull, plan, with_budgets
from moe_gguf.runner.placing.rpc import add_servers

from tests.runner.tiny_moe import write_moe
from tests.runner.workers import running_worker

SHAPE: dict[str, Any] = {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_vocab": 32000}
BUDGETS = (("1G",), ("2G",), ("4G",), ("8G",), ("24G",), ("2G", "2G"), ("6G", "4G"), ("16G", "16G"))
WISHES = (
    LoadOptions(n_ctx=4096),
    LoadOptions(n_ctx=32768),
    LoadOptions(n_ctx=4096, flash_attn="off"),
    LoadOptions(n_ctx=8192, offload_kqv=False),
    LoadOptions(n_ctx=8192, cache_type_k="q8_0", cache_type_v="q8_0"),
)


def main() -> None:
    """Print how far estimates are off per model and over all, and how many plans would not have fitted."""
    with running_worker() as (one, _), running_worker() as (other, _), tempfile.TemporaryDirectory() as folder:
        add_servers([one, other])
        everything = []
        print("model       plans  largest deviation  beyond 3 %  overfull")
        for n_expert, qtype in product((1, 4, 8), (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q8_0)):
            path = Path(folder) / f"{n_expert}x7B-{qtype.name}.gguf"
            write_moe(path, **SHAPE, n_expert=n_expert, n_ctx_train=32768, qtype=qtype, weights=False)
            results = list(deviations(path))
            everything += results
            print(summary(path.stem, results))
        print(summary("all", everything))


def summary(name: str, results: list[tuple[float, bool]]) -> str:
    """Return a row of the table: plans, the largest deviation of any device, how many were off or did not fit."""
    worst = max(deviation for deviation, _ in results)
    beyond, over = sum(deviation > 0.03 for deviation, _ in results), sum(over for _, over in results)
    return f"{name:10}  {len(results):5}  {worst:17.2%}  {beyond:10}  {over:8}"


def deviations(path: Path) -> Iterator[tuple[float, bool]]:
    """Yield the largest deviation on any device, and whether one is overfull, of every plan that is possible."""
    file = read_gguf(path)
    facts, devices = read_facts(file), list_devices()
    for sizes, wish in product(BUDGETS, WISHES):
        offered = [device for device in devices if device.name in ("CPU", "RPC0", "RPC1")[: len(sizes) + 1]]
        budgeted = with_budgets(
            offered, [parse_size(size, "memory") for size in sizes], parse_size("64G", "memory"), hypothetical=True
        )
        try:
            placement = plan(facts, budgeted, wish)
        except EngineError:
            continue
        actual = measured(file, placement)
        yield (
            max(
                abs(placement.memory[name].total / memory.total - 1)
                for name, memory in actual.memory.items()
                if memory.total
            ),
            bool(overfull(actual, budgeted)),
        )


if __name__ == "__main__":
    main()
