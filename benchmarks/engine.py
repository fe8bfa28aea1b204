"""The claim: the engine is as fast as llama.cpp's own bench, on the same file and threads, in one run.

Prompt processing and generation within 3 %, time to first token within 5 %. Give it a quiet machine, a GGUF file and
llama-bench, which is built from the llama.cpp that llama-cpp-python ships in its source archive:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B bench -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF
    cmake --build bench --target llama-bench
    python benchmarks/engine.py MODEL.gguf --llama-bench bench/bin/llama-bench

Both sides take turns, and the best of all turns counts: what else the machine does can only slow a turn down.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import click
from moe_gguf.measure.speed import Work, measure
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.generation import generate
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model
from moe_gguf.runner.sampling import SamplingOptions
from moe_gguf.runner.threads import best_thread_count

# llama-bench samples nothing, so that generation with the default samplers is shown and claims nothing
ALLOWED = {"pp": 0.03, "tg": 0.03, "first token": 0.05, "tg, sampled": None}


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--llama-bench", type=click.Path(exists=True, dir_okay=False), required=True)
@click.option("-t", "--threads", type=int, default=best_thread_count)
@click.option("-p", "--n-prompt", default=512, show_default=True)
@click.option("-n", "--n-gen", default=128, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--repack/--no-repack", default=True, show_default=True)
def main(model: Path, llama_bench: str, threads: int, n_prompt: int, n_gen: int, rounds: int, repack: bool) -> None:
    """Measure both sides in turns and compare their best seconds."""
    options = LoadOptions(n_ctx=n_prompt + n_gen, n_threads=threads, repack=repack)
    ours: dict[str, list[float]] = {name: [] for name in ALLOWED}
    theirs: dict[str, list[float]] = {name: [] for name in ALLOWED}
    with Model(model, options) as loaded, Engine(loaded, options) as engine:
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            pp, tg = their_seconds(llama_bench, model, threads, n_prompt, n_gen, repack)
            for name, seconds in (("pp", pp), ("tg", tg), ("tg, sampled", tg), ("first token", pp)):
                theirs[name].append(seconds)
            ours["pp"] += measure(engine, Work(n_prompt, 0), 1).seconds
            ours["tg"] += measure(engine, Work(0, n_gen), 1).seconds
            first, rest = our_answer(engine, n_prompt, n_gen)
            ours["first token"].append(first)
            ours["tg, sampled"].append(rest)
    sys.exit(report(ours, theirs))


def their_seconds(
    llama_bench: str, model: Path, threads: int, n_prompt: int, n_gen: int, repack: bool
) -> tuple[float, float]:
    """Run llama-bench once; return the seconds of its prompt and of its generation."""
    arguments = ["-m", model, "-t", threads, "-p", n_prompt, "-n", n_gen, "-r", 1, "-o", "json"]
    arguments += ["--repack", int(repack)]
    output = subprocess.run([llama_bench, *map(str, arguments)], check=True, capture_output=True, text=True).stdout
    seconds = {bool(row["n_gen"]): row["avg_ns"] / 1e9 for row in json.loads(output)}
    return seconds[False], seconds[True]


def our_answer(engine: Engine, n_prompt: int, n_gen: int) -> tuple[float, float]:
    """Generate with the default samplers; return the seconds to the first token, and of n_gen tokens after it.

    The answer begins with a short prompt, so that the tokens are timed at the depth at which llama-bench times them.
    """
    sampling = SamplingOptions(seed=1, ignore_eos=True)
    engine.forget(0)
    started = time.perf_counter()
    next(iter(generate(engine, list(range(5, 5 + n_prompt)), sampling)))
    first = time.perf_counter() - started
    engine.forget(0)
    pieces = generate(engine, [1], sampling, n_predict=n_gen + 1)
    next(pieces)
    started = time.perf_counter()
    for _ in pieces:
        pass
    return first, time.perf_counter() - started


def report(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> int:
    """Print the comparison; return 1 when a claim does not hold."""
    failed = False
    click.echo("| what | llama-bench | engine | ratio | allowed |\n| ---- | ----: | ----: | ----: | ----: |")
    for name, allowed in ALLOWED.items():
        best, best_of_theirs = min(ours[name]), min(theirs[name])
        ratio = best / best_of_theirs
        failed |= allowed is not None and ratio > 1 + allowed
        click.echo(
            f"| {name} | {best_of_theirs:.4f} s | {best:.4f} s | {ratio:.3f} | {1 + allowed if allowed else ''} |"
        )
    return int(failed)


if __name__ == "__main__":
    main()
