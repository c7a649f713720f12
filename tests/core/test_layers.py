"""Who may import whom: one direction, no cycles, and every outside package in its place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import flask_idempotent

NAME = flask_idempotent.__name__
ROOT = Path(flask_idempotent.__file__).parent

# From the bottom up. A module imports from its own layer and from those below. What is named nowhere belongs to the
# top: it may use everything, and nothing but another of its kind may use it.
LAYERS = (
    {"core"},
    {
        "errors",
        "config",
        "active",
        "body",
        "entry",
        "forms",
        "inspection",
        "script",
        "signals",
        "streams",
        "workers",
    },
    {"stores"},
    {"web"},
    {"state"},
    {"cli", "commands", "decorator", "extension", "health", "lookup", "runner"},
)
TOP = len(LAYERS)
OPTIONAL = {"redis", "stripe"}
LATE = {"cli", "stores", "stores.source"}  # what no worker needs, and what an app needs and its import does not
FROM_FLASK_CACHING = {("extension", "flask_caching.Cache")}  # outside of stores: the type of an argument
RUNS_CODE = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib", "yaml"}


@dataclass(frozen=True)
class Import:
    """One imported name: ``flask_caching.Cache``, or ``.core.key`` for a module of ours."""

    importer: str
    target: str
    line: int
    in_function: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer or '__init__'}:{self.line} imports {self.target}"

    @property
    def ours(self) -> str | None:
        """The module of ours that is imported."""
        return self.target.removeprefix(".") if self.target.startswith(".") else None

    @property
    def package(self) -> str:
        """The outermost package that is imported from outside."""
        return self.target.partition(".")[0]


def modules() -> dict[str, Path]:
    """Every module of the package by its name within it; the package itself is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def walk(
    node: ast.AST, *, in_function: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function, for_types
        inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        yield from walk(child, in_function=inside, for_types=typing)


def absolute(importer: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """What a statement imports, ours with a leading dot."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        base = node.module or ""
        if node.level:
            here = [NAME, *filter(None, importer.split("."))]
            if MODULES[importer].name != "__init__.py":
                here.pop()
            base = ".".join([*here[: len(here) + 1 - node.level], *filter(None, [node.module])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    return [own_module(name) if name.split(".")[0] == NAME else name for name in names]


def own_module(name: str) -> str:
    """``flask_idempotent.core.key.parse`` is ``.core.key``; a name of a package's own is that package."""
    inner = name.removeprefix(NAME).removeprefix(".")
    while inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return f".{inner}"


IMPORTS = [
    Import(importer, target, node.lineno, in_function, for_types)
    for importer, tree in TREES.items()
    for node, in_function, for_types in walk(tree)
    for target in absolute(importer, node)
]
ANYWHERE = {
    name: {found.ours for found in IMPORTS if found.importer == name and found.ours is not None} for name in MODULES
}


def layer(module: str) -> int:
    """The package itself, which re-exports everything, stands above all."""
    names = [number for number, layer in enumerate(LAYERS) if module.split(".")[0] in layer]
    return TOP + 1 if not module else names[0] if names else TOP


def needs(package: str) -> set[str]:
    """Our modules that cannot be imported without an outside package."""
    needing = {found.importer for found in at_start() if found.package == package}
    while more := {found.importer for found in at_start() if found.ours in needing} - needing:
        needing |= more
    return needing


def at_start() -> list[Import]:
    """What is imported when a module is."""
    return [found for found in IMPORTS if not found.in_function and not found.for_types]


def offending(found: list[Import]) -> str:
    return "\n".join(map(str, found))


def test_the_graph_is_not_empty() -> None:
    """These tests read the source, so they must first find it."""
    known = {"", "core", "core.guard", "core.machine", "stores", "stores.redis", "extension", "decorator", "web"}
    assert known <= set(MODULES)
    assert "core.machine" in ANYWHERE["core.guard"]
    assert {"errors", "web", "core.guard"} <= ANYWHERE["decorator"]
    assert {"stores.redis", "core.store", "config"} <= ANYWHERE["stores"]
    assert "stores.scripts" in ANYWHERE["stores.redis"]
    assert any(found.in_function and found.package == "stripe" for found in IMPORTS)
    assert any(found.for_types and found.package == "stripe" for found in IMPORTS)


def test_every_module_imports_from_its_own_layer_or_from_below() -> None:
    upwards = [found for found in IMPORTS if found.ours is not None and layer(found.ours) > layer(found.importer)]
    assert not upwards, offending(upwards)


def test_no_module_imports_the_package_itself() -> None:
    assert not [str(found) for found in IMPORTS if found.ours == ""]


def test_no_two_modules_import_each_other_by_any_way() -> None:
    """Imports inside functions and for types count, too: a cycle that is dodged is a cycle."""
    try:
        TopologicalSorter(ANYWHERE).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_core_imports_the_standard_library_and_itself_and_nothing_else() -> None:
    core = [found for found in IMPORTS if found.importer.split(".")[0] == "core"]
    foreign = [
        found
        for found in core
        if (found.ours.split(".")[0] != "core" if found.ours else found.package not in sys.stdlib_module_names)
    ]
    assert len(core) > 30
    assert not foreign, offending(foreign)


def test_only_the_stores_know_redis() -> None:
    knowing = [found for found in IMPORTS if found.package == "redis" and found.importer.split(".")[0] != "stores"]
    assert not knowing, offending(knowing)


def test_only_the_stores_know_flask_cachings_insides() -> None:
    knowing = [
        found
        for found in IMPORTS
        if found.package in ("flask_caching", "cachelib")
        and found.importer.split(".")[0] != "stores"
        and (found.importer, found.target) not in FROM_FLASK_CACHING
    ]
    assert not knowing, offending(knowing)


def test_only_the_checkout_and_the_webhook_know_stripe() -> None:
    knowing = {found.importer for found in IMPORTS if found.package == "stripe"}
    assert knowing <= {"checkout", "webhook", "blueprint"}


def test_nothing_optional_is_imported_before_it_is_needed() -> None:
    needing = {package: needs(package) for package in OPTIONAL}
    assert needing["stripe"] == set()
    assert {name.split(".")[0] for name in needing["redis"]} == {"stores"}
    assert needing["redis"].isdisjoint({"stores", "stores.memory", "stores.source"})


def test_an_import_inside_a_function_is_of_something_optional() -> None:
    """Not a way around a cycle: a type that two modules need moves down."""
    not_always = needs("redis") | needs("sqlite3") | LATE
    dodging = [
        found
        for found in IMPORTS
        if found.in_function and found.package not in OPTIONAL and found.ours not in not_always
    ]
    assert not dodging, offending(dodging)


def test_nothing_that_runs_what_it_reads_is_imported_anywhere() -> None:
    """Promise 8: records are data."""
    dangerous = [found for found in IMPORTS if found.package in RUNS_CODE]
    assert not dangerous, offending(dangerous)


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "__init__")
def test_no_module_evaluates_text_or_imports_by_a_computed_name(module: str) -> None:
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile", "__import__"})
            or (isinstance(node.func, ast.Attribute) and node.func.attr in {"import_module", "__import__"})
        )
    }
    assert not called


def test_the_package_works_where_nothing_optional_is_installed() -> None:
    program = f"""
import sys
for name in {sorted(OPTIONAL)!r}:
    sys.modules[name] = None
from flask import Flask
from {NAME} import Idempotency, idempotent
app = Flask("shop")
Idempotency(app)

@app.post("/orders")
@idempotent
def create():
    return {{"id": 7}}, 201

ask = lambda: app.test_client().post("/orders", headers={{"Idempotency-Key": "k"}})
print(ask().status_code, ask().headers["Idempotent-Replayed"])
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, timeout=60)
    assert (done.stdout.split(), done.returncode) == (["201", "true"], 0), done.stderr
