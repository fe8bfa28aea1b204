"""Models from a hub, over HTTP, from a server of the test's own: only what is needed, once, with clear errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
