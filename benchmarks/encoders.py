"""Encoders of the GGML types against llama.cpp's own: million weights a second, on normal bfloat16 weights.

    python -m benchmarks.encoders [--threads N] [--types Q4_K,Q6_K+] [--rounds N]

Both sides run in turns in the same process, and the best time of each counts: what another program takes from the
machine hits both. llama.cpp's encoder gets float32 rows, ours widens bfloat16 itself. The bytes are compared too.
With `--threads N` both sides encode N slabs at once.

`bound` is what one core could do if it did nothing but the float operations of C's search, all of them in vectors
and none waiting: operations a weight (counted in quantize/kernels/search.py) at the rate that a loop of independent
multiplications and additions reaches on this core, measured first. Types without a search are bound by memory:
there the bound is copying as many bytes as are read and written, in memory beyond the caches.

What was learnt:
- One block per lane keeps C's order of summation, so the bytes are equal, and needs no horizontal operation.
- Values held in LLVM vectors (quantize/kernels/vectors.py) stay in registers. In prototypes the same loops over
  arrays, left to LLVM's own vectorizer, loaded and stored every sum for every weight, at half the speed.
- The final levels and the packing are done in the order of the weights, 16 at a time: no second transposition.
- Q3_K without an imatrix moves single levels in up to five rounds, but four sub-blocks in five are done after one.
  Gathering the rest into full vectors took it from 4.5 to 6.3 times llama.cpp.
- 32 lanes with AVX-512 (two registers, so that latencies overlap): 7 to 15 % faster than 16, Q3_K a third. With AVX2
  16 and 32 are equal. A Zen 4 core, whose 512-bit operations take two cycles, reached half to 62 % of its bound.
- Widening a whole tile in one call, not block by block, made Q8_0, Q4_0 and Q4_1 twice as fast.
- A scalar encoder that sees the same few rows again has learnt their branches: Q3_K then gains half. Rows rotate here.
- Candidates of Q4_K, Q5_K and Q2_K depend on one another through the minimum: no way was found to skip one
  and keep the bytes.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
from moe_gguf.quantize.ggml import quantize_chunk, row_bytes
from moe_gguf.quantize.kernels import encode, widen

T = gguf.GGMLQuantizationType
# Float operations a weight in the searches: 17 in each candidate of scale and minimum after a first pass of 11, and 9
# in each of 19 candidates of a symmetric scale. Q3_K: rounding, one round of moves and a quarter of another.
OPERATIONS = {
    "Q2_K": 11 + 16 * 17,
    "Q3_K": 12 + 31 * 5 // 4,
    "Q4_K": 11 + 21 * 17,
    "Q5_K": 11 + 16 * 17,
    "Q6_K": 19 * 9,
    "Q2_K+": 11 + 37 * 17,
    "Q3_K+": 19 * 9,
    "Q4_K+": 11 + 37 * 17,
    "Q5_K+": 11 + 37 * 17,
    "Q6_K+": 19 * 9,
    "Q4_0+": 19 * 9,
    "Q5_0+": 19 * 9,
    "Q4_1+": 11 + 37 * 17,
    "Q5_1+": 11 + 37 * 17,
}
TYPES = [*OPERATIONS, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"]
ROW_LENGTH = 4096
N_ROWS = 256


def vector_operations_per_second() -> float:
    """Measure float32 multiplications and additions a second, independent of one another, on one core."""
    from moe_gguf.quantize.kernels.jit import kernel
    from moe_gguf.quantize.kernels.vectors import LANES, load, store

    width = LANES // 2

    @kernel
    def run(values, n):
        step = load(values, 0, width)
        a, b, c, d, e, f = step, step, step, step, step, step
        u, v, w, x, y, z = step, step, step, step, step, step
        for _ in range(n):
            a *= step
            b *= step
            c *= step
            d *= step
            e *= step
            f *= step
            u += step
            v += step
            w += step
            x += step
            y += step
            z += step
        store(values, 0, a + b + c + d + e + f + u + v + w + x + y + z)

    values, n = np.ones(width, np.float32), 300_000
    run(values, n)
    return 12 * width * n / best(lambda: run(values, n), 50)


def best(run: Callable[[], object], rounds: int) -> float:
    """Return the shortest time in seconds of some runs."""
    return min(seconds(run) for _ in range(rounds))


def seconds(run: Callable[..., object], *arguments: Any) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def on_threads(run: Callable[[int, int], object], start: int, n_threads: int) -> None:
    """Call run(number, start) on each of n_threads threads."""
    if n_threads == 1:
        run(0, start)
        return
    threads = [threading.Thread(target=run, args=(number, start)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def compare(name: str, n_threads: int, rounds: int, peak: float) -> str:
    """Return the line of the table for a type ("Q4_K") or a type with an imatrix ("Q4_K+")."""
    qtype = T[name.removesuffix("+")]
    random = np.random.default_rng(0)
    normal = random.standard_normal((N_ROWS, ROW_LENGTH), np.float32)
    rows = (normal.view(np.uint32) >> 16).astype(np.uint16)
    imatrix = random.random(ROW_LENGTH, np.float32) if name.endswith("+") else None
    wide, n_bytes = widen(rows), row_bytes(qtype, ROW_LENGTH)
    # Short runs, a few milliseconds each: on a busy machine some of them are not interrupted. Each takes other rows,
    # or the branches of a scalar encoder would be predicted from the run before.
    n_theirs, n_ours = (N_ROWS // 32, N_ROWS // 4) if name in OPERATIONS else (N_ROWS, N_ROWS)
    theirs = [np.empty((N_ROWS, n_bytes), np.uint8) for _ in range(n_threads)]
    ours = [np.empty((N_ROWS, n_bytes), np.uint8) for _ in range(n_threads)]

    def run_theirs(number: int, start: int) -> None:
        part = slice(start, start + n_theirs)
        quantize_chunk(qtype, wide[part], imatrix, theirs[number][part])

    def run_ours(number: int, start: int) -> None:
        part = slice(start, start + n_ours)
        encode(qtype, rows[part], ours[number][part], imatrix)

    slow = quick = float("inf")
    for turn in range(max(rounds, N_ROWS // n_theirs)):
        slow = min(slow, seconds(on_threads, run_theirs, turn * n_theirs % N_ROWS, n_threads))
        quick = min(quick, seconds(on_threads, run_ours, turn * n_ours % N_ROWS, n_threads))
    equal = np.array_equal(theirs[0], ours[0])
    ggml, here = n_threads * n_theirs * ROW_LENGTH / slow / 1e6, n_threads * n_ours * ROW_LENGTH / quick / 1e6
    bound = n_threads * (peak / OPERATIONS[name] / 1e6 if name in OPERATIONS else copies(rows, ours[0]))
    bytes_equal = "equal" if equal else "DIFFER"
    return f"{name:6} {ggml:9.1f} {here:9.1f} {here / ggml:7.1f}x {bound:9.0f} {here / bound:7.0%}  {bytes_equal}"


def copies(rows: np.ndarray, out: np.ndarray) -> float:
    """Return million weights a second if encoding were reading the rows and writing the output, and no more."""
    source = np.ones(1 << 26, np.uint8)  # larger than the caches, as a model is
    target = np.ones_like(source)
    copied = source.size / best(lambda: np.copyto(target, source), 10)
    return copied * 2 * rows.size / (rows.nbytes + out.nbytes) / 1e6


def lines(names: list[str], n_threads: int, rounds: int) -> Iterator[str]:
    peak = vector_operations_per_second()
    yield f"{n_threads} thread(s), vectors at {peak / 1e9:.0f} G float operations/s a core; + means with an imatrix"
    yield f"{'type':6} {'llama.cpp':>9} {'ours':>9} {'ratio':>8} {'bound':>9} {'reached':>8}  bytes"
    for name in names:
        yield compare(name, n_threads, rounds, peak)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the encoders against llama.cpp's.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--types", default=",".join(TYPES), help="comma-separated; + after a type: with an imatrix")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    for line in lines(options.types.split(","), options.threads, options.rounds):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
