"""A file checked against its source: `verify --against` beside the `quantize` that made it, and what a sample costs.

    python -m benchmarks.verify [--source SOURCE] [--type TYPE] [--rounds N] [--threads N] [--folder DIR]

Without --source the model is the one of benchmarks.quantize: Mixtral-shaped and random, 4 experts, 2 layers, 1.75 G
parameters (3.5 GB, and the file). Both commands run in turns in processes of their own, and files are dropped from the
page cache before each. llama.cpp is not asked to load the file (--no-load): its map of the file is not memory of ours.

What was learnt:
- Making the bytes again is what takes the time, and it is the same work as in quantize; reading the file in place of
  writing it is cheaper, as no disk has to take the bytes before the time is read.
- Where bytes differ everywhere (another importance matrix) each block is decoded twice and held against its weights,
  which takes about as long again as encoding it.
"""

import argparse
import statistics
from pathlib import Path

from .processes import Cost, forget, moe_gguf, run
from .shapes import write_checkpoint


def main() -> None:
    """Run both in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    source = options.source or write_checkpoint(options.folder / "random-4x")
    target = options.folder / f"verified-{options.type}.gguf"
    threads = ("-t", str(options.threads))
    quantize = ("quantize", source, "--type", options.type, "-o", target, "--force", "-q", *threads)
    verify = ("verify", target, "--against", source, "--no-load", "-q", *threads)
    made: list[Cost] = []
    checked: list[Cost] = []
    sampled: list[Cost] = []
    for _ in range(options.rounds):
        made.append(measured(options.folder, source, target, *quantize))
        checked.append(measured(options.folder, source, target, *verify))
        sampled.append(measured(options.folder, source, target, *verify, "--sample", "16"))
    target.unlink()
    print(f"{source.name}, {options.type}, {options.rounds} rounds, {options.threads} threads (medians)")
    print(f"{'':28}{'wall':>10}{'processor':>12}{'peak memory':>14}{'of quantize':>13}")
    for name, costs in (("quantize", made), ("verify, every tensor", checked), ("verify, --sample 16", sampled)):
        wall, cpu = middle(costs, "wall"), middle(costs, "cpu")
        memory, share = middle(costs, "memory") / 1e6, wall / middle(made, "wall")
        print(f"{name:28}{wall:8.2f} s{cpu:10.2f} s{memory:11.0f} MB{share:12.2f}x")


def measured(folder: Path, source: Path, target: Path, *arguments: str | Path) -> Cost:
    """Run a command of ours with nothing of its files in the page cache."""
    forget(source)
    if target.exists():
        forget(target)
    return run(moe_gguf(*arguments), folder)


def middle(costs: list[Cost], what: str) -> float:
    """Return the median of one figure."""
    return statistics.median(float(getattr(cost, what)) for cost in costs)


if __name__ == "__main__":
    main()
