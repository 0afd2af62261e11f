"""Print the structure of the package in numbers: `python tools/structure.py [--json]`.

Files and lines of each part, modules imported by only one other module, the files that one `dln train` step on a
`TableLM` runs through, functions of more than 60 lines, and import circles. Imports inside functions and under
`TYPE_CHECKING` count.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
sys.path.insert(0, str(SRC))  # this checkout, whether or not the package is installed
LONG = 60


def modules() -> dict[str, Path]:
    """Return the modules of the package by dotted name."""
    found: dict[str, Path] = {}
    for path in sorted((SRC / "dln").rglob("*.py")):
        name = ".".join(path.relative_to(SRC).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports anywhere in its source."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dln":
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                if deeper in known:
                    yield deeper
                elif node.module in known and node.module != name:
                    yield node.module


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return what each module imports, without itself."""
    return {name: set(imports(name, path, known)) - {name} for name, path in known.items()}


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or not (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = [stack.pop()]
            while part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def long_functions(known: Mapping[str, Path]) -> list[tuple[int, str]]:
    """Return (lines, place) of every function of more than 60 lines with its docstring, the longest first."""
    rows: list[tuple[int, str]] = []
    for path in known.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONG:
                    rows.append((lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    return sorted(rows, reverse=True)


def step_files(depth: int) -> list[str]:
    """Return the files of the package that one training step of a network of `depth` layers runs through.

    Everything that `fit` does for a run of one step on a `TableLM` counts: start, step, validation and files.
    """
    import dln

    lm = dln.TableLM(lambda context: {" yes": 0.6 if "a" in context else 0.3, " no": 0.4 if "a" in context else 0.7})
    hidden = [dln.LanguageLayer(lm, "think", "Think.", dln.Sampling(max_tokens=8)) for _ in range(depth - 1)]
    last = dln.ChoiceLayer(lm, "classify_residual" if hidden else "classify", "Answer.", labels=(" yes", " no"))
    network = dln.Sequential(*hidden, last)
    pairs = (("a", "yes"), ("b", "no"))
    data = dln.Dataset([dln.Example(f"{letter}{number}", label) for number in range(8) for letter, label in pairs])
    touched: set[str] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        del event, argument
        touched.add(frame.f_code.co_filename)

    with tempfile.TemporaryDirectory() as folder:
        sys.settrace(trace)
        try:
            dln.fit(
                network, data[6:], data[:6], steps=1, seed=1, run_dir=Path(folder) / "run", options={"batch_size": 4}
            )
        finally:
            sys.settrace(None)
    return sorted(str(Path(file).relative_to(SRC)) for file in touched if file.startswith(str(SRC / "dln")))


def measured() -> dict[str, Any]:
    """Return all numbers as plain data."""
    known = modules()
    edges = graph(known)
    parts: dict[str, list[int]] = defaultdict(list)
    for name, path in known.items():
        pieces = name.split(".")
        part = pieces[1] if len(pieces) > 1 and (SRC / "dln" / pieces[1]).is_dir() else "(top)"
        parts[part].append(len(path.read_text(encoding="utf-8").splitlines()))
    users: dict[str, list[str]] = defaultdict(list)
    for name, others in edges.items():
        for other in others:
            users[other].append(name)
    single = {n: users[n][0] for n, path in known.items() if len(users[n]) == 1 and path.name != "__init__.py"}
    return {
        "files": len(known),
        "lines": sum(sum(lines) for lines in parts.values()),
        "parts": {part: {"files": len(lines), "lines": sum(lines)} for part, lines in sorted(parts.items())},
        "imported_by_one": single,
        "step_files": {f"{depth} layer{'s' if depth > 1 else ''}": step_files(depth) for depth in (1, 2)},
        "long_functions": long_functions(known),
        "circles": circles(edges),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print all lists as JSON")
    as_json = parser.parse_args().json
    found = measured()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['files']} files, {found['lines']:,} lines in src/dln")
    for part, size in found["parts"].items():
        print(f"  {part:14s} {size['files']:4d} files {size['lines']:7,d} lines")
    print(f"modules imported by only one other module: {len(found['imported_by_one'])}")
    for name, user in found["imported_by_one"].items():
        print(f"  {name} (by {user})")
    for depth, files in found["step_files"].items():
        print(f"files that one training step runs through, {depth}: {len(files)}")
    print(f"functions of more than {LONG} lines: {len(found['long_functions'])}")
    for lines, place in found["long_functions"]:
        print(f"  {lines:4d}  {place}")
    print(f"import circles: {len(found['circles'])}")
    for circle in found["circles"]:
        print("  " + ", ".join(circle))


if __name__ == "__main__":
    main()
