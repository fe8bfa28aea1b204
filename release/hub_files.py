"""GGUF files on the hub, read where they lie: headers and the tensors that are looked at come by range requests.

A repository comes in; a stand-in for each file goes out, which has its size and its header and is sparse, and a source
that asks the hub for rows.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..formats.errors import GgufError, ReleaseError
from ..formats.gguf_fields import LONGEST_HEADER
from ..formats.gguf_file import GgufFile, GgufTensor, read_shard, tensor_bytes
from ..writer.gguf_source import DTYPES, GgufSource
from .hub import endpoint, hub_api, refusals, without_token

FIRST_LOOK = 2**20
CHUNK = 2**23
KEPT_CHUNKS = 8
MANY_TRIES = 5


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; the hub states the SHA-256 of large ones."""

    name: str
    n_bytes: int
    sha256: str | None


class HubRepo:
    """A repository at one commit, so that a file does not change while it is read."""

    def __init__(self, repo: str, revision: str | None = None) -> None:
        self.repo, self._revision = repo, revision

    @cached_property
    def commit(self) -> str:
        """The commit that the revision stood for when it was first asked for."""
        with refusals(self.repo, "be read from"):
            info = hub_api().repo_info(self.repo, revision=self._revision)
        return info.sha or self._revision or "main"

    @cached_property
    def files(self) -> Mapping[str, HubFile]:
        """All files by name."""
        from huggingface_hub.hf_api import RepoFile

        with refusals(self.repo, "be read from"):
            entries = list(hub_api().list_repo_tree(self.repo, recursive=True, revision=self.commit))
        return {
            entry.path: HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of a file. Raises ReleaseError."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        if stop <= start:
            return b""
        url = hf_hub_url(self.repo, name, revision=self.commit, endpoint=endpoint())
        headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with refusals(self.repo, "be read from"):
            for _ in range(MANY_TRIES):
                answer = http_backoff("GET", url, headers=headers, timeout=60)
                hf_raise_for_status(answer)
                data = answer.content if answer.status_code == 206 else answer.content[start:stop]
                if len(data) == stop - start:
                    return data
        raise ReleaseError(without_token(f"{self.repo}: {name}: the hub sends less than bytes {start} to {stop - 1}"))

    def stand_in(self, name: str, folder: Path) -> Path:
        """Return a file of a folder that has the size of a GGUF file of the hub, and of its bytes the header.

        Raises GgufError for a header that is broken.
        """
        size, path = self.files[name].n_bytes, folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        there = 0
        with open(path, "w+b") as file:
            file.truncate(size)
            while True:
                wanted = min(size, max(FIRST_LOOK, there * 4))
                file.seek(there)
                file.write(self.read(name, there, wanted))
                file.flush()
                there = wanted
                try:
                    if read_shard(path, oldest=1).header_bytes <= there:
                        return path
                except GgufError as error:
                    if there == size or there > LONGEST_HEADER or "truncated" in str(error):
                        raise


class HubSource(GgufSource):
    """Rows of a file of which only a stand-in is here. `whole` fetches ahead: every row will be asked for, in order."""

    def __init__(self, file: GgufFile, repo: HubRepo, folder: Path, whole: bool) -> None:
        super().__init__(file)
        self._repo, self._folder, self._whole = repo, folder, whole
        self._chunks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        tensor = self.file.tensors[name]
        dtype = DTYPES.get(tensor.qtype.name, np.dtype(np.uint8))
        size = tensor_bytes(tensor.shape[:1], tensor.qtype)
        read = self._in_chunks if self._whole else self._read
        data = read(tensor, start * size, stop * size)
        return np.frombuffer(bytearray(data), dtype).reshape(stop - start, -1)

    def _read(self, tensor: GgufTensor, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of a tensor."""
        name = tensor.path.relative_to(self._folder).as_posix()
        return self._repo.read(name, tensor.offset + start, tensor.offset + stop)

    def _in_chunks(self, tensor: GgufTensor, start: int, stop: int) -> bytes:
        first, last = start // CHUNK, -(-stop // CHUNK)
        data = b"".join(self._chunk(tensor, number) for number in range(first, last))
        return data[start - first * CHUNK : stop - first * CHUNK]

    def _chunk(self, tensor: GgufTensor, number: int) -> bytes:
        """Return a chunk of a tensor, fetched once however many threads want it."""
        key = (tensor.name, number)
        with self._lock:
            promised = self._chunks.get(key)
            if mine := promised is None:
                promised = self._chunks[key] = Future()
                while len(self._chunks) > KEPT_CHUNKS:
                    self._chunks.popitem(last=False)
            else:
                self._chunks.move_to_end(key)
        if mine:
            try:
                promised.set_result(self._read(tensor, number * CHUNK, min((number + 1) * CHUNK, tensor.n_bytes)))
            except BaseException as error:
                promised.set_exception(error)
        return promised.result()
