"""The page at `/`: files of the package in, responses out, with headers that let nothing else run.

`/` is asked for each time; all else lies under `/page/DIGEST/`, where DIGEST changes with any byte of any file, so that
browsers keep it for good and never mix two versions.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
# No script or style but our files', nothing from or to other hosts, no frame around the page. Markup from strings is
# made by DOMPurify's policy alone. Styles that scripts set on elements (KaTeX's, the strips) need no permission.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOR_GOOD = "public, max-age=31536000, immutable"


@cache
def files() -> dict[str, bytes]:
    """Return the page's files by their path below `page/`."""
    found = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES)
    return {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in found}


@cache
def digest() -> str:
    """Return what names this version of all files."""
    state = sha256()
    for name, content in files().items():
        state.update(f"{name} {len(content)} ".encode() + content)
    return state.hexdigest()[:16]


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page: `/` and what lies under `/page/`. They show nothing secret and need no key."""
    from starlette.responses import Response
    from starlette.routing import Route

    index = files()["index.html"].replace(b'"page/', f'"page/{digest()}/'.encode())

    def show_index(request: Request) -> Response:
        headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": f'"{sha256(index).hexdigest()[:16]}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(index, headers={**headers, "Content-Type": TYPES[".html"]})

    def show_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files():
            return Response("no such file\n", status_code=404, headers={**HEADERS, "Content-Type": TYPES[".txt"]})
        # A page that was open when a newer version began may still ask for a file by the old digest.
        kept = FOR_GOOD if request.path_params["digest"] == digest() else "no-store"
        return Response(
            files()[name], headers={**HEADERS, "Cache-Control": kept, "Content-Type": TYPES[Path(name).suffix]}
        )

    return [Route("/", show_index), Route("/page/{digest}/{name:path}", show_file)]
