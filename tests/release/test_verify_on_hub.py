"""Files on a hub of the tests' own: checked where they lie, by the bytes that are looked at and no others."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.release.checksums import SUMS, checksums_text, sha256_of

from ..checkpoints import Tiny, write_checkpoint
from ..command import moe_gguf
from .faults import flip, swap_experts
from .hub_server import Fault, Hub, Repo, serving
from .test_verify import verified

REPO, NAME = "them/Wide-GGUF", "wide-Q4_K_M.gguf"
# More than a sample of a row of each expert and matrix, and the header, which is fetched by the megabyte.
BIG = Tiny(n_layer=2, n_embd=512, n_ff=1024, n_head=8, n_head_kv=4, n_expert=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and a Q4_K_M of several megabytes."""
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "Wide", BIG)
    done = moe_gguf("quantize", folder / "Wide", "--type", "Q4_K_M", "-o", folder / NAME, "-q")
    assert done.status == 0, done.stderr
    return folder


@pytest.fixture
def hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with that file, its checksums, and a card."""
    sums = checksums_text({NAME: sha256_of(made / NAME)})
    content = {NAME: (made / NAME).read_bytes(), SUMS: sums.encode(), "README.md": b"# Wide\n"}
    with serving(Hub(repos={REPO: Repo(branches={"main": content})})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def change(hub: Hub, made: Path, tmp_path: Path) -> Path:
    """Return a copy of the file to be damaged; `hub` serves it, when it is put there."""
    copy = tmp_path / NAME
    copy.write_bytes((made / NAME).read_bytes())
    return copy


def test_headers_alone_are_fetched_without_a_source(made: Path, hub: Hub) -> None:
    (file,) = verified(REPO, status=0)
    assert hub.strangers and set(hub.strangers) == {None}
    assert file["path"] == NAME and file["tensors"]["unchecked"] == len(read_gguf(made / NAME).tensors)
    assert hub.served[NAME] == 2**20 < (made / NAME).stat().st_size / 4


def test_every_tensor_is_fetched_once_and_compared(made: Path, hub: Hub) -> None:
    (file,) = verified(REPO, "--against", made / "Wide", status=0)
    tensors = read_gguf(made / NAME).tensors.values()
    assert file["tensors"]["exact"] == len(tensors)
    assert hub.served[NAME] == 2**20 + sum(tensor.n_bytes for tensor in tensors)


def test_a_sample_fetches_its_rows_only(made: Path, hub: Hub, tmp_path: Path) -> None:
    copy = change(hub, made, tmp_path)
    swap_experts(copy, "blk.1.ffn_down_exps.weight", 2, 5)
    hub.files(REPO)[NAME] = copy.read_bytes()
    hub.files(REPO)[SUMS] = checksums_text({NAME: sha256_of(copy)}).encode()
    (file,) = verified(REPO, "--against", made / "Wide", "--sample", "1")
    found = [one["message"] for one in file["problems"]]
    assert len(found) == 2 and "in the place of expert 2 are the bytes of expert 5" in found[0]
    assert hub.served[NAME] < 2**20 + 100_000


def test_what_the_hub_states_is_held_against_the_checksums(made: Path, hub: Hub, tmp_path: Path) -> None:
    copy = change(hub, made, tmp_path)
    flip(copy, copy.stat().st_size - 4000)
    hub.files(REPO)[NAME] = copy.read_bytes()
    (file,) = verified(REPO)
    assert [one["kind"] for one in file["problems"]] == ["checksum"]
    (file,) = verified(REPO, "--against", made / "Wide")
    assert [one["kind"] for one in file["problems"]] == ["checksum", "wrong"]
    assert f"byte {copy.stat().st_size - 4000} of {NAME}" in file["problems"][1]["message"]
    hub.files(REPO)[NAME] = copy.read_bytes()[:-100_000]
    (file,) = verified(REPO)
    assert {one["kind"] for one in file["problems"]} == {"checksum", "truncated"}
    del hub.files(REPO)[NAME]
    (file,) = verified(REPO)
    assert [one["kind"] for one in file["problems"]] == ["missing"]


def test_a_busy_hub_is_asked_again_and_a_missing_repository_is_named(hub: Hub) -> None:
    hub.faults.append(Fault("/resolve/", 429))
    verified(REPO, status=0)
    done = moe_gguf("verify", "them/None-GGUF")
    assert done.status == 1 and "no such repository" in done.stderr and hub.token not in done.stderr
    done = moe_gguf("verify", REPO, "--revision", "v9")
    assert done.status == 1 and "no such branch, tag or commit" in done.stderr
