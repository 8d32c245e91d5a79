"""What the package never does, read from its source; see docs/security.md."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.test_imports import MODULES, PACKAGE, ROOT, imports

# They run what a file says, or open what it names.
NEVER_IMPORTED = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "dbm",
    "yaml", "xml", "urllib", "http", "requests", "socket", "ftplib", "smtplib", "ctypes", "imp",
    "code", "codeop", "pty",
}  # fmt: skip
# Module -> what it may call all the same, and why that is the user's own wish.
ALLOWED = {
    "config_file": {"runpy"},  # a Python file that the user names on the command line
    "metrics/hooks": {"importlib.import_module"},  # a function that the user names
}
CODE = {"eval", "exec", "compile", "__import__", "execfile"}
LOADERS = {"torch.load", "np.load", "numpy.load", "joblib.load", "yaml.load", "json.load"}
SHELLS = {"os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "os.startfile"}


def dotted(node: ast.expr) -> str:
    """The name that is called, such as `torch.load`; of a method, ".load"."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def wrongs(source: str, module: str = "") -> list[str]:
    """What a module's source does that none may do, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {word.arg: word.value for word in node.keywords}
        constants = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
        wrong = (
            name in CODE
            or name in SHELLS
            or (name == "torch.load" and constants.get("weights_only") is not True)
            or (name.endswith(".load") and constants.get("allow_pickle", False) is not False)
            or ("allow_pickle" in given and constants.get("allow_pickle") is not False)
            or (name in LOADERS - {"torch.load", "np.load", "numpy.load"})
            or ("shell" in given and constants.get("shell") is not False)
            or name.split(".")[0] == "runpy"
            or name.endswith((".extractall", ".extract"))
            or (name == "importlib.import_module" and not isinstance(node.args[0], ast.JoinedStr))
        )
        if wrong and not any(name.startswith(one) for one in ALLOWED.get(module, ())):
            found.append(f"{module}:{node.lineno}: {name}")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "read_array(file, allow_pickle=flag)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(line)",
        "subprocess.run(line, shell=True)",
        "subprocess.run(line, shell=flag)",
        "archive.extractall(folder)",
        "runpy.run_path(path)",
        "importlib.import_module(name)",
        "json.load(file)",
    ],
)
def test_the_checks_see_what_they_are_for(line):
    assert len(wrongs(line)) == 1


def test_what_is_safe_passes_the_checks():
    safe = (
        "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\nmodel.eval()\n"
        "np.load(path)\nsubprocess.run([a], check=True)\nre.compile(x)\njax.jit(f).compile()\n"
    )
    assert not wrongs(safe)


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "package")
def test_no_module_runs_what_it_reads(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert not wrongs(source, module)
    roots = {one.name.split(".")[0] for one in imports(MODULES[module])}
    assert not (roots & NEVER_IMPORTED) - ALLOWED.get(module, set())


def test_exceptions_to_the_rules_are_in_use():
    for module, names in ALLOWED.items():
        source = MODULES[module].read_text(encoding="utf-8")
        assert all(name.split(".")[-1] in source for name in names), module


def test_parsing_of_foreign_json_has_one_place():
    # Others parse what they wrote a moment before, or what is on the command line.
    own = {"commands/bench", "data/shards", "outputs", "tokenizer", "train/experiment"}
    own |= {"processes", "train/feature_fit", "world/contents"}
    users = {n for n, f in MODULES.items() if "json.loads(" in f.read_text(encoding="utf-8")}
    assert users <= own | {"foreign"}


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, function in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text, f"{file}::{function}"


def test_the_secrets_scan_finds_one_and_is_content_with_the_tree(tmp_path):
    """The step of `make lint`, on a copy of a few files and one more."""
    hook = shutil.which("detect-secrets-hook", path=os.path.dirname(sys.executable))
    if hook is None:
        pytest.skip("detect-secrets comes with the dev extra")
    files = [str(PACKAGE / "foreign.py"), str(ROOT / "README.md")]
    command = [hook, "--baseline", ".secrets.baseline"]
    assert subprocess.run([*command, *files], cwd=ROOT, capture_output=True).returncode == 0
    leak = tmp_path / "leak.py"
    leak.write_text("aws_key = 'AKIA" + "IOSFODNN7EXAMPLA'\n")
    done = subprocess.run([*command, str(leak)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "leak.py" in done.stdout
