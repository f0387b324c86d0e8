"""The code that a version brings, as a Python package under a name of its own.

MLflow puts the code/ folder of a version on sys.path and imports from it. Python has one module of each name in a process:
a package called `components` there would be mistaken for the installed one, or for another version's, if one of these was
imported before. So the package is called turnwise_<digest of its files>: versions with equal code share their modules, and
all others live side by side in one process, beside the installed package.
"""

from __future__ import annotations

import ast
import codecs
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.errors import InputError

CODE = "code"  # of a version: the folder that MLflow puts our code into
COMMON_NAME = "components"  # of the package where it is developed, and in versions made before it was renamed
DIGITS = 12  # of the digest, hexadecimal
INSTALLED = Path(__file__).parents[1]  # the package that this file is in, whatever it is called


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: bytes


def package_name(version: Path) -> str:
    """What the package in a version's folder is called. Raises InputError if there is none, or more than one."""
    names = [entry.parent.name for entry in (version / CODE).glob("*/__init__.py")]
    if len(names) != 1:
        raise InputError(f"{version / CODE}: holds {len(names)} packages, and must hold one: the version is damaged")
    return names[0]


def rename_package(version: Path) -> str:
    """Gives the package in a version's folder its own name, in its files and in the model script that imports it.

    Returns the name. A package that has its own name already is left as it is.
    """
    package = version / CODE / COMMON_NAME
    if not package.is_dir():
        return package_name(version)
    name = f"turnwise_{_digest(package)[:DIGITS]}"
    for path in [*version.glob("*.py"), *package.rglob("*.py")]:
        path.write_bytes(with_package(path.read_bytes(), name))
    package.rename(package.with_name(name))
    return name


def with_package(source: bytes, name: str) -> bytes:
    """A Python file that imports the package of that name instead of `components`.

    Import statements are rewritten, and strings that are the dotted name of a module and nothing else.
    """
    bom = codecs.BOM_UTF8 if source.startswith(codecs.BOM_UTF8) else b""
    source = source.removeprefix(bom)  # the columns of the syntax tree do not count it
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    edits = [
        edit
        for node in _importing_nodes(ast.parse(source))
        for edit in _edits(node, source, starts[node.lineno - 1] + node.col_offset, name.encode())
    ]
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        source = source[: edit.start] + edit.text + source[edit.end :]
    return bom + source


def _importing_nodes(tree: ast.Module) -> Iterator[ast.ImportFrom | ast.alias | ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from node.names
        elif isinstance(node, ast.ImportFrom | ast.Constant):
            yield node


def _edits(node: ast.ImportFrom | ast.alias | ast.Constant, source: bytes, start: int, name: bytes) -> Iterator[_Edit]:
    """Of one node, which begins at byte `start`."""
    match node:
        case ast.alias():
            yield from _edits_of_import(node, source, start, name)
        case ast.ImportFrom(level=0):
            yield from _edit_at(rb"from[\s\\]+(components)\b", source, start, name)
        case ast.Constant(value=str(text)) if re.fullmatch(r"components(\.\w+)+", text):
            yield from _edit_at(rb"[\"'](components)\.", source, start, name)


def _edit_at(pattern: bytes, source: bytes, start: int, name: bytes) -> Iterator[_Edit]:
    if found := re.compile(pattern).match(source, start):
        yield _Edit(*found.span(1), name)


def _edits_of_import(node: ast.alias, source: bytes, start: int, name: bytes) -> Iterator[_Edit]:
    """`import components.x` also binds the name `components`, which the lines after it use."""
    if node.name != COMMON_NAME and not node.name.startswith(f"{COMMON_NAME}."):
        return
    common, end = COMMON_NAME.encode(), start + len(node.name)
    module = name + source[start + len(common) : end]
    if node.asname is not None:
        yield _Edit(start, end, module)
    elif node.name == COMMON_NAME:
        yield _Edit(start, end, name + b" as " + common)
    else:
        yield _Edit(start, end, module + b", " + name + b" as " + common)


def _digest(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
