"""Models from a hub, over HTTP, from a server of the test's own: only what is needed, once, with clear errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.checkpoint import open_checkpoint
from moe_gguf.formats.errors import CheckpointError

from .hub_server import Hub, serving
from .tiny_models import Dense, write_dense

FETCH = """
import sys
from pathlib import Path
from moe_gguf.formats.errors import MoeGgufError
from moe_gguf.merge.hub import fetch
try:
    print(fetch(sys.argv[1], sys.argv[2] or None))
except MoeGgufError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    one = write_dense(tmp_path / "hub" / "one", Dense(seed=2))
    (one / "pytorch_model.bin").write_bytes(b"pickle")
    (one / "consolidated.safetensors").write_bytes(b"twice")
    (one / "README.md").write_text("---\nlicense: mit\n---\n")
    (one / "original").mkdir()
    (one / "original" / "params.json").write_text("{}")
    return tmp_path


def fetched(
    hub: Hub, folder: Path, repo: str, revision: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `fetch` in a process of its own: huggingface_hub reads its environment when it is imported."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", FETCH, repo, revision],
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_fetches_what_is_needed_and_only_once(folder: Path) -> None:
    with serving(Hub({"us/one": folder / "hub" / "one"})) as hub:
        first = fetched(hub, folder, "us/one")
        assert first.returncode == 0, first.stderr
        here = Path(first.stdout.strip())
        assert sorted(path.name for path in here.iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert (here / "model.safetensors").read_bytes() == (folder / "hub" / "one" / "model.safetensors").read_bytes()
        assert folder / "home" in here.parents
        hub.requests.clear()
        assert fetched(hub, folder, "us/one").stdout.strip() == str(here)
        assert hub.fetched() == []
        assert fetched(hub, folder, "us/one", HF_HUB_OFFLINE="1").stdout.strip() == str(here)


def sharded(folder: Path, suffix: str) -> Path:
    """Write a repository whose weights have names that only its index tells."""
    one = write_dense(folder, Dense(seed=2))
    stem = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    (one / f"weights_a{suffix}").write_bytes((one / "model.safetensors").read_bytes())
    (one / "model.safetensors").unlink()
    (one / f"other{suffix}").write_bytes(b"not needed")
    (one / f"{stem}.index.json").write_text(json.dumps({"weight_map": {"a": f"weights_a{suffix}"}}))
    return one


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_files_that_the_index_names_are_fetched(folder: Path, suffix: str) -> None:
    one = sharded(folder / "hub" / "sharded", suffix)
    with serving(Hub({"us/sharded": one})) as hub:
        here = Path(fetched(hub, folder, "us/sharded").stdout.strip())
        names = {path.name for path in here.iterdir()}
        assert f"weights_a{suffix}" in names and f"other{suffix}" not in names
        assert fetched(hub, folder, "us/sharded", HF_HUB_OFFLINE="1").stdout.strip() == str(here)


def test_only_pytorchs_file_is_fetched_where_there_is_no_other(folder: Path) -> None:
    (folder / "hub" / "one" / "model.safetensors").unlink()
    (folder / "hub" / "one" / "consolidated.safetensors").unlink()
    with serving(Hub({"us/one": folder / "hub" / "one"})) as hub:
        here = Path(fetched(hub, folder, "us/one").stdout.strip())
        assert (here / "pytorch_model.bin").is_file()


def test_a_repository_of_gguf_files_is_called_that(folder: Path) -> None:
    one = folder / "hub" / "gguf"
    one.mkdir()
    (one / "one-Q4_K_M.gguf").write_bytes(b"GGUF")
    (one / "README.md").write_text("")
    with serving(Hub({"us/gguf": one})) as hub:
        refused = fetched(hub, folder, "us/gguf")
    assert "error: us/gguf: a repository of GGUF files (one-Q4_K_M.gguf)" in refused.stderr


def test_messages_name_the_repository(folder: Path) -> None:
    with serving(Hub({"us/one": folder / "hub" / "one"})) as hub:
        here = Path(fetched(hub, folder, "us/one").stdout.strip())
    (here / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^us/one/config\.json: no such file"):
        open_checkpoint(here)


def test_a_broken_download_goes_on_where_it_stopped(folder: Path) -> None:
    data = np.random.default_rng(0).bytes(24 * 2**20)
    (folder / "hub" / "one" / "model.safetensors").write_bytes(data)
    with serving(Hub({"us/one": folder / "hub" / "one"}, cut={"model.safetensors"})) as hub:
        found = fetched(hub, folder, "us/one")
        assert (Path(found.stdout.strip()) / "model.safetensors").read_bytes() == data
        resumed = [wanted for _, path, wanted in hub.requests if path.endswith("model.safetensors") and wanted]
        assert any(int(wanted.removeprefix("bytes=").partition("-")[0]) > 2**20 for wanted in resumed)


def test_gated_repositories_need_the_token(folder: Path) -> None:
    with serving(Hub({"us/one": folder / "hub" / "one"}, gated={"us/one"})) as hub:
        refused = fetched(hub, folder, "us/one")
        assert f"error: us/one: gated; accept its terms at {hub.endpoint}/us/one, and set HF_TOKEN" in refused.stderr
        assert fetched(hub, folder, "us/one", HF_TOKEN=hub.token).returncode == 0


@pytest.mark.parametrize(
    ("repo", "revision", "environment", "message"),
    [
        ("us/none", "", {}, "error: us/none: no folder here, and not on http://127.0.0.1"),
        ("us/one", "v9", {}, "error: us/one: no revision 'v9' on http://127.0.0.1"),
        (
            "us/one",
            "",
            {"HF_HUB_OFFLINE": "1"},
            "us/one: no folder here, not in the cache, and HF_HUB_OFFLINE is set",
        ),
        (
            "us/one",
            "",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "not in the cache, and no answer from http://127.0.0.1:9",
        ),
        ("us/-one-", "", {}, "error: us/-one-: not a name that the hub can have"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_line(
    folder: Path, repo: str, revision: str, environment: dict[str, str], message: str
) -> None:
    with serving(Hub({"us/one": folder / "hub" / "one"})) as hub:
        refused = fetched(hub, folder, repo, revision, **environment)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_recipe_of_hub_models_is_merged(folder: Path) -> None:
    base = write_dense(folder / "hub" / "base", Dense())
    experts = [{"source_model": "us/one"}, {"source_model": "us/base@main"}]
    recipe = folder / "recipe.yml"
    recipe.write_text(json.dumps({"base_model": "us/base", "gate_mode": "random", "experts": experts}))
    with serving(Hub({"us/one": folder / "hub" / "one", "us/base": base})) as hub:
        variables = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home")}
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from moe_gguf.cli import main; main()",
                "merge",
                str(recipe),
                "-o",
                str(folder / "out"),
            ],
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "base_model:\n- us/base\n- us/one" in (folder / "out" / "README.md").read_text()
