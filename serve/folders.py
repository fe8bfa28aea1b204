"""Another page than ours at `/`: a folder's files in (llama.cpp's web UI, one's own), routes and open paths out."""

import mimetypes
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..formats.errors import MoeGgufError

# Systems tell these differently, or not at all.
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}


class FolderError(MoeGgufError):
    """A folder that holds no page."""


class Files(StaticFiles):
    """The files of a folder; where there is nothing to read there is nothing to write either."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file; see Starlette."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        return await super().get_response(path, scope)


def folder_routes(folder: Path) -> list[BaseRoute]:
    """Return what serves a folder's files, those of links out of it excepted. Raises FolderError without a page."""
    if not (folder / "index.html").is_file():
        raise FolderError(f"{folder}: there is no index.html in it; --path names a folder with a page")
    for suffix, kind in TYPES.items():
        mimetypes.add_type(kind, suffix)
    return [Mount("/", Files(directory=folder, html=True))]


def open_paths(folder: Path) -> frozenset[str]:
    """Return the paths of a folder's files, which need no key: a page must be there before one can give it a key."""
    return frozenset(f"/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file())
