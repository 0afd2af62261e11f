"""The architecture holds: which way imports run, what a module must have, and what no module may do."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dln
from source_trees import nodes_below

PACKAGE = Path(dln.__file__).parent
LEAVES = {"answers", "arguments", "errors", "extensions", "io", "numerics", "particles", "random"}
BELOW: dict[str, set[str]] = {
    "data": LEAVES,
    "lm": LEAVES,
    "nn": {*LEAVES, "lm"},
    "infer": {*LEAVES, "lm", "nn"},
    "train": {*LEAVES, "lm", "nn", "infer", "data"},
    "programs": {*LEAVES, "lm", "nn", "infer", "data", "train", "dln"},
    "view": {*LEAVES, "lm", "nn", "infer", "data", "train", "serve"},
    "experiments": {*LEAVES, "lm", "nn", "infer", "data", "train", "view"},
    "serve": {*LEAVES, "lm", "nn", "infer", "data", "train"},
    "cli": {*LEAVES, "lm", "nn", "infer", "data", "train", "view", "experiments", "serve", "integrations", "dln"},
    "integrations": {*LEAVES, "lm", "nn", "infer", "data", "train", "programs", "dln"},
}
"""What each room may import, itself apart. `dln` is the package's own public face (its version, its names)."""

HEAVY = {"torch", "transformers", "pandas", "datasets"}
CODE_IN_DATA = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
NO_OUTPUT = {"nn", "infer"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
IDS = [path.relative_to(PACKAGE).as_posix() for path in MODULES]

Rule = Callable[[Path], None]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """A check that every module has to pass."""
    RULES.append(check)
    return check


def room_of(path: Path) -> str:
    """The room a file lives in; a leaf is a room of its own, `dln/__init__.py` is `dln`."""
    first = path.relative_to(PACKAGE).parts[0]
    return "dln" if first == "__init__.py" else first.removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def imports_of(node: ast.AST) -> list[tuple[str, list[str]]]:
    """Every import below a node: (module, names taken from it)."""
    found: list[tuple[str, list[str]]] = []
    for one in nodes_below(node):
        if isinstance(one, ast.Import):
            found += [(alias.name, []) for alias in one.names]
        elif isinstance(one, ast.ImportFrom):
            found.append((one.module or "", [alias.name for alias in one.names]))
    return found


def rooms_imported(path: Path) -> set[str]:
    rooms: set[str] = set()
    for module, names in imports_of(tree_of(path)):
        first, *rest = module.split(".")
        if first != "dln":
            continue
        known = {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
        rooms |= {rest[0]} if rest else known | ({"dln"} if set(names) - known or not names else set())
    return rooms


def module_level_imports(node: ast.AST) -> Iterator[str]:
    """Modules that importing this one imports too: outside functions, and not for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (name for other in child.orelse for name in module_level_imports(other))
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or ""
        yield from module_level_imports(child)


def names_in_all(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            value: object = ast.literal_eval(node.value)
            assert isinstance(value, list)
            return [str(name) for name in value]
    return None


def test_the_rules_know_every_room():
    rooms = {room_of(path) for path in MODULES} - {"dln"}
    assert rooms <= set(BELOW) | LEAVES, f"new rooms: {rooms - set(BELOW) - LEAVES}; say what they may import"


@rule
def imports_run_one_way(path: Path):
    room = room_of(path)
    if room == "dln":
        return
    allowed = (LEAVES if room in LEAVES else BELOW[room]) | {room}
    assert rooms_imported(path) <= allowed


def test_leaves_do_not_go_in_circles():
    graph = {leaf: rooms_imported(PACKAGE / f"{leaf}.py") for leaf in LEAVES}
    while graph:
        free = [leaf for leaf, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for leaf in free:
            del graph[leaf]


@rule
def no_room_reaches_into_the_private_names_of_another(path: Path):
    room = room_of(path)
    foreign: dict[str, str] = {}
    for module, names in imports_of(tree_of(path)):
        parts = module.split(".")
        if parts[0] != "dln" or parts[1:2] == [room]:
            continue
        private = [part for part in (*parts, *names) if part.startswith("_") and not part.startswith("__")]
        assert not private, f"{private} of {module}"
        foreign |= {name: f"{module}.{name}" for name in names}
    for node in nodes_below(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in foreign:
            dunder = node.attr.startswith("__")
            assert dunder or not node.attr.startswith("_"), f"{foreign[node.value.id]}.{node.attr}, line {node.lineno}"


@rule
def heavy_packages_are_imported_where_they_are_needed(path: Path):
    assert not {name.split(".")[0] for name in module_level_imports(tree_of(path))} & HEAVY


AT_FIRST_USE = {*HEAVY, "numpy", "scipy", "scipy.stats", "sklearn", "pydantic", "jinja2", "openai", "httpx2"}


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import dln", AT_FIRST_USE),
        ("from dln.cli.main import run; assert run(['--version']) == 0", AT_FIRST_USE),
        pytest.param(  # scikit-learn, the base of DLNClassifier, loads pandas
            "from dln import *", {*HEAVY, "openai"} - {"pandas"}, marks=pytest.mark.slow
        ),
    ],
    ids=["import dln", "dln --version", "from dln import *"],
)
def test_starting_loads_nothing_heavy(code: str, unloaded: set[str]):
    code = f"import sys; {code}; sys.exit(', '.join(sorted({unloaded!r} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_imported_when_asked_for():
    """What a type checker reads is what there is: the same names, from the same modules, and no others."""
    typed = {
        name: module
        for node in tree_of(PACKAGE / "__init__.py").body
        if isinstance(node, ast.If)
        for module, names in imports_of(node)
        for name in names
        if module.startswith("dln")
    }
    assert sorted(dln.__all__) == sorted([*typed, "__version__"])
    for name, module in typed.items():
        assert getattr(dln, name) is getattr(importlib.import_module(module), name)
    assert set(dln.__all__) <= set(dir(dln))
    assert dln.view is importlib.import_module("dln.view")
    assert not hasattr(dln, "no_such_name")


@rule
def nothing_is_pickled(path: Path):
    assert not {module.split(".")[0] for module, _ in imports_of(tree_of(path))} & CODE_IN_DATA


@rule
def networks_and_inference_write_nothing(path: Path):
    """No printing, no logging: what they have to say is in the values they return."""
    if room_of(path) not in NO_OUTPUT:
        return
    tree = tree_of(path)
    calls = [node.func for node in nodes_below(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not {module for module, _ in imports_of(tree)} & {"logging", "rich", "sys"}


@rule
def a_module_says_what_it_is_and_what_it_offers(path: Path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module begins with a docstring"
    names = names_in_all(tree)
    has_code = any(not isinstance(node, ast.Expr) for node in tree.body)
    if names is None:
        assert not has_code, "a module lists what it offers in __all__"
        return
    assert len(set(names)) == len(names)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names:
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@rule
def all_names_exist(path: Path):
    tree = tree_of(path)
    bound: set[str] = set()
    for node in nodes_below(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    assert set(names_in_all(tree) or ()) <= bound


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_keeps_every_rule(path: Path):
    for check in RULES:
        check(path)


def test_the_rules_can_be_broken(tmp_path: Path):
    """A check that cannot fail checks nothing."""
    source = "import dln\nfrom dln.train.fit import fit\nfrom dln import errors\ndef f():\n    import torch\n"
    bad = tmp_path / "bad.py"
    bad.write_text(source, encoding="utf-8")
    assert rooms_imported(bad) == {"dln", "train", "errors"}
    assert "torch" not in set(module_level_imports(tree_of(bad)))
    assert "torch" in set(
        module_level_imports(ast.parse("class A:\n    try:\n        import torch\n    except E: ..."))
    )
    assert "torch" not in set(module_level_imports(ast.parse("if TYPE_CHECKING:\n    import torch")))


WARNING_CASES = """
import warnings
import pytest

KINDS = pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])

def warn(module, kind):
    exec("warnings.warn('this will change', kind)", {"__name__": module, "warnings": warnings, "kind": kind})

@KINDS
def test_announced_by_another_package(kind):
    warn("some_library.core", kind)

@KINDS
@pytest.mark.parametrize("module", ["dln", "dln.lm.local.model", "test_something"])
def test_about_a_call_of_ours(kind, module):
    with pytest.raises(kind):
        warn(module, kind)

def test_everything_else_is_an_error():
    for kind in (UserWarning, RuntimeWarning, ResourceWarning):
        with pytest.raises(kind):
            warn("some_library.core", kind)
"""


def test_warnings_about_our_own_calls_are_errors_in_tests(tmp_path: Path):
    (tmp_path / "test_warnings.py").write_text(WARNING_CASES, encoding="utf-8")
    settings = ["-c", str(PACKAGE.parents[1] / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *settings, "-p", "no:xdist", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "13 passed, 3 warnings" in done.stdout
