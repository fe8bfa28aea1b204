"""The claim: an importance matrix takes at most llama-imatrix's time, and at most twice that with second moments.

    python -m benchmarks.imatrix MODEL.gguf TEXT --llama-imatrix PATH

Both sides run as commands on the same chunks, in turns; the best of all rounds counts. The files must be equal to the
byte. llama-imatrix is built as benchmarks/engine.py says of llama-bench. On a machine that does other things too,
processor time of one thread (-t 1) tells more than wall time: threads of OpenMP spin while they wait.

What was learnt, with 4 chunks and one thread (llama-imatrix 19.5 s of processor): ours takes 0.98 times that, and 1.51
times with moments. The output head is left out, which makes up for Python's start (0.8 s) and the callbacks (0.1 s a
chunk). What cost most before were threads of scipy's BLAS, which a limit did not reach because the library was loaded
after it (21 s instead of 7), and tokens that were decoded only to learn which matrices share an input.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from moe_gguf.runner.threads import best_thread_count

from .processes import Cost, run

OURS = (sys.executable, "-c", "from moe_gguf.cli import main; main()", "imatrix")
ALLOWED = {"imatrix": 1.0, "with moments": 2.0}


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--llama-imatrix", "program", type=click.Path(exists=True, dir_okay=False), required=True)
@click.option("-t", "--threads", type=int, default=best_thread_count)
@click.option("--chunks", default=16, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(model: Path, text: Path, program: str, threads: int, chunks: int, rounds: int) -> None:
    """Run both sides in turns and compare their best seconds."""
    costs: dict[str, list[Cost]] = {"llama-imatrix": [], **{name: [] for name in ALLOWED}}
    same = True
    with TemporaryDirectory() as name:
        folder = Path(name)
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        shared = ["-f", text, "--chunks", str(chunks), "-t", str(threads)]
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            costs["llama-imatrix"].append(run([program, "-m", model, *shared, "--no-ppl", "-o", theirs], folder))
            command = [*OURS, model, *shared, "--force", "-q", "-o", ours]
            costs["imatrix"].append(run(command, folder))
            same &= ours.read_bytes() == theirs.read_bytes()
            costs["with moments"].append(run([*command, "--moments", folder / "m.safetensors"], folder))
    report(costs, same)


def report(costs: dict[str, list[Cost]], same: bool) -> None:
    """Print the best of both sides and leave with 1 when a claim does not hold."""
    base_wall, base_cpu = best(costs["llama-imatrix"])
    holds = same
    for name, found in costs.items():
        wall, cpu = best(found)
        allowed = f", at most {ALLOWED[name]}x" if name in ALLOWED else ""
        ratios = f"{wall / base_wall:.2f}x wall, {cpu / base_cpu:.2f}x processor{allowed}"
        click.echo(f"{name:<14} {wall:8.2f} s  {cpu:8.2f} s of processor  {ratios}")
        holds &= wall / base_wall <= ALLOWED.get(name, 1)
    click.echo(f"equal files: {'yes' if same else 'NO'}")
    sys.exit(0 if holds else 1)


def best(costs: list[Cost]) -> tuple[float, float]:
    """Return the least wall and processor time."""
    return min(cost.wall for cost in costs), min(cost.cpu for cost in costs)


if __name__ == "__main__":
    main()
