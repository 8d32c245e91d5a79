"""Imports point one way, as docs/architecture.md says, and a base install is enough for them."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stylecrafter_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400

# Area (a folder, or a single file) -> the areas that its modules reach, at once or through others.
# An area that is not listed may reach everything but the tops.
REACHES = {
    "config": set(),
    "foreign": set(),
    "config_file": {"config"},
    "config_json": {"config", "foreign"},
    "params": set(),
    "programs": set(),
    "files": set(),
    "kernels": set(),
    "models": {"config", "params", "kernels"},
    "diffusion": {"config"},
    "media": {"foreign"},
    "tokenizer": set(),
    "data": {"files", "foreign", "tokenizer", "media"},
    "checkpoints": {"config", "config_json", "foreign", "params", "diffusion"},
    "autoencode": set(),
    "options": {"config", "diffusion"},
}
# Area -> the only areas that may import it.
IMPORTED_BY = {
    "cli": {"__main__"},
    "commands": {"cli"},
    "embedded": {"commands"},
}
# Other projects' module -> where it may be imported.
PLACES = {
    "flax": r"models/.*",
    "transformers": r"models/clip",
    "torch": r"checkpoints/torch_files",
    "cv2": r"metrics/flow",
    "wandb": r"train/wandb_log",
    "tensorflow": r"(?!)",
    "tensorflow_datasets": r"data/.*",
}
# Not needed, or slow to import: only inside the functions that use them.
INSIDE_FUNCTIONS = ("torch", "cv2", "wandb", "tensorflow", "tensorflow_datasets")


class Import(NamedTuple):
    """One name imported by a module of ours; `top` is True for those outside of functions."""

    name: str
    top: bool


def module_name(file: Path) -> str:
    """Returns a module's name in the documentation, such as `models/layers`; "" is the package."""
    name = file.relative_to(PACKAGE).with_suffix("").as_posix()
    return re.sub(r"(^|/)__init__$", "", name)


MODULES = {module_name(file): file for file in FILES}


def imports(file: Path) -> list[Import]:
    """Returns everything a file imports; of `from a import b` both a and a.b."""
    found = []

    def visit(node, top):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.append(Import(node.module, top))
            found.extend(Import(f"{node.module}.{alias.name}", top) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, top and not inside)

    visit(ast.parse(file.read_text(encoding="utf-8")), True)
    return found


def own(file: Path, top_only: bool = False) -> set[str]:
    """Returns the modules of ours that a file imports."""
    names = {one.name for one in imports(file) if one.top or not top_only}
    paths = {name.replace(".", "/") for name in names if name.startswith("stylecrafter_jax.")}
    return {path.removeprefix("stylecrafter_jax/") for path in paths} & MODULES.keys()


IMPORTS = {name: own(file) for name, file in MODULES.items()}


def area(name: str) -> str:
    return name.split("/")[0]


def reached(name: str) -> set[str]:
    """Returns all modules that importing `name` may lead to."""
    found, ahead = set(), [name]
    while ahead:
        new = IMPORTS[ahead.pop()] - found
        found |= new
        ahead.extend(new)
    return found


def test_parser_finds_imports_of_every_kind(tmp_path):
    file = tmp_path / "some.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    import e\nclass G:\n    import h\n")
    names = {(one.name, one.top) for one in imports(file)}
    assert names == {("a.b", True), ("c", True), ("c.d", True), ("e", False), ("h", True)}
    assert {"models/layers", "models/attention"} <= IMPORTS["models/transformer_blocks"]
    assert "config" in reached("models/networks")


@pytest.mark.parametrize("place", REACHES)
def test_lower_areas_do_not_reach_higher_ones(place):
    allowed = REACHES[place] | {place}
    wrong = {
        f"{name} -> {other}"
        for name in MODULES
        if area(name) == place
        for other in reached(name)
        if area(other) not in allowed
    }
    assert not wrong


@pytest.mark.parametrize("place", IMPORTED_BY)
def test_tops_are_imported_by_the_command_line_alone(place):
    users = {area(name) for name in MODULES for other in IMPORTS[name] if area(other) == place}
    assert users - {place} <= IMPORTED_BY[place]


def test_imports_make_no_circle():
    list(graphlib.TopologicalSorter(IMPORTS).static_order())


@pytest.mark.parametrize("project", PLACES)
def test_other_projects_are_imported_in_their_place_alone(project):
    for name, file in MODULES.items():
        for one in imports(file):
            if one.name.split(".")[0] == project:
                assert re.fullmatch(PLACES[project], name), f"{name} imports {one.name}"
                assert project not in INSIDE_FUNCTIONS or not one.top, f"{name}: {one.name} on top"


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_name(file) or "package")
def test_files_are_short(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{lines} lines; split the file at its second idea"


def test_documentation_lists_every_module():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.search(r"^## Modules\n(.+?)^## ", text, flags=re.M | re.S)
    assert rows is not None
    cells = [line.split("|")[1] for line in rows[1].splitlines() if line.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert len(listed) == len(set(listed))
    assert sorted(set(listed) - packages) == sorted(MODULES.keys() - packages)


def test_package_alone_imports_no_jax():
    code = "import sys, stylecrafter_jax; sys.exit(any(m in sys.modules for m in ('jax', 'flax')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_module_imports_without_torch_and_tensorflow():
    names = [name.replace("/", ".") for name in MODULES if name]
    code = (
        "import importlib, sys\n"
        "sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        f"for name in {names}: importlib.import_module('stylecrafter_jax.' + name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
