"""The version of the code: a hash of its syntax trees, without comments and docstrings."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]


@lru_cache
def source_sum(more: tuple[Path, ...] = ()) -> str:
    """Return 16 hexadecimal digits of the SHA-256 sum of the code of fwdgrad and of `more`.

    Comments, docstrings and layout do not change the sum.

    Args:
      more: further Python files.
    """
    files = {path.relative_to(_PACKAGE).as_posix(): path for path in _PACKAGE.rglob("*.py")}
    named = [*sorted(files.items()), *((path.name, path) for path in more)]
    total = hashlib.sha256()
    for name, path in named:
        total.update(f"{name}\n{syntax(path.read_text(encoding='utf-8'))}\n".encode())
    return total.hexdigest()[:16]


def syntax(source: str) -> str:
    """Return the syntax tree as a text, the same for sources that differ in layout and comments.

    >>> syntax("x = (1 +  2)  # three") == syntax("x = 1 + 2")
    True
    """
    parts: list[str] = []
    _add(ast.parse(source), parts)
    return " ".join(parts)


def _add(node: Any, parts: list[str]) -> None:
    """Append a node's kind and its fields, but for empty ones: Python versions differ in them."""
    if isinstance(node, list):
        for item in node:
            _add(item, parts)
        parts.append(";")
    elif isinstance(node, ast.AST):
        parts.append(f"({type(node).__name__}")
        for name, value in ast.iter_fields(node):
            if name == "body" and _has_docstring(node):
                value = value[1:]
            if value is not None and value != [] and name not in ("kind", "type_ignores"):
                parts.append(name)
                _add(value, parts)
        parts.append(")")
    else:
        parts.append(repr(node))


def _has_docstring(node: Any) -> bool:
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    first = node.body[0] if node.body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
