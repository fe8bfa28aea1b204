"""The claim: seeing where tokens go costs at most 5 % over plain prompt processing.

    python -m benchmarks.routes MODEL.gguf

The same random tokens are read in windows of 512 with and without listening, in turns; the best of all rounds counts.
Nothing after the last router is computed for routes, and plain reading asks for the last token's logits only.
"""

import sys
import time
from typing import Any

import click
import numpy as np
from moe_gguf.jobs.routes import expert_count
from moe_gguf.measure.routing import find_routes
from moe_gguf.measure.speed import NoChoice
from moe_gguf.runner.engine import Engine, Feed
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model
from moe_gguf.runner.threads import best_thread_count

ALLOWED, N_CTX = 1.05, 512


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option("-t", "--threads", type=int, default=best_thread_count)
@click.option("--windows", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(model: str, threads: int, windows: int, rounds: int) -> None:
    """Time both sides in turns."""
    from pathlib import Path

    options = LoadOptions(n_ctx=N_CTX, n_batch=N_CTX, n_threads=threads)
    nothing: Any = NoChoice()
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "routes": []}
    with Model(Path(model), options) as loaded:
        n_expert = expert_count(loaded.file)
        tokens = np.random.default_rng(0).integers(0, loaded.n_vocab, (windows, N_CTX)).tolist()
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            started = time.perf_counter(), time.process_time()
            with Engine(loaded, options) as engine:
                for window in tokens:
                    engine.forget(0)
                    engine.step([Feed(0, window, nothing)])
            seconds["plain"].append(since(started))
            started = time.perf_counter(), time.process_time()
            find_routes(loaded, options, tokens, n_expert)
            seconds["routes"].append(since(started))
    wall, cpu = ({name: min(one[i] for one in found) for name, found in seconds.items()} for i in (0, 1))
    for name in seconds:
        click.echo(f"{name:<7} {wall[name]:7.2f} s  {cpu[name]:7.2f} s of processor")
    ratio = wall["routes"] / wall["plain"]
    click.echo(f"{ratio:.3f}x wall (at most {ALLOWED}x), {cpu['routes'] / cpu['plain']:.3f}x processor")
    sys.exit(0 if ratio <= ALLOWED else 1)


def since(started: tuple[float, float]) -> tuple[float, float]:
    """Return wall and processor seconds since then."""
    return time.perf_counter() - started[0], time.process_time() - started[1]


if __name__ == "__main__":
    main()
