"""Sizes of files count in thousands, of memory in 1024s, and what could be read either way is asked about."""

import pytest
from moe_gguf.formats.errors import PlanError
from moe_gguf.formats.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "file", "memory"),
    [
        ("8G", 8 * 10**9, 8 * 2**30),
        ("8GB", 8 * 10**9, 8 * 2**30),
        ("7.5GiB", 7.5 * 2**30, 7.5 * 2**30),
        ("512m", 512 * 10**6, 2**29),
        ("1 TB", 10**12, 2**40),
        ("4096", 4096, 4096),
        ("16kb", 16000, 2**14),
        (".5K", 500, 512),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, file: float, memory: float) -> None:
    assert parse_size(text, "file") == file
    assert parse_size(text, "memory") == memory


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "0", "eight", "infG", "nan", "8Q", "9999999999T", "9" * 400, "1.2.3G", "٨G"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"is not an amount of memory; .*1024s"):
        parse_size(text, "memory")
    with pytest.raises(PlanError, match=r"is not a size of a file; .*1000s"):
        parse_size(text, "file")


def test_a_number_with_b_alone_is_asked_about() -> None:
    with pytest.raises(PlanError, match="write 1G for 10\\^9, 1 for bytes"):
        parse_size("1B", "file")
