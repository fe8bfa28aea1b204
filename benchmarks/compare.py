"""The claim: `compare` takes at most 1.05 times llama-perplexity's time per variant, and the model's size + 1.5 GB.

    python -m benchmarks.compare BASE.gguf VARIANT.gguf TEXT --llama-perplexity build/bin/llama-perplexity

We read TEXT with the base once (not timed) and store its logits as llama-perplexity does. Then both sides read the
variant against that one file, in turns; the best of all turns counts, loading included. Ours also counts how often the
same experts are chosen, as the command does; it leaves out the speed of generation, which llama-perplexity does not
measure. Stored logits are compared too: our compact form against llama.cpp's, in size and in the divergence that comes
of it.

What was learnt, with 3 windows and one thread: 14.3 s of processor for a variant, llama-perplexity 14.9 s. Kernels over
the vocabulary take 0.04 s a window, the routers 0.02 s; reading the file's header three times took 0.4 s, and
loading a model reads it once now, in 0.04 s.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from moe_gguf.runner.threads import best_thread_count

from .processes import run

ALLOWED_TIME, ALLOWED_BYTES, ALLOWED_FILE, ALLOWED_ERROR = 1.05, 1.5e9, 0.6, 0.02
OURS = """
import json, sys, time
from pathlib import Path
from moe_gguf.jobs import compare
from moe_gguf.jobs.loading import LoadRequest
base, variant, text, stored, saved, compact, threads, chunks, out = sys.argv[1:]
request = compare.Request(base, (variant,), (("text", Path(text)),), n_chunk=int(chunks), speed=False,
    base_logits=Path(stored) if stored else None, save_logits=Path(saved) if saved else None, compact=bool(compact),
    load=LoadRequest(n_threads=int(threads), devices=()))
spent, plain = 0.0, compare._variant
def timed(*arguments):
    global spent
    start = time.perf_counter()
    found = plain(*arguments)
    spent += time.perf_counter() - start
    return found
compare._variant = timed
kld = compare.run(compare.prepare(request)).variants[0].divergence.kld.value
Path(out).write_text(json.dumps({"seconds": spent, "kld": kld}))
"""


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("variant", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--llama-perplexity", "binary", type=click.Path(exists=True, dir_okay=False), required=True)
@click.option("-t", "--threads", type=int, default=best_thread_count)
@click.option("--chunks", default=8, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(base: Path, variant: Path, text: Path, binary: str, threads: int, chunks: int, rounds: int) -> None:
    """Measure both sides in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stock, compact, out = folder / "stock", folder / "compact", folder / "out.json"

        def ours(stored: str | Path, saved: str | Path, form: str) -> tuple[dict[str, float], int]:
            settings = [base, variant, text, stored, saved, form, str(threads), str(chunks), out]
            cost = run([sys.executable, "-c", OURS, *map(str, settings)], folder)
            return json.loads(out.read_text()), cost.memory

        def theirs(model: Path, *options: str) -> tuple[float, str]:
            command = [binary, "-m", str(model), "-t", str(threads), "-c", "512", "--chunks", str(chunks), *options]
            start = time.perf_counter()
            printed = subprocess.run([*command, "--kl-divergence-base", str(stock)], check=True, capture_output=True)
            return time.perf_counter() - start, printed.stdout.decode()

        ours("", stock, "")
        small, _ = ours("", compact, "compact")
        turns = [(theirs(variant, "--kl-divergence"), ours(stock, "", "")) for _ in range(rounds)]
        sizes = compact.stat().st_size / stock.stat().st_size
    sys.exit(report(turns, small["kld"], sizes, variant.stat().st_size))


def report(
    turns: list[tuple[tuple[float, str], tuple[dict[str, float], int]]], small: float, sizes: float, model: int
) -> int:
    """Print the comparison and return the exit status."""
    seconds = min(ours["seconds"] for _, (ours, _) in turns)
    their_seconds = min(each for (each, _), _ in turns)
    memory = max(each for _, (_, each) in turns) - model
    kld = turns[0][1][0]["kld"]
    hit = re.search(r"Mean\s+KLD:\s+([\d.]+)", turns[0][0][1])
    their_kld = float(hit[1]) if hit else float("nan")
    lost = abs(small / kld - 1)
    click.echo(f"seconds a variant: {seconds:.1f}, llama-perplexity {their_seconds:.1f}: {seconds / their_seconds:.3f}")
    click.echo(
        f"mean KLD: {kld:.6f}, llama-perplexity {their_kld:.6f}; by the compact form {small:.6f} ({lost:.2%} off)"
    )
    click.echo(f"memory beyond the model: {memory / 1e9:.2f} GB; compact logits: {sizes:.3f} of llama.cpp's size")
    is_kept = seconds <= ALLOWED_TIME * their_seconds and memory <= ALLOWED_BYTES
    is_kept &= sizes <= ALLOWED_FILE and lost <= ALLOWED_ERROR and abs(kld - their_kld) < 1e-6
    return 0 if is_kept else 1


if __name__ == "__main__":
    main()
