"""A pass over several outputs that is killed, or meets a full disk, loses nothing and ends with the same bytes."""

import errno
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from moe_gguf.formats.positional import PositionalFile

from ..checkpoints import Tiny, write_checkpoint
from ..command import moe_gguf

LARGE = Tiny(n_layer=3, n_embd=512, n_ff=1536, n_head=8, n_expert=8, layout="fused", cuts=(9,))
TYPES = ("Q4_K_M", "Q5_K_M", "Q8_0")
PROGRAM = """
from moe_gguf.writer import write
write.SECONDS_BETWEEN_CHECKPOINTS = 0.0  # a run of a second notes its progress as one of an hour does
from moe_gguf.cli import main
main()
"""


def arguments(source: Path, folder: Path) -> list[str]:
    types = [part for name in TYPES for part in ("--type", name)]
    return ["quantize", str(source), *types, "-o", str(folder), "-t", "2"]


def start(source: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments(source, folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stderr


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("large") / "Large", LARGE)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Return the hashes of an undisturbed run, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    finish(start(source, folder))
    return hashes(folder), time.monotonic() - began


def kill_and_go_on(source: Path, folder: Path, seconds: float, kills: int, seed: int) -> None:
    """Kill the run at random moments, then let it finish."""
    folder.mkdir()
    random_moment = random.Random(seed)
    for _ in range(kills):
        process = start(source, folder)
        time.sleep(random_moment.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.communicate()
        done = [path for path in folder.glob("*.gguf") if not (folder / f"{path.name}.journal").exists()]
        if len(done) == len(TYPES):
            return
    finish(start(source, folder))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_runs_end_with_the_same_bytes(
    source: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    kill_and_go_on(source, tmp_path / "out", seconds, kills=2, seed=seed)
    assert hashes(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 115))
def test_runs_killed_at_thirty_moments(
    source: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    kill_and_go_on(source, tmp_path / "out", seconds, kills=2, seed=seed)
    assert hashes(tmp_path / "out") == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_says_how_to_go_on(source: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path) -> None:
    expected, _ = undisturbed
    folder = tmp_path / "out"
    folder.mkdir()
    process = start(source, folder)
    while process.poll() is None and not list(folder.glob("*.partial")):
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    if process.returncode:
        assert process.returncode == 130 and "run the same command again" in stderr.splitlines()[-1]
        assert not list(folder.glob("*.gguf"))
    assert finish(start(source, folder)) is not None if process.returncode else True
    assert hashes(folder) == expected


def test_a_full_disk_is_said_and_can_be_continued(
    source: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = undisturbed
    folder = tmp_path / "out"
    folder.mkdir()
    write, written = PositionalFile.write, [0]

    def limited(self: PositionalFile, offset: int, data: memoryview) -> None:
        written[0] += 1
        if written[0] > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(PositionalFile, "write", limited)
        outcome = moe_gguf(*arguments(source, folder), "-q")
    assert outcome.status == 1
    assert "disk is full" in outcome.stderr and "run the same command again" in outcome.stderr
    assert not list(folder.glob("*.gguf"))
    again = moe_gguf(*arguments(source, folder))
    assert again.status == 0 and "resumed" in again.stderr
    assert hashes(folder) == expected


def test_a_changed_source_is_not_continued(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    process = start(source, folder)
    while process.poll() is None and not any(path.stat().st_size for path in folder.glob("*.journal")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert list(folder.glob("*.journal"))
    shard = next(source.glob("*.safetensors"))
    state = shard.stat()
    import os

    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    try:
        refused = moe_gguf(*arguments(source, folder), "-q")
        assert refused.status == 1 and shard.name in refused.stderr and "--force" in refused.stderr
    finally:
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_another_set_of_types_goes_on_with_what_is_there(
    source: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, _ = undisturbed
    folder = tmp_path / "out"
    folder.mkdir()
    assert moe_gguf("quantize", source, "--type", "Q8_0", "-o", folder, "-q").status == 0
    assert moe_gguf("quantize", source, "--type", "Q4_K_M,Q5_K_M", "-o", folder, "-q").status == 0
    assert hashes(folder) == expected
