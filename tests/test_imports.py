"""The direction of imports, read from the source.

cli -> release | serve -> jobs -> measure -> (convert | merge | quantize | runner) -> models -> writer -> formats.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from moe_gguf.cli.root import VERBS, module_of

ROOT = Path(__file__).parent.parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("release", "serve"),
    ("jobs",),
    ("measure",),
    ("convert", "merge", "quantize", "runner"),
    ("models",),
    ("writer",),
    ("formats",),
)
BELOW = {
    package: {lower for floor in FLOORS[number + 1 :] for lower in floor}
    for number, floor in enumerate(FLOORS)
    for package in floor
}
BELOW["measure"] -= {"convert", "merge", "quantize"}
PACKAGES = [package for package in BELOW if (ROOT / package).is_dir()]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HEAVY = {
    *("gguf", "huggingface_hub", "jinja2", "llama_cpp", "ml_dtypes", "numba", "numpy", "prompt_toolkit", "psutil"),
    *("rich", "safetensors", "scipy", "starlette", "tokenizers", "tqdm", "uvicorn", "yaml"),
}


def imports(path: Path, top_level: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every module that a file imports; `moe_gguf.` for our own."""
    package = ("moe_gguf", *path.relative_to(ROOT).parent.parts)
    for node in module_level(ast.parse(path.read_text())) if top_level else ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parent, *(node.module or "").split("."))).strip(".")
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported: not inside functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not function and not checking:
                waiting.append(child)


def test_every_code_folder_is_known_here_and_installed() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert folders == set(PACKAGES)
    listed = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent.relative_to(ROOT) for path in SOURCES}:
        assert f'"moe_gguf.{".".join(folder.parts)}" = "{folder.as_posix()}"' in listed


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] == package
        for line, name in imports(path)
        if name.startswith("moe_gguf.") and (target := name.split(".")[1]) != package and target not in BELOW[package]
    ]
    assert not wrong


def modules_of(package: str) -> dict[str, set[str]]:
    """Return each module of a package with those of ours that it imports, late and typing-only imports counted."""
    names = {".".join(("moe_gguf", *path.relative_to(ROOT).with_suffix("").parts)): path for path in SOURCES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {}
    for name, path in names.items():
        if name.split(".")[1] == package:
            found = {target for _, target in imports(path) if target in names and target != name}
            graph[name] = found - {name.rpartition(".")[0]}
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_leads_back(package: str) -> None:
    waiting = modules_of(package)
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert not waiting, f"these import each other: {', '.join(sorted(waiting))}"


def test_jobs_know_no_terminal() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "cli"
        for line, name in imports(path)
        if name.split(".")[0] == "click"
    ]
    assert not wrong


def test_our_own_imports_are_relative() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "moe_gguf")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "moe_gguf" for alias in node.names))
    ]
    assert not wrong


def test_llama_cpp_has_one_door() -> None:
    doors = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for _, name in imports(path)
        if name.split(".")[0] == "llama_cpp"
    }
    assert doors == {"formats/llamacpp.py"}


def test_the_command_line_imports_nothing_heavy() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in loaded_with_the_verbs()
        for line, name in imports(path, top_level=True)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong


def loaded_with_the_verbs() -> set[Path]:
    """Return the files of cli/ that importing the verbs, `--help` included, runs; the others are imported in use."""
    loaded: set[Path] = set()
    waiting = [
        ROOT / "cli" / f"{name}.py"
        for name in ("__init__", "root", *(module_of(verb).rpartition(".")[2] for verb in VERBS))
    ]
    while waiting:
        path = waiting.pop()
        if path not in loaded:
            loaded.add(path)
            names = {name.removeprefix("moe_gguf.cli.").split(".")[0] for _, name in imports(path, top_level=True)}
            waiting += [found for name in names if (found := ROOT / "cli" / f"{name}.py").is_file()]
    return loaded
