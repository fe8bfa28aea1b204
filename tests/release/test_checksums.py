"""SHA256SUMS against sha256sum itself."""

import shutil
import subprocess
from pathlib import Path

import pytest
from moe_gguf.formats.errors import ReleaseError
from moe_gguf.release.checksums import check_checksums, read_checksums, sha256_of, write_checksums

NAMES = ("a b.gguf", "plots/é.png", "back\\slash", "line\nbreak")


def filled(folder: Path) -> dict[str, str]:
    (folder / "plots").mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode() * 1000)
    return {name: sha256_of(folder / name) for name in NAMES}


def test_sha256sum_writes_the_same_lines(tmp_path: Path) -> None:
    program = shutil.which("sha256sum")
    assert program
    sums = filled(tmp_path)
    path = write_checksums(tmp_path, sums)
    printed = subprocess.run([program, *sorted(NAMES)], cwd=tmp_path, capture_output=True, check=True).stdout
    assert path.read_bytes() == printed
    subprocess.run([program, "-c", "--strict", path.name], cwd=tmp_path, check=True, capture_output=True)
    assert read_checksums(tmp_path) == sums


def test_what_changed_and_what_is_missing_is_named(tmp_path: Path) -> None:
    sums = filled(tmp_path)
    assert not check_checksums(tmp_path, sums)
    (tmp_path / NAMES[0]).unlink()
    (tmp_path / NAMES[1]).write_bytes(b"other")
    assert [(one.name, one.kind) for one in check_checksums(tmp_path, sums)] == [
        (NAMES[0], "missing"),
        (NAMES[1], "changed"),
    ]
    assert not check_checksums(tmp_path, sums, [NAMES[2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [("abc  x\n", "line 1"), (f"{'0' * 64}  ../x\n", "leads out"), (f"{'0' * 64}  /x\n", "leads out")],
)
def test_what_is_no_list_of_sums_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(ReleaseError, match=message):
        read_checksums(tmp_path)
