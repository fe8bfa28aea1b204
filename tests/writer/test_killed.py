"""A run that is killed at any step is completed by the next, and never leaves half a file under a final name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType
from moe_gguf.formats.errors import OutputError
from moe_gguf.formats.positional import PositionalFile
from moe_gguf.writer import journal, write
from moe_gguf.writer.partial import Output, split_output
from moe_gguf.writer.plan import Plan

from ..arrays import output_of, plan_of, random_arrays

T = GGMLQuantizationType
ARRAYS = random_arrays({f"t{i}": (3, 32) for i in range(5)})
OLD = b"GGUF of another day"


class Killed(BaseException):
    """Ends a run as a kill does: nothing handles it."""


def outputs(plan: Plan, folder: Path) -> list[Output]:
    """Return one plain output and one in three shards."""
    return [
        output_of(plan, folder / "plain.gguf", T.F16),
        split_output(output_of(plan, folder / "split.gguf"), 800),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(folder: Path, version: str = "1", **options: Any) -> list[write.Written]:
    plan = plan_of(ARRAYS if version == "1" else {name: -array for name, array in ARRAYS.items()}, version)
    return write.write(plan, outputs(plan, folder), n_threads=1, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    assert list(contents(folder)) == ["plain.gguf", *(f"split-0000{i}-of-00003.gguf" for i in (1, 2, 3))]
    return contents(folder)


STEPS = ((PositionalFile, "write"), (PositionalFile, "sync"), (os, "ftruncate"), (os, "truncate"), (os, "replace"))
STEPS = (*STEPS, (journal, "_append"), (Path, "unlink"))


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Do something until a step that changes the disk; tell whether it got that far."""
    count = 0

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Killed
            return original(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            act()
        except Killed:
            return True
    return False


def killed_everywhere(tmp_path: Path, prepare: Callable[[Path], object], act: Callable[[Path], object]) -> list[Path]:
    """Return folders in which a run was killed before its first, second, ... step, up to the last."""
    folders: list[Path] = []
    while True:
        folder = tmp_path / str(len(folders))
        folder.mkdir()
        prepare(folder)
        if not killed_at(len(folders), lambda folder=folder: act(folder)):
            return folders
        folders.append(folder)


def nothing(_: Path) -> None:
    """Prepare nothing."""


def complete(folder: Path, expected: dict[str, bytes]) -> None:
    """Run again what was killed; only when nothing but journals was left to remove may it say that all is there."""
    found = {name: content for name, content in contents(folder).items() if name.endswith(".gguf")}
    try:
        run(folder)
    except OutputError as error:
        assert "exists already" in str(error) and found == expected
        run(folder, force=True)
    assert contents(folder) == expected


def test_a_run_killed_at_any_step_is_completed_by_the_next(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folders = killed_everywhere(tmp_path, nothing, run)
    assert len(folders) > 30
    for folder in folders:
        for name, content in contents(folder).items():
            assert not name.endswith(".gguf") or content == undisturbed[name]
        complete(folder, undisturbed)


def test_a_forced_run_killed_at_any_step_leaves_old_or_new(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    def old(folder: Path) -> None:
        for name in undisturbed:
            (folder / name).write_bytes(OLD)

    for folder in killed_everywhere(tmp_path, old, lambda folder: run(folder, force=True)):
        found = contents(folder)
        assert all(found[name] in (OLD, content) for name, content in undisturbed.items())
        run(folder, force=True)
        assert contents(folder) == undisturbed


def test_another_source_never_goes_on_with_what_was_left(tmp_path: Path) -> None:
    (tmp_path / "expected").mkdir()
    run(tmp_path / "expected", version="2")
    expected = contents(tmp_path / "expected")
    for folder in killed_everywhere(tmp_path, nothing, run):
        before = contents(folder)
        try:
            run(folder, version="2")
        except OutputError as error:
            assert "version" in str(error) or "exists already" in str(error)
            assert "--force" in str(error)
            empty = {"plain.gguf.lock", "split.gguf.lock"} - set(contents(folder))
            assert contents(folder) == {name: before[name] for name in before if name not in empty or before[name]}
            run(folder, version="2", force=True)
        assert contents(folder) == expected


def test_a_second_kill_while_going_on_changes_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    first = killed_everywhere(tmp_path, nothing, run)
    # The last four steps remove journals and locks.
    for number in (len(first) // 2, len(first) - 7, len(first) - 4):
        again = tmp_path / f"again {number}"
        again.mkdir()
        for folder in killed_everywhere(again, lambda folder, n=number: copy(first[n], folder), run):
            complete(folder, undisturbed)


def copy(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        shutil.copy2(path, folder)
