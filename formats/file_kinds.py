"""A file that is no GGUF is called what it is: its name and first bytes come in, a few words and what to do go out."""

import re
from pathlib import Path

LOOK = 4096
# MODEL.gguf.part1of2, MODEL.gguf-split-a, MODEL.gguf.part-aa: cut by size, not as shards.
PART = re.compile(r"(?P<stem>.+\.gguf)[.-](?:part|split)[-_.]?(?P<number>\d+|[a-z]{1,2})(?:of(?P<count>\d+))?", re.I)
UNFINISHED = (".part", ".crdownload", ".download", ".incomplete", ".aria2", ".partial", ".tmp")
NO_GGUF = "not a GGUF file (it does not start with GGUF)"
CONVERT = "llama.cpp dropped it in 2023; download the model as GGUF, or convert its checkpoint again"
# Magic numbers of llama.cpp's formats before GGUF (August 2023), as they lie in the file.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file; fetch it with: git lfs pull"),
    (b"lmgg", f"a ggml file, the format before GGUF; {CONVERT}"),
    (b"fmgg", f"a ggmf file, a format before GGUF; {CONVERT}"),
    (b"tjgg", f"a ggjt file, the format before GGUF; {CONVERT}"),
    (b"algg", f"a ggla file, a LoRA adapter from before GGUF; {CONVERT}"),
    (b"nsgg", f"a ggsn file, a session of llama.cpp from before GGUF; {CONVERT}"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint (.bin, .pt); give the folder with its config.json"),
    (b"\x1f\x8b", "compressed by gzip; unpack it with: gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it with: unzstd"),
    (b"\xfd7zXZ", "compressed by xz; unpack it with: unxz"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x89HDF", "an HDF5 file; give a checkpoint as safetensors, or a GGUF file"),
)


def what_it_is(path: Path) -> str:
    """Return what a file is that does not begin with GGUF, and what to do, in a few words."""
    if part := part_of(path):
        return part
    with open(path, "rb") as file:
        beginning = file.read(LOOK)
    if known := next((words for magic, words in BEGINNINGS if beginning.startswith(magic)), None):
        return known
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file; download it itself (on the hub the link with /resolve/ in it, not /blob/)"
    if beginning[8:10] == b'{"' and int.from_bytes(beginning[:8], "little") < 2**32:
        return "a safetensors file; give the checkpoint's folder, with its config.json"
    if text.startswith(b"{"):
        return "a text in JSON, perhaps the message of a server that refused; download the file again"
    if not beginning:
        return "empty; download it again"
    if not beginning.strip(b"\0"):
        return "zeros at its beginning: a download that was not finished; go on with it"
    return NO_GGUF


def part_of(path: Path) -> str | None:
    """Return how to join the parts of a file that was cut by size; None when its name is not that of a part."""
    if match := PART.fullmatch(path.name):
        which = f"part {match['number']}" + (f" of {match['count']}" if match["count"] else "")
        joined = f"cat {match['stem']}{path.name[len(match['stem'])]}* > {match['stem']}"
        return f"{which} of a file that was cut into pieces; join them with: {joined}"
    if path.suffix.lower() in UNFINISHED:
        return "an unfinished download, by its name; go on with it"
    return None
