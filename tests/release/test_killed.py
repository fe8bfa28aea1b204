"""A release killed at random moments, as the system kills: run again it makes what is missing, and the same bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .small import TEXTS, contents, write_recipe


def command(recipe: Path, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-c", "from moe_gguf.cli import main; main()", "release", str(recipe), "-o", str(folder)),
        *("--types", "Q8_0,Q4_K_M,Q2_K", "--no-speed", "-q", "-t", "1", "-c", "64", "--chunks", "4"),
        *("-f", str(TEXTS / "scripture.txt"), "--calibration", str(TEXTS / "manual.txt")),
        *("--calibration-chunks", "1", "--device", "none"),
    ]


@pytest.mark.slow
def test_killed_at_twenty_moments_it_goes_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "models")
    whole = tmp_path / "whole"
    subprocess.run(command(recipe, whole), check=True, capture_output=True)
    started = time.monotonic()
    subprocess.run(command(recipe, tmp_path / "timed"), check=True, capture_output=True)
    seconds = time.monotonic() - started
    draw, killed = random.Random(7), 0
    for number in range(20):
        folder = tmp_path / f"killed-{number}"
        process = subprocess.Popen(command(recipe, folder), stdout=-3, stderr=-3)
        time.sleep(draw.uniform(0.2, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        again = subprocess.run(command(recipe, folder), capture_output=True, text=True)
        assert again.returncode == 0, (number, again.stderr)
        assert contents(folder) == contents(whole), number
    assert killed > 10
