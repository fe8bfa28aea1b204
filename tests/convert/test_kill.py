"""A conversion that is killed at any moment leaves nothing under the final name, and the next run completes it."""

import os
import random
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from ..checkpoints import Tiny, write_checkpoint

LARGE = Tiny(n_layer=4, n_embd=512, n_ff=1536, n_head=8, n_expert=8, layout="fused", cuts=(9, 17))
"""About 150 MB: large enough that most kills fall between the first and the last byte."""

PROGRAM = """
from moe_gguf.writer import write
write.SECONDS_BETWEEN_CHECKPOINTS = 0.0  # a run of a second notes its progress as one of an hour does
from moe_gguf.cli import main
main()
"""


def start(source: Path, target: Path, *options: str) -> subprocess.Popen[str]:
    """Start a conversion in a process of its own."""
    arguments = ["convert", str(source), "-o", str(target), "--outtype", "f16", "--no-verify", *options]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a conversion that must succeed; return what it said."""
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stderr


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def digest(path: Path) -> str:
    state = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """Return a checkpoint, the hash of its conversion, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("large")
    source = write_checkpoint(folder / "large", LARGE)
    began = time.monotonic()
    finish(start(source, folder / "out.gguf"))
    seconds = time.monotonic() - began
    return source, digest(folder / "out.gguf"), seconds


def kill_and_run_again(source: Path, folder: Path, moments: list[float]) -> str:
    """Kill a conversion after each of the moments (seconds), then let one finish; return its hash."""
    target = folder / "out.gguf"
    for moment in moments:
        if not target.exists():
            process = start(source, target)
            time.sleep(moment)
            kill(process)
    if target.exists():
        # It was quicker than the kill. Then the file must be whole, whatever is left beside it.
        return digest(target)
    finish(start(source, target))
    assert [path.name for path in folder.iterdir()] == ["out.gguf"]
    return digest(target)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_conversion_completes_the_next_time(
    seed: int, undisturbed: tuple[Path, str, float], tmp_path: Path
) -> None:
    source, expected, seconds = undisturbed
    moment = random.Random(seed).uniform(seconds / 4, seconds)
    assert kill_and_run_again(source, tmp_path, [moment]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_even_when_it_is_killed_again_and_again(
    seed: int, undisturbed: tuple[Path, str, float], tmp_path: Path
) -> None:
    source, expected, seconds = undisturbed
    chance = random.Random(1000 + seed)
    moments = [chance.uniform(0, seconds) for _ in range(chance.randint(1, 4))]
    assert kill_and_run_again(source, tmp_path, moments) == expected


def kill_in_the_middle(source: Path, target: Path) -> None:
    """Kill a conversion as soon as its journal says that something reached the disk."""
    process = start(source, target)
    journal = target.with_name(target.name + ".journal")
    while process.poll() is None and not (journal.exists() and '"done"' in journal.read_text()):
        time.sleep(0.002)
    kill(process)
    assert not target.exists()


def test_the_next_run_goes_on_where_the_killed_one_stopped(
    undisturbed: tuple[Path, str, float], tmp_path: Path
) -> None:
    source, expected, _ = undisturbed
    target = tmp_path / "out.gguf"
    kill_in_the_middle(source, target)
    assert "resumed an interrupted run" in finish(start(source, target))
    assert digest(target) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_source_that_changed_meanwhile_is_not_mixed_with_the_old(
    undisturbed: tuple[Path, str, float], tmp_path: Path
) -> None:
    source, expected, _ = undisturbed
    target = tmp_path / "out.gguf"
    kill_in_the_middle(source, target)
    shard = source / "model-00002-of-00003.safetensors"
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 10**9))
    process = start(source, target, "-q")
    _, stderr = process.communicate()
    assert process.returncode == 1 and shard.name in stderr and "--force" in stderr and stderr.count("\n") == 1
    assert not target.exists()
    finish(start(source, target, "--force"))
    assert digest(target) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
