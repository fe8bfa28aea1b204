"""The claim: moments and calibrated rounding of a 4x7B go through on an ordinary computer: hours, and under 12 GB.

    python -m benchmarks.calibrated_7b [--tokens 20480] [--memory 6GiB] [--type Q4_K] [--reading 40]

No 4x7B is needed: shapes are Mistral-7B's, and the rates are measured here at those widths, in processor time of one
thread: sums of products (ssyrk), factors of one input, rounding of rows with error feedback, and without for
comparison. Time is work over rate and threads; memory is what the plan of the moments allots, and what the threads of
rounding hold. Reading the text takes what `moe-gguf bench` says of the model, --reading tokens a second. What was
learnt: where not all sums fit at once, inputs are kept in blocks of 1024 columns and the text is read several times;
that reading takes the longest then, and sums, factors and rounding together are minutes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from gguf import GGMLQuantizationType
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.moments import Entry, Moment, MomentsInfo
from moe_gguf.formats.sizes import parse_size
from moe_gguf.measure.moments import Source, add_products, n_bytes, passes, plan
from moe_gguf.quantize.ggml import quantize_chunk, row_bytes
from moe_gguf.quantize.kernels import encode
from moe_gguf.quantize.rounding import round_rows
from moe_gguf.quantize.rounding.factor import factor_of
from moe_gguf.runner.threads import best_thread_count

from tests.header_only import MISTRAL_4X7B, Shape, entries, fields, write_header_only

ROWS, TOKENS = 64, 512


@dataclass(frozen=True)
class Rates:
    """What one thread does at a width: tokens a second summed, seconds for a factor, weights a second rounded."""

    width: int
    summed: float
    factored: float
    rounded: float
    plainly: float
    by_llama: float


def seconds(work: Callable[[], object], at_least: float = 0.5) -> float:
    """Return the processor seconds of one call, the best of a few: other programs do not count."""
    work()
    best, spent = float("inf"), 0.0
    while spent < at_least:
        started = time.process_time()
        work()
        took = time.process_time() - started
        best, spent = min(best, took), spent + took
    return best


def measure(width: int, qtype: GGMLQuantizationType) -> Rates:
    """Measure on one thread, with random inputs of full rank."""
    from threadpoolctl import threadpool_limits

    numbers = np.random.default_rng(1)
    inputs = numbers.normal(size=(TOKENS, width)).astype(np.float32)
    rows = numbers.normal(size=(ROWS, width)).astype(np.float32)
    total = np.zeros((width, width), np.float32)
    out = np.empty((ROWS, row_bytes(qtype, width)), np.uint8)
    importance = np.ones(width, np.float32)
    with threadpool_limits(1):
        summing = seconds(lambda: add_products(inputs, 0, width, total))
        total += np.tril(total, -1).T
        moment = Moment((total,), 20480, 20480.0, np.zeros((0, width), np.float32))
        factoring = seconds(lambda: factor_of(moment, 256))
        factor = factor_of(moment, 256)
        rounding = seconds(lambda: round_rows(qtype, rows, factor))
        plainly = seconds(lambda: encode(qtype, rows, out, importance))
        by_llama = seconds(lambda: quantize_chunk(qtype, rows, importance))
    n = rows.size
    return Rates(width, TOKENS / summing, factoring, n / rounding, n / plainly, n / by_llama)


def averaging(shape: Shape) -> float:
    """Return the seconds that averages over a window's inputs take, as attention's of one layer, on one thread."""
    from threadpoolctl import threadpool_limits

    numbers = np.random.default_rng(1)
    inputs = numbers.normal(size=(TOKENS, shape.n_embd)).astype(np.float32)
    weights = numbers.random((TOKENS, TOKENS), np.float32)
    with threadpool_limits(1):
        return seconds(lambda: weights @ inputs)


def sources_of(shape: Shape) -> list[Source]:
    """Return the inputs of a mixture, as a survey of its graph finds them."""
    found = []
    for layer in range(shape.n_layer):
        block = f"blk.{layer}."
        found += [
            Source((f"{block}attn_q.weight", f"{block}attn_k.weight"), shape.n_embd, 0),
            Source((f"{block}attn_v.weight",), shape.n_embd, 0),
            Source((f"{block}attn_output.weight",), shape.n_embd, 0),
            Source((f"{block}ffn_gate_exps.weight", f"{block}ffn_up_exps.weight"), shape.n_embd, shape.n_expert),
            Source((f"{block}ffn_down_exps.weight",), shape.n_ff, shape.n_expert),
        ]
    return [*found, Source(("output.weight",), shape.n_embd, 0)]


def planned(shape: Shape, memory: int) -> tuple[tuple[Entry, ...], int]:
    """Return the entries of a mixture's moments, and the passes that they take."""
    with TemporaryDirectory() as folder:
        file = read_gguf(write_header_only(Path(folder) / "m.gguf", fields(shape), entries(shape)))
        found = plan(sources_of(shape), file, memory)
    return found, len(passes(found, memory))


@click.command()
@click.option("--tokens", default=20480, show_default=True, help="Tokens of the calibration text.")
@click.option("--memory", default="6GiB", show_default=True, help="Memory for the sums (imatrix --moments-memory).")
@click.option("--type", "name", default="Q4_K", show_default=True)
@click.option("--reading", default=40.0, show_default=True, help="Tokens a second that the model reads, as bench says.")
@click.option("-t", "--threads", type=int, default=best_thread_count)
def main(tokens: int, memory: str, name: str, reading: float, threads: int) -> None:
    """Measure rates, and project a 4x7B."""
    shape, qtype = MISTRAL_4X7B, GGMLQuantizationType[name.upper()]
    found, n_pass = planned(shape, parse_size(memory, "memory"))
    widths = sorted({entry.width for entry in found})
    rates = {width: measure(width, qtype) for width in widths}
    for one in rates.values():
        click.echo(
            f"{one.width} columns, one thread: {one.summed:.0f} tokens/s summed, a factor in {one.factored:.1f} s, "
            f"{name} {one.rounded / 1e6:.1f} M weights/s with feedback ({one.plainly / 1e6:.0f} without, llama.cpp "
            f"with an imatrix {one.by_llama / 1e6:.1f})"
        )
    used = shape.n_expert_used / shape.n_expert
    summing = factoring = rounding = 0.0
    for entry in found:
        rate, blocks = rates[entry.width], len(entry.blocks)
        seen = tokens * (used if entry.n_expert > 1 else 1.0)
        summing += entry.n_expert * blocks * seen / rate.summed
        factoring += entry.n_expert * blocks * rate.factored
    widths_of = {weight: entry.width for entry in found for weight in entry.weights}
    for tensor in entries(shape):
        if tensor.name in widths_of:
            rounding += float(np.prod(tensor.shape)) / rates[widths_of[tensor.name]].rounded
    steps = {
        f"reading {tokens} tokens {n_pass} times": n_pass * tokens / reading,
        "averages of attn_v's inputs (one thread)": tokens / TOKENS * shape.n_layer * averaging(shape),
        "summing moments": summing / threads,
        "factors (once for all K-quants)": factoring / threads,
        f"rounding {name}": rounding / threads,
    }
    size = MomentsInfo("", "", "", 512, found).n_bytes
    working = max(n_bytes(entry) // entry.n_expert for entry in found)
    click.echo(f"4x7B, {threads} threads, {memory} for sums: {n_pass} passes, a file of {size / 1e9:.1f} GB")
    for what, took in steps.items():
        click.echo(f"  {what:<41} {took / 60:7.1f} min")
    click.echo(f"  {'together':<41} {sum(steps.values()) / 3600:7.1f} h")
    click.echo(
        f"  memory: {memory} of sums beside the mapped model; rounding: 0.5 GiB of factors at most and "
        f"{threads * 3 * working / 2**30:.1f} GiB while they are made"
    )


if __name__ == "__main__":
    main()
