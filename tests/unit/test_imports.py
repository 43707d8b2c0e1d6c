"""The import arrows of the map hold: each room knows only the rooms below it."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from bench.rooms import MAY_IMPORT
from tests.rig.papers import SOURCES

ROOT = Path(__file__).parents[2]
DOORS = ("models", "scp", "client", "db", "server")
GATEWAYS_SIDE = {"scp", "client", "dicom", "gateway", "gateway.cli"}
SERVERS_SIDE = {"db", "server", "storage", "api", "api.cli"}


def name_of(path: Path) -> str:
    """As it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The one in which a module stands; its own name, for a door."""
    return next(room for room in sorted(MAY_IMPORT, reverse=True) if f"{module}.".startswith(f"{room}."))


MODULES = {name_of(path): path for path in SOURCES if "migrations" not in path.parts}
BENCH = {name_of(path): path for path in (ROOT / "bench").rglob("*.py")}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a file imports, wherever it does, but under `__main__` and for types alone."""
    for node in without_main(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner if inner in known else str(node.module),) if name in known)


def without_main(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            continue
        yield node
        yield from without_main(node)


ARROWS = [(module, target) for module, path in MODULES.items() for target in set(imported(path, MODULES))]


def test_the_top_level_holds_the_five_doors_and_no_other_python_file() -> None:
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(DOORS)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_map_allows(room: str) -> None:
    arrows = {(a, b) for a, b in ARROWS if room_of(a) == room != room_of(b)}
    assert not {arrow for arrow in arrows if room_of(arrow[1]) not in MAY_IMPORT[room]}


def test_the_gateways_side_and_the_servers_side_never_meet() -> None:
    sides = [(room_of(a), room_of(b)) for a, b in ARROWS]
    assert not [arrow for arrow in sides if len({*arrow} & GATEWAYS_SIDE) and len({*arrow} & SERVERS_SIDE)]


def test_only_the_gateways_process_knows_the_scp() -> None:
    assert {a for a, b in ARROWS if b == "scp"} == {"client"}


def test_only_db_and_its_room_know_the_database_library_and_the_engine() -> None:
    outside = {module: path for module, path in MODULES.items() if room_of(module) not in {"db", "storage"}}
    assert [module for module, path in outside.items() if "sqlalchemy" in roots(path)] == []
    assert [module for module, path in outside.items() if reads_an_engine(path)] == []
    assert "sqlalchemy" in roots(MODULES["db"])
    assert reads_an_engine(MODULES["db"])


def roots(path: Path) -> set[str]:
    """The packages that a file imports, wherever it does."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def reads_an_engine(path: Path) -> bool:
    nodes = ast.walk(ast.parse(path.read_text()))
    return any(isinstance(node, ast.Attribute) and node.attr in {"engine", "_engine"} for node in nodes)


def test_operations_do_what_a_command_asks_and_know_no_terminal() -> None:
    assert not roots(MODULES["api.operations"]) & {"click", "rich", "console"}


def test_no_two_files_import_each_other_in_a_circle() -> None:
    known = MODULES | BENCH
    graph = {module: set(imported(path, known)) - {module} for module, path in known.items()}
    TopologicalSorter(graph).prepare()


def test_no_test_imports_from_a_test_module_and_bench_from_no_test() -> None:
    modules = {name_of(path): path for path in (ROOT / "tests").rglob("*.py")}
    tests = {module: path for module, path in modules.items() if path.stem.startswith("test_")}
    assert [(module, other) for module, path in modules.items() for other in imported(path, tests)] == []
    assert [(module, other) for module, path in BENCH.items() for other in imported(path, modules)] == []


def test_a_door_plate_defines_nothing_and_names_every_file_behind_it() -> None:
    for path in (path for path in SOURCES if path.name == "__init__.py"):
        plate = ast.parse(path.read_text())
        text = ast.get_docstring(plate) or ""
        assert len(plate.body) == 1, path
        assert 3 <= len(text.splitlines()) <= 8, path
        behind = {file.stem for file in path.parent.glob("*.py")} - {"__init__"}
        assert not [name for name in behind if f"`{name}`" not in text], path
