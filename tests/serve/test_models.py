"""Several models: loaded when asked for, unloaded when room is needed or nobody asks."""

import shutil
from pathlib import Path

import httpx
import pytest
from moe_gguf.formats.errors import CatalogueError
from moe_gguf.serve.models import Models, Shelf
from moe_gguf.serve.service import opened
from moe_gguf.serve.shelves import shelf_of

from .conftest import options, serving, wait_until


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    for name in ("one", "two", "three-00002-of-00003"):
        shutil.copy(tiny_path, tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    return tmp_path


def shelved(shelf: Shelf) -> Models:
    return Models(shelf, lambda name, path: opened(path, options(), name))


def ask(http: httpx.Client, name: str, status: int = 200) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).status_code == status


def test_a_model_is_loaded_when_it_is_asked_for(folder: Path) -> None:
    shelf = shelf_of(folder, None, 1, float("inf"))
    assert list(shelf.paths) == ["one", "two"] and shelf.default == "one"
    models = shelved(shelf)
    with serving(models) as address, httpx.Client(base_url=address, timeout=60) as http:
        found = {each["id"]: each["status"]["value"] for each in http.get("/v1/models").json()["data"]}
        assert found == {"one": "unloaded", "two": "unloaded"}
        ask(http, "two")
        assert list(models.loaded) == ["two"]
        ask(http, "one")
        assert list(models.loaded) == ["one"]
        ask(http, "three", 404)
        assert http.get("/props").json()["model_alias"] == "one"
        assert http.get("/props?model=two").json()["model_alias"] == "two"
    models.close(0)


def test_a_model_that_answers_is_not_unloaded(folder: Path) -> None:
    models = shelved(shelf_of(folder, None, 1, float("inf")))
    with serving(models) as address, httpx.Client(base_url=address, timeout=60) as http:
        ask(http, "one")
        wait_until(lambda: not models.loaded["one"].pins)
        models.loaded["one"].pins += 1  # as an answer in the making does
        ask(http, "two", 503)
        models.loaded["one"].pins -= 1
        ask(http, "two")
        assert list(models.loaded) == ["two"]
    models.close(0)


def test_an_idle_model_is_unloaded(folder: Path) -> None:
    models = shelved(shelf_of(folder, None, 2, 0.1))
    with serving(models) as address, httpx.Client(base_url=address, timeout=60) as http:
        ask(http, "one")
        wait_until(lambda: not models.loaded)
        ask(http, "one")


def test_nothing_to_serve_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="--models-dir"):
        shelf_of(tmp_path, None, 1, 1.0)
    with pytest.raises(CatalogueError):
        shelf_of(None, None, 1, 1.0)
