"""From a checkpoint to three variants: one pass of ours against llama.cpp's converter and a quantizer run per type.

    python -m benchmarks.quantize [--folder DIR] [--rounds N] [--threads N]
        [--stock-converter convert_hf_to_gguf.py --stock-python PYTHON]

The model is Mixtral-shaped and random: 4 experts, n_embd 4096, n_ff 14336, 2 layers, 49,152 tokens, BF16, 1.75 G
parameters. It needs 15 GB of disk. llama.cpp's converter comes with llama-cpp-python's source archive and needs a
Python with torch and transformers; without it the stock way starts from our own BF16 GGUF and the time of that
conversion is left out of its sum. llama.cpp quantizes through llama_model_quantize of the installed library. Files
are dropped from the page cache before each command, and the disk has taken everything before a time is read.

`limit` is the time that the disk needs for what a command reads and writes, at the speeds of `dd` in the same run.

What was learnt:
- Encoding is what takes the time: Q4_K's and Q5_K's searches; reading, NaN check and Q8_0 hide behind them.
- Slabs of a million weights keep the memory at some 10 MB a thread and output; larger ones are not faster.
- A file read through a map counts as resident; `preadv` into a buffer does not.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

from .processes import Cost, forget, moe_gguf, run
from .shapes import write_checkpoint

TYPES = ("Q4_K_M", "Q5_K_M", "Q8_0")
STOCK = """
import sys
from pathlib import Path
from moe_gguf.quantize.file_types import parse_file_type
from tests.quantize.oracle import quantize_file
quantize_file(Path(sys.argv[1]), Path(sys.argv[2]), parse_file_type(sys.argv[3]), n_threads=int(sys.argv[4]))
"""


def main() -> None:
    """Run both sides in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stock-converter", type=Path)
    parser.add_argument("--stock-python", default=sys.executable)
    options = parser.parse_args()
    source = write_checkpoint(options.folder / "random-4x")
    n_weights = (source / "model.safetensors").stat().st_size / 2
    read, written = disk_speed(options.folder)
    print(f"disk: reads {read / 1e9:.2f} GB/s, writes {written / 1e9:.2f} GB/s; {n_weights / 1e9:.2f} G parameters")
    ours, stock, one_ours, one_stock = [], [], [], []
    for _ in range(options.rounds):
        conversion, bf16 = stock_conversion(source, options)
        single, each = stock_types(bf16, options)
        stock.append(conversion + each)
        one_stock.append(single)
        one_ours.append(our_types(bf16, options, TYPES[:1]))
        ours.append(our_types(source, options, TYPES))
        bf16.unlink()
    print(f"{'':44}{'stock':>10}{'ours':>10}{'ratio':>8}")
    row("checkpoint to Q4_K_M + Q5_K_M + Q8_0, wall", stock, ours, "wall", " s")
    row("the same, processor time", stock, ours, "cpu", " s")
    row("the same, peak memory", stock, ours, "memory", " MB")
    row("the same, disk written", stock, ours, "disk", " GB")
    row("one BF16 GGUF to Q4_K_M, wall", one_stock, one_ours, "wall", " s")
    row("the same, peak memory", one_stock, one_ours, "memory", " MB")
    outputs = middle(ours, "disk")
    limit = 2 * n_weights / read + outputs / written
    print(f"limit of the disk for our pass: {limit:.1f} s, {100 * limit / middle(ours, 'wall'):.0f} % of what it took")


def row(name: str, stock: list[Cost], ours: list[Cost], what: str, unit: str) -> None:
    """Print one line of the table: medians and their ratio."""
    scale = {" s": 1.0, " MB": 1e6, " GB": 1e9}[unit]
    theirs, mine = middle(stock, what) / scale, middle(ours, what) / scale
    print(f"{name:44}{theirs:8.1f}{unit:3}{mine:7.1f}{unit:3}{theirs / max(mine, 1e-9):6.1f}x")


def middle(costs: list[Cost], what: str) -> float:
    """Return the median of one figure."""
    return statistics.median(float(getattr(cost, what)) for cost in costs)


def stock_conversion(source: Path, options: argparse.Namespace) -> tuple[Cost, Path]:
    """Convert to BF16 with llama.cpp's converter if it is given, else with ours, which then counts for nothing."""
    target = options.folder / "stock-BF16.gguf"
    target.unlink(missing_ok=True)
    forget(source)
    if options.stock_converter:
        command = [options.stock_python, options.stock_converter, source, "--outfile", target, "--outtype", "bf16"]
        return run(command, options.folder), target
    run(moe_gguf("convert", source, "-o", target, "--no-verify", "-q"), options.folder)
    return Cost(0, 0, 0, 0), target


def stock_types(bf16: Path, options: argparse.Namespace) -> tuple[Cost, Cost]:
    """Run llama.cpp's quantizer once per type; return the cost of the first type and of all."""
    costs = []
    for name in TYPES:
        target = options.folder / f"stock-{name}.gguf"
        target.unlink(missing_ok=True)
        forget(bf16)
        costs.append(run([sys.executable, "-c", STOCK, bf16, target, name, str(options.threads)], options.folder))
        target.unlink()
    total = costs[0]
    for cost in costs[1:]:
        total = total + cost
    return costs[0], total


def our_types(source: Path, options: argparse.Namespace, types: tuple[str, ...]) -> Cost:
    """Write all types in one pass."""
    target = options.folder / "ours"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    forget(source)
    arguments = [part for name in types for part in ("--type", name)]
    cost = run(moe_gguf("quantize", source, *arguments, "-o", target, "-q", "-t", str(options.threads)), options.folder)
    shutil.rmtree(target)
    return cost


def disk_speed(folder: Path, size: int = 1 << 30) -> tuple[float, float]:
    """Return the bytes a second that the disk reads and writes in one stream."""
    path, block = folder / "speed", bytes(1 << 22)
    started = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
    forget(path)
    written = size / (time.monotonic() - started)
    started = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        while file.read(len(block)):
            pass
    read = size / (time.monotonic() - started)
    path.unlink()
    return read, written


if __name__ == "__main__":
    main()
