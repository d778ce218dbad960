"""What of our own code something depends on: the modules that it imports, and what these do."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@functools.cache
def code_sha256(*modules: str) -> str:
    """Hash the source of modules of this package and of all of its modules that they import.

    What is made by code and kept has this in its key: an edit elsewhere makes nothing again.

    Args:
        modules: their names without the package's own, as "export.unit".
    """
    digest = hashlib.sha256()
    for name, file in imported_files(PACKAGE, *modules).items():
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def imported_files(package: Path, *modules: str) -> dict[str, Path]:
    """Return the source files of modules and of all that they import, by name, sorted.

    Imports inside functions count, those for type checkers alone do not. A folder's `__init__`
    counts where something is imported from it, not where it merely runs before a module of its
    folder: `tgate_export/runtime/__init__.py` gives names to users, and makes nothing.

    Args:
        package: the package's folder.
        modules: names of its modules, without its own.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    found: dict[str, Path] = {}
    left = list(modules)
    for name in modules:
        if _file(package, name) is None:
            raise ModuleNotFoundError(f"{package.name} has no module {name}")
    while left:
        name = left.pop()
        file = _file(package, name)
        if file is None or name in found:
            continue
        found[name] = file
        left += _imports(package, name, file)
    return dict(sorted(found.items()))


def _file(package: Path, name: str) -> Path | None:
    if not name:
        return None
    path = package.joinpath(*name.split("."))
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None
    )


def _imports(package: Path, name: str, file: Path) -> Iterator[str]:
    """Yield the names of this package's modules that a module may import."""
    prefix = f"{package.name}."
    for node in _run(ast.parse(file.read_bytes(), file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from tgate_export.families import hub` imports tgate_export.families.hub.
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                part if _file(package, part.removeprefix(prefix)) else str(node.module)
                for part in parts
            ]
        elif isinstance(node, ast.ImportFrom):
            raise NotImplementedError(f"{name} has a relative import, which is not followed")
        else:
            continue
        yield from (found.removeprefix(prefix) for found in names if found.startswith(prefix))


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module but for what only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.orelse:
                yield statement
                yield from _run(statement)
            continue
        yield child
        yield from _run(child)
