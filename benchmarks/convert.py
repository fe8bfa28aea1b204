"""BF16 checkpoint to BF16 GGUF against `cp` of the same bytes, and against llama.cpp's converter if it is given.

    python -m benchmarks.convert [--folder DIR] [--rounds N]
        [--stock-converter convert_hf_to_gguf.py --stock-python PYTHON]

The model is that of benchmarks/quantize.py: 1.75 G parameters, 3.5 GB. Each command starts with the source dropped
from the page cache and ends when the disk has taken everything. Ours runs with `--no-verify`: loading the file in
llama.cpp afterwards reads it once more.

What was learnt:
- The disk is the limit. Looking for NaN costs nothing visible: one masked maximum over each slab while it is in cache.
"""

import argparse
import sys
from pathlib import Path

from .processes import forget, moe_gguf, run
from .quantize import row
from .shapes import write_checkpoint


def main() -> None:
    """Run all sides in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stock-converter", type=Path)
    parser.add_argument("--stock-python", default=sys.executable)
    options = parser.parse_args()
    source = write_checkpoint(options.folder / "random-4x")
    target = options.folder / "copy"
    ours, copies, stock = [], [], []
    for _ in range(options.rounds):
        sides = [
            (copies, ["cp", source / "model.safetensors", target]),
            (ours, moe_gguf("convert", source, "-o", target.with_suffix(".gguf"), "--no-verify", "-q")),
        ]
        if options.stock_converter:
            command = [options.stock_python, options.stock_converter, source, "--outfile", target, "--outtype", "bf16"]
            sides.append((stock, command))
        for costs, command in sides:
            forget(source)
            costs.append(run(command, options.folder))
            target.unlink(missing_ok=True)
            target.with_suffix(".gguf").unlink(missing_ok=True)
    print(f"{'':44}{'theirs':>10}{'ours':>10}{'ratio':>8}")
    row("against cp, wall", copies, ours, "wall", " s")
    row("against cp, peak memory", copies, ours, "memory", " MB")
    if stock:
        row("against llama.cpp's converter, wall", stock, ours, "wall", " s")
        row("the same, peak memory", stock, ours, "memory", " MB")


if __name__ == "__main__":
    main()
