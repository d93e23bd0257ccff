"""The architecture as a test: imports point down only, and optional packages load late."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import panda_icefall

PACKAGE = Path(panda_icefall.__file__).parent
# Floor -> what it may import of the project.
ALLOWED = {
    "normalizer": set(),
    "lattice": set(),
    "losses": {"normalizer", "lattice"},
    "routing": {"normalizer", "lattice", "losses"},
    "runs": {"normalizer", "lattice", "losses", "routing"},
}
# The rooms of runs/, lower ones first: a room imports those before it, and the files beside rooms.
ROOMS = "data memory contract report hooks doctor planning patching bounded fitting".split()
OPTIONAL = ("k2", "lhotse", "icefall", "triton", "matplotlib", "tensorboard", "sentencepiece")


def imported(tree):
    """Absolute module names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports of the project are absolute"
            yield node.module
            # `from panda_icefall import routing` names a floor too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("floor", ALLOWED)
def test_a_floor_imports_only_lower_floors(floor):
    files = sorted((PACKAGE / floor).rglob("*.py"))
    assert files
    for file in files:
        for name in imported(ast.parse(file.read_text())):
            parts = name.split(".")
            if parts[0] == "panda_icefall" and len(parts) > 1 and parts[1] in ALLOWED:
                assert parts[1] in ALLOWED[floor] | {floor}, f"{file}: {name}"
            assert not name.startswith("panda_icefall.cli"), f"{file}: {name}"


def test_a_room_of_runs_imports_only_lower_rooms():
    runs = PACKAGE / "runs"
    for room in sorted(path.name for path in runs.iterdir() if (path / "__init__.py").exists()):
        assert room in ROOMS, f"give runs/{room} its place in ROOMS"
        for file in sorted((runs / room).rglob("*.py")):
            for name in imported(ast.parse(file.read_text())):
                _, _, other = name.partition("panda_icefall.runs.")
                other = other.partition(".")[0]
                if other in ROOMS:
                    assert ROOMS.index(other) <= ROOMS.index(room), f"{file}: {name}"


def test_no_file_imports_itself_by_way_of_others():
    files = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    # `from package import module` names both; it needs the module.
    graph = {
        name: {other for other in imported(ast.parse(file.read_text())) if other in files} - {name}
        for name, file in files.items()
    }
    for name, others in graph.items():
        packages = {other for other in others if any(o.startswith(f"{other}.") for o in others)}
        graph[name] = others - packages
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_optional_packages_are_imported_where_used_only():
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in tree.body:  # module level
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for name in imported(ast.Module(body=[node], type_ignores=[])):
                    package, *modules = name.split(".")
                    # A module of kernels needs Triton as it loads, so it is itself loaded late.
                    if not (package == "triton" and file.name.startswith("triton_")):
                        assert package not in OPTIONAL, f"{file}: {name}"
                    assert not any(m.startswith("triton_") for m in modules), f"{file}: {name}"


def test_importing_the_package_loads_no_optional_package_and_no_compiler():
    program = (
        "import sys, torch; before = set(sys.modules); import panda_icefall; "
        f"slow = (*{OPTIONAL!r}, 'torch._dynamo'); "
        "print([m for m in slow if m in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
