"""The page's files: what browsers get, and what a wheel holds."""

import re
import tomllib
from pathlib import Path

import pytest
from moe_gguf.serve.pages import FOLDER, digest, files, page_routes
from starlette.applications import Starlette
from starlette.testclient import TestClient

ROOT = Path(__file__).parent.parent.parent
OWN = sorted(path for path in FOLDER.iterdir() if path.is_file())
LARGEST = 1_500_000


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes()))


def test_the_index_lets_nothing_but_our_files_run(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "trusted-types dompurify" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    assert not re.search(r"<script>|<style|\sstyle=|\son[a-z]+=", answer.text)
    assert client.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_what_the_index_names_is_kept_for_good(client: TestClient) -> None:
    addresses = re.findall(r'(?:src|href)="(page/[^"]+)"', client.get("/").text)
    assert len(addresses) >= 7
    for address in addresses:
        answer = client.get(f"/{address}")
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_files_have_their_types(client: TestClient) -> None:
    kinds = {"app.js": "text/javascript", "look.css": "text/css", "icon.svg": "image/svg+xml"}
    font = next(name for name in files() if name.endswith(".woff2"))
    for name, kind in {**kinds, font: "font/woff2", "vendor/LIBRARIES.txt": "text/plain"}.items():
        assert client.get(f"/page/{digest()}/{name}").headers["content-type"].split(";")[0] == kind


def test_a_file_asked_for_by_an_older_page_is_not_kept(client: TestClient) -> None:
    assert client.get("/page/0123456789abcdef/app.js").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["none.js", "../pages.py", "..%2fpages.py", "vendor/remake.sh", "", "vendor"])
def test_nothing_else_of_the_package_is_shown(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{digest()}/{name}").status_code == 404


def test_modules_import_and_styles_name_what_is_there() -> None:
    for name, content in files().items():
        folder = Path(name).parent
        text = content.decode() if name.endswith((".js", ".css")) else ""
        pattern = r"url\(([^)]+)\)" if name.endswith(".css") else r"""(?:from|import|import\()\s*"(\.[^"]+)\""""
        for target in re.findall(pattern, text) if name.endswith(".css") or folder == Path(".") else ():
            assert (folder / target).as_posix() in files(), f"{name}: {target}"


def test_a_wheel_holds_all_files_and_they_are_small() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in patterns["moe_gguf.serve"] for path in FOLDER.parent.glob(pattern)}
    assert {path.relative_to(FOLDER).as_posix() for path in packed} == set(files())
    assert sum(map(len, files().values())) < LARGEST


def test_libraries_have_versions_and_licences() -> None:
    told = files()["vendor/LIBRARIES.txt"].decode()
    assert "sourceMappingURL" not in "".join(files()[name].decode() for name in files() if name.endswith(".js"))
    for name in ("markdown-it.js", "dompurify.js", "highlight.js", "katex.js"):
        package, version = re.findall(rf"^{re.escape(name)} +(\S+) +(\d+\.\d+\.\d+) ", told, re.MULTILINE)[0]
        assert f"======== {package} {version}" in told
        assert version in files()[f"vendor/{name}"].decode() or name == "markdown-it.js"


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_files_are_short_and_named(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= 300
    assert f"`{path.name}`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
