"""Outputs that are unfinished, forced, in the way of others or too large: what may go on, and what is refused."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from moe_gguf.formats.errors import OutputError
from moe_gguf.formats.positional import PositionalFile
from moe_gguf.writer import journal, partial, write
from moe_gguf.writer.journal import journal_path, read_journal
from moe_gguf.writer.partial import Output, PartialOutput, split_output
from moe_gguf.writer.plan import Plan

from ..arrays import ArraySource, output_of, plan_of, random_arrays

T = GGMLQuantizationType
ARRAYS = random_arrays({f"t{i}": (3, 32) for i in range(5)})
OLD = b"GGUF of another day"


def outputs(plan: Plan, folder: Path) -> list[Output]:
    """Return one plain output and one in three shards."""
    return [
        output_of(plan, folder / "plain.gguf", T.F16),
        split_output(output_of(plan, folder / "split.gguf"), 800),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(folder: Path, version: str = "1", **options: Any) -> list[write.Written]:
    plan = plan_of(ARRAYS, version)
    return write.write(plan, outputs(plan, folder), n_threads=1, **options)


def stopped(plan: Plan, output: Output, done: int) -> None:
    """Let a run fail when its first slabs are on the disk; then change them, so that writing them again would show."""
    told = 0

    def fail(_: int) -> None:
        nonlocal told
        told += 1
        if told == done:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OutputError, match="run the same command again"):
        write.write(plan, [output], n_threads=1, advance=fail)
    [(path, layout)] = output.shards()
    with PositionalFile(PartialOutput.partial(path), os.O_RDWR) as file:
        for entry in output.entries[:done]:
            file.write(layout.offsets[entry.name], np.full(entry.n_bytes // 4, 7, np.float32))
    source = plan.source
    assert isinstance(source, ArraySource)
    source.reads.clear()


def test_what_is_on_the_disk_is_neither_read_nor_written_again(tmp_path: Path) -> None:
    plan = plan_of(ARRAYS)
    source = plan.source
    assert isinstance(source, ArraySource)
    output = output_of(plan, tmp_path / "x.gguf")
    stopped(plan, output, 3)
    told: list[int] = []
    [written] = write.write(plan, [output], advance=told.append)
    assert written.resumed_at == 3 and sum(told) == 5 * 96
    assert [name for name, _, _ in source.reads] == ["t3", "t4"]
    data = np.frombuffer(written.paths[0].read_bytes()[-5 * 384 :], np.float32).reshape(5, 3, 32)
    assert (data[:3] == 7).all() and (data[3] == ARRAYS["t3"]).all() and (data[4] == ARRAYS["t4"]).all()


def test_outputs_at_different_places_go_on_each_from_its_own(tmp_path: Path) -> None:
    plan = plan_of(ARRAYS)
    behind, ahead = output_of(plan, tmp_path / "a.gguf"), output_of(plan, tmp_path / "b.gguf")
    stopped(plan, behind, 1)
    stopped(plan, ahead, 4)
    assert [one.resumed_at for one in write.write(plan, [behind, ahead])] == [1, 4]
    for name, done in (("a.gguf", 1), ("b.gguf", 4)):
        data = np.frombuffer((tmp_path / name).read_bytes()[-5 * 384 :], np.float32).reshape(5, -1)
        assert [bool((rows == 7).all()) for rows in data] == [i < done for i in range(5)]


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_an_unfinished_file_that_is_not_whole_is_begun_anew(damage: str, tmp_path: Path) -> None:
    plan = plan_of(ARRAYS)
    output = output_of(plan, tmp_path / "x.gguf")
    stopped(plan, output, 3)
    place = tmp_path / "x.gguf.partial"
    if damage == "gone":
        place.unlink()
    else:
        os.truncate(place, 500)
    [written] = write.write(plan, [output])
    assert written.resumed_at == 0
    assert np.frombuffer(written.paths[0].read_bytes()[-384:], np.float32).tolist() == ARRAYS["t4"].ravel().tolist()


def killed(_: PartialOutput) -> None:
    raise KeyboardInterrupt


def test_what_came_under_the_name_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    plan = plan_of(ARRAYS)
    output = output_of(plan, tmp_path / "x.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialOutput, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            write.write(plan, [output])
    assert output.path.exists() and journal_path(output.path).exists()
    output.path.write_bytes(OLD)
    with pytest.raises(OutputError, match="exists already"):
        write.write(plan, [output])
    assert output.path.read_bytes() == OLD


@pytest.mark.parametrize(
    "lines", ["5", "[1]", '"x"', "{", '{}\n{"done": "many"}', "{}\n[]", '{}\n{"done": null}', "[" * 9999, "\udcff"]
)
def test_a_broken_journal_is_refused_and_dropped_with_force(lines: str, tmp_path: Path) -> None:
    plan = plan_of(ARRAYS)
    output = output_of(plan, tmp_path / "x.gguf")
    journal_path(output.path).write_bytes(f"{lines}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(OutputError, match="journal") as caught:
        write.write(plan, [output])
    assert "--force" in str(caught.value) and "\n" not in str(caught.value)
    write.write(plan, [output], force=True)
    assert list(contents(tmp_path)) == ["x.gguf"]


def test_a_journal_counts_its_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert read_journal(path, {}) is None
    journal_path(path).write_text('{"version": "1"')
    assert read_journal(path, {}) is None
    text = json.dumps({"version": "1"}) + '\n{"done": 3}\n{"done": 7}\n{"done": 99'
    journal_path(path).write_text(text)
    assert read_journal(path, {"version": "1"}) == journal.Progress(7, False)
    for identity in ({}, {"version": "1", "more": "2"}, {"version": "2"}):
        with pytest.raises(OutputError, match=r"version|more") as caught:
            read_journal(path, identity)
        assert "--force" in str(caught.value)


def test_a_run_keeps_others_off_its_output(tmp_path: Path) -> None:
    plan = plan_of(ARRAYS)
    refused: list[str] = []

    def again(_: int) -> None:
        for force in (False, True):
            with pytest.raises(OutputError, match="another run is writing it") as caught:
                write.write(plan, [output_of(plan, tmp_path / "x.gguf", T.F16)], force=force)
            refused.append(str(caught.value))

    write.write(plan, [output_of(plan, tmp_path / "x.gguf")], advance=again)
    assert len(refused) == 10 and list(contents(tmp_path)) == ["x.gguf"]
    assert contents(tmp_path)["x.gguf"][-384:] == ARRAYS["t4"].tobytes()


def test_an_output_that_exists_stays_without_force(tmp_path: Path) -> None:
    (tmp_path / "split-00002-of-00003.gguf").write_bytes(OLD)
    with pytest.raises(OutputError, match=r"split-00002-of-00003\.gguf: exists already.*--force"):
        run(tmp_path)
    assert contents(tmp_path) == {"split-00002-of-00003.gguf": OLD}
    run(tmp_path, force=True)
    assert OLD not in contents(tmp_path).values()


def refused(tmp_path: Path, names: list[str], inputs: list[Path]) -> str:
    plan = plan_of(ARRAYS)
    with pytest.raises(OutputError) as caught:
        partial.check_outputs([output_of(plan, tmp_path / name) for name in names], [str(path) for path in inputs])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_output_is_never_the_input_by_any_name(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(OLD)
    (tmp_path / "linked.gguf").symlink_to(source)
    os.link(source, tmp_path / "second.gguf")
    (tmp_path / "folder").mkdir()
    for name in ("in.gguf", "linked.gguf", "second.gguf", "folder/../in.gguf"):
        assert "the output is the input" in refused(tmp_path, [name], [source])


def test_two_outputs_never_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "named twice" in refused(tmp_path, ["x.gguf", "x.gguf"], [])
    assert "named twice" in refused(tmp_path, ["x.gguf", "folder/../x.gguf"], [])
    plan = plan_of(ARRAYS)
    split = split_output(output_of(plan, tmp_path / "x.gguf"), 800)
    with pytest.raises(OutputError, match="named twice"):
        partial.check_outputs([split, output_of(plan, tmp_path / "x-00002-of-00003.gguf")], [])


def test_only_gguf_files_are_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "model.bin").write_bytes(OLD)
    (tmp_path / "empty").touch()
    (tmp_path / "folder.gguf").mkdir()
    assert "no GGUF file" in refused(tmp_path, ["notes.txt"], [])
    assert "is a folder" in refused(tmp_path, ["folder.gguf"], [])
    assert "no such folder" in refused(tmp_path, ["nowhere/x.gguf"], [])
    plan = plan_of(ARRAYS)
    partial.check_outputs([output_of(plan, tmp_path / name) for name in ("model.bin", "empty", "new")], [])


def limited(free: int) -> Callable[[Path], Any]:
    usage = shutil.disk_usage("/")
    return lambda _: usage._replace(free=free)


def test_all_outputs_together_must_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(ARRAYS)
    need = sum(output.n_bytes for output in outputs(plan, tmp_path))
    monkeypatch.setattr(partial.shutil, "disk_usage", limited(need - 1))
    with pytest.raises(OutputError, match=f"{need:,} bytes are needed and {need - 1:,} are free; free 1 bytes"):
        run(tmp_path)
    assert not contents(tmp_path)
    monkeypatch.setattr(partial.shutil, "disk_usage", limited(need))
    run(tmp_path)


def test_what_an_unfinished_run_holds_is_not_needed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = random_arrays({"a": (64, 1024), "b": (64, 1024)})
    plan = plan_of(arrays)
    output = output_of(plan, tmp_path / "x.gguf")
    stopped(plan, output, 1)
    monkeypatch.setattr(partial.shutil, "disk_usage", limited(output.n_bytes - 200_000))
    assert write.write(plan, [output])[0].resumed_at == 1
    with pytest.raises(OutputError, match="bytes are needed"):
        write.write(plan, [output], force=True)
    output.path.unlink()
    monkeypatch.setattr(partial.shutil, "disk_usage", limited(output.n_bytes))
    stopped(plan, output, 1)
    monkeypatch.setattr(partial.shutil, "disk_usage", limited(output.n_bytes - 200_000))
    other = plan_of(arrays, "2")
    assert write.write(other, [output_of(other, output.path)], force=True)[0].resumed_at == 0
