"""A hash of the code that a measurement ran, so that a stored result knows when it has gone stale.

The hash covers the claim's module and every module of thrifty that it imports, directly or not, wherever in the
file the import stands, and the data files of the package that they name. Comments, docstrings and blank lines do not
count, nor do modules that only show things.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

# What these do changes no measured number: they read, say and show.
_PRESENTATION = frozenset(
    {
        "thrifty.core.errors",
        "thrifty.core.progress",
        "thrifty.core.index",
        "thrifty.claims.fingerprint",
        "thrifty.claims.store",
    }
)


def fingerprint(module: str) -> str:
    """The hash of a module and all of thrifty that it uses, code and data files.

    Parameters
    ----------
    module
        Dotted name, for example ``"thrifty.claims.ssd"``.

    Returns
    -------
    str
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    names = used_modules(module)
    for name in sorted(names):
        digest.update(f"{name}\n{_code(_path(name))}\n".encode())
    for file in data_files(names):
        digest.update(f"{file.parent.name}/{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def data_files(modules: Collection[str]) -> list[Path]:
    """The data files of some modules: files beside one of them whose name is a string in the code of one of them.

    A file whose name is put together from parts is not found; a name that only a comment or docstring mentions does
    not count.

    Parameters
    ----------
    modules
        Dotted names.
    """
    paths = [_path(name) for name in modules]
    said = {text for path in paths for text in _strings(path)}
    beside = {file for folder in {path.parent for path in paths} for file in folder.iterdir()}
    return sorted(file for file in beside if file.name in said and file.suffix != ".py" and file.is_file())


def used_modules(module: str) -> set[str]:
    """The module and all modules of thrifty that it imports, directly or not; packages' re-exports are skipped."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        name = ahead.pop()
        if name in found or name in _PRESENTATION:
            continue
        path = _path(name)
        if path.name == "__init__.py":
            continue
        found.add(name)
        ahead += _imports(path)
    return found


@functools.cache
def _path(module: str) -> Path:
    # By path and not by the import system, which would import the packages on the way.
    place = Path(str(files("thrifty"))).joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.exists():
            return path
    raise ModuleNotFoundError(f"no module {module}")


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("thrifty.")]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "thrifty":
            # `from thrifty.core import index` names a module, `from thrifty.core.run import Run` a class.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name for name in inner if _is_module(name)] or [node.module]
    return tuple(names)


@functools.cache
def _strings(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return bool(_path(name))
    except ModuleNotFoundError:
        return False


@functools.cache
def _code(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            end = first.end_lineno or first.lineno
            lines[first.lineno - 1 : end] = [""] * (end - first.lineno + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and lines[row - 1]:
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())
