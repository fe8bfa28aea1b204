"""A release of the demo's model with six types, against its parts run by hand; and run again, unchanged.

    python -m benchmarks.release [--demo DIR] [--text FILE] [--chunks N] [--threads N]

`--demo` is what `moe-gguf demo` wrote. By hand: convert to BF16, one quantize for all types, one compare, routes, and
inspect of each file, as separate commands in one folder; the release does the same and writes the page. Both take the
gates that are there, so that neither computes them.

What was learnt:
- Reading the texts is nearly all of it: the page, its pictures and checksums are seconds.
- The parts by hand start Python and load llama.cpp each time; the release does it once.
- Unchanged, what takes time is to open the headers and to render the card: nothing is hashed again whose size and time
  of change are as they were.
"""

import argparse
import tempfile
from pathlib import Path

from .processes import Cost, moe_gguf, run

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
TEXT = Path(__file__).parents[1] / "docs" / "cli.md"


def by_hand(recipe: Path, gates: Path, text: Path, chunks: int, threads: int, folder: Path) -> Cost:
    """Run the parts one after the other."""
    options = ["--gates", gates, "-t", str(threads), "-q"]
    cost = run([*moe_gguf(), "convert", recipe, *options, "-o", f"{folder}/"], folder)
    types = [word for name in TYPES for word in ("--type", name)]
    cost += run([*moe_gguf(), "quantize", recipe, *options, *types, "--verify", "-o", f"{folder}/"], folder)
    base = next(folder.glob("*-BF16.gguf"))
    files = sorted(path for path in folder.glob("*.gguf") if path != base)
    measured = ["-f", text, "--chunks", str(chunks), "-t", str(threads)]
    cost += run([*moe_gguf(), "compare", base, *files, *measured, "--plot", folder / "sizes.png", "--json"], folder)
    routed = ["-f", text, "--plot", folder / "routes.png", "-t", str(threads), "--json"]
    cost += run([*moe_gguf(), "routes", base, *routed], folder)
    for file in files:
        cost += run([*moe_gguf(), "inspect", file, "--json"], folder)
    return cost + run(["sha256sum", *files], folder)


def main() -> None:
    """Run both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="Where to work; by default a temporary folder.")
    options = parser.parse_args()
    recipe = next(options.demo.glob("*.yml")).resolve()
    gates = next(options.demo.glob("*-gates.safetensors")).resolve()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        (folder / "parts").mkdir()
        parts = by_hand(recipe, gates, options.text, options.chunks, options.threads, folder / "parts")
        release = [*moe_gguf(), "release", recipe, "--gates", gates, "--types", ",".join(TYPES), "-q"]
        release += ["-f", options.text, "--chunks", str(options.chunks), "-t", str(options.threads)]
        release += ["-o", folder / "release"]
        whole, again = run(release, folder), run(release, folder)
    print(f"{'':12} {'wall':>8} {'processor':>10} {'memory':>9}")
    for name, cost in (("by hand", parts), ("release", whole), ("again", again)):
        print(f"{name:12} {cost.wall:>6.1f} s {cost.cpu:>8.1f} s {cost.memory / 1e9:>6.2f} GB")
    print(f"release / by hand: {whole.wall / parts.wall:.2f}x")


if __name__ == "__main__":
    main()
