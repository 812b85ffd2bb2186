"""The house's rules, checked: imports, flags, what the docs say."""

import argparse
import ast
import contextlib
import itertools
import re
import sys
from pathlib import Path

import pytest

import datasets
import methods
import models
from engine import command_line, options, words

ROOT = Path(__file__).parents[1]
SCRIPTS = {"train_da", "train_seg", "evaluate", "pseudo_label", "ensemble"}
# who may import whom; the five scripts and the tools may import everything but each other
ROWS = {
    "engine": set(),
    "kernels": {"engine"},
    "datasets": {"engine"},  # never kernels: loader workers must not compile
    "models": {"engine"},
    "training": {"engine", "models"},
    "inference": {"engine", "kernels", "datasets", "models"},
    "methods": {"engine", "kernels", "models", "training"},
}


def files() -> list[Path]:
    """Return every Python file of the project but the tests."""
    folders = [path for path in ROOT.glob("[a-z]*") if path.name in {*ROWS, "tools"}]
    return sorted([*ROOT.glob("*.py"), *(file for f in folders for file in f.rglob("*.py"))])


def room(path: Path) -> str:
    """Return the folder a file belongs to, a script's own name at the root."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_five_scripts_stand_at_the_root():
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_rows(path: Path):
    own = room(path)
    others = {name.split(".")[0] for name in imports(path)} & {*ROWS, *SCRIPTS, "tools"} - {own}
    if own in ROWS:
        assert others <= ROWS[own], f"{path} imports {others - ROWS[own]}"
    else:
        assert not others & {*SCRIPTS, "tools"}, f"{path} imports another command"


def test_no_imports_go_in_circles():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in files()}
    arrows = {name: imports(path) & names.keys() - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name not in done:
            for other in sorted(arrows[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_required_packages_are_enough(path: Path):
    """Whatever else is imported must be imported where it is used, not at the top of a file."""
    known = {"torch", "numpy", "PIL", "tqdm", "ninja", *ROWS, "tools", *sys.stdlib_module_names}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found = {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module}
            for package in {one.split(".")[0] for one in found}:
                assert package in known, f"{path} imports {package}"


def every_function(path: Path) -> list[ast.FunctionDef]:
    """Return the functions of a file, methods and inner ones too."""
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_take_few_things(path: Path):
    """80 lines outside tools; 8 parameters outside constructors, `self` left out."""
    for node in every_function(path):
        length = node.end_lineno - node.lineno + 1
        assert length <= 80 or room(path) == "tools", f"{path}: {node.name} has {length} lines"
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        assert count <= 8 or node.name == "__init__", f"{path}: {node.name} takes {count} things"


def declared(parser_of) -> set[str]:
    """Return the dest of every flag that a script declares."""
    seen = {}

    def parse(parser, *_args, **_kwargs):
        seen["dests"] = {action.dest for action in parser._actions}
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "parse", parse)
        with pytest.raises(SystemExit):
            parser_of([])
    return seen["dests"] - {"help"}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help_says_what_every_flag_is_for_and_its_default(name: str, monkeypatch, capsys):
    """And lists the datasets with their splits, the networks, the methods and the recipes."""
    seen = {}
    monkeypatch.setattr(options, "parse", lambda parser, *_, **__: seen.update(parser=parser))
    with contextlib.suppress(AttributeError, TypeError):  # of what is done with the options
        __import__(name).parse_args([])
    parser = seen["parser"]
    formatter = parser._get_formatter()
    for action in parser._actions:
        flag = f"{name}.py {'/'.join(action.option_strings)}"
        assert action.help, f"{flag} has no help"
        text = formatter._expand_help(action)
        is_switch = action.nargs == 0 and action.default in (None, False, argparse.SUPPRESS)
        assert "default" in text or action.required or is_switch, f"{flag}: {text}"
    shown = " ".join(parser.format_help().split())
    for dataset in datasets.DATASETS.values():
        assert f"{dataset.name} ({', '.join(dataset.splits)})" in shown
    lists = [models.MODELS] if name != "ensemble" else []
    lists += [methods.METHODS] if name == "train_da" else []
    for one in itertools.chain(*lists):
        assert one in shown


def functions(module: str) -> dict[str, ast.FunctionDef]:
    """Return the functions of a file by name."""
    body = ast.parse((ROOT / module).read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def read_of_args(tree: ast.AST) -> set[str]:
    """Return every `args.NAME` that code reads."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "args"
    }


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_flag_is_read(name: str):
    """By the script, by a function of the options that it calls, or by a method's keyword."""
    script = ast.parse((ROOT / f"{name}.py").read_text())
    read = read_of_args(script)
    for module in ("options", "data_options", "training_options"):
        shared = functions(f"engine/{module}.py")
        for node in ast.walk(script):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == module:
                read |= read_of_args(shared[node.attr]) if node.attr in shared else set()
    if name == "train_da":
        for method in methods.METHODS.values():
            read |= words.keywords(method).keys()
    spellings = {*command_line.MODEL_SPELLINGS, *command_line.AUGMENT_SPELLINGS, "recipe"}
    unread = declared(__import__(name).parse_args) - read - spellings
    assert not unread, f"{name}.py declares and never reads {sorted(unread)}"


def test_the_readme_names_what_exists():
    readme = (ROOT / "README.md").read_text()
    folders = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    for name in [*datasets.DATASETS, *methods.METHODS, *models.MODELS, *folders, *SCRIPTS]:
        assert f"`{name}" in readme or f" {name}" in readme, name
    assert 120 <= len(readme.splitlines()) <= 150


def test_the_reading_path_exists():
    readme = (ROOT / "README.md").read_text()
    path = re.search(r"^In this order: (.*?)\. \[", readme, re.M | re.S)[1]
    names = re.findall(r"`([\w/.]+)`", path)
    assert len(names) == 14
    for name in names:
        assert (ROOT / name).is_file(), name


def public(path: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    """Return the public functions and classes of a file; methods may inherit their docstring."""
    return [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_have_docstrings_and_types(path: Path):
    # kernels/__init__.py documents what these two implement
    if path.name in ("reference.py", "sampling.py", "__main__.py") or path.stem in SCRIPTS:
        return
    for node in public(path):
        where = f"{path.name}: {node.name}"
        assert ast.get_docstring(node), f"{where} has no docstring"
        if isinstance(node, ast.FunctionDef):
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                assert argument.annotation, f"{where}: {argument.arg} has no type"


def test_loads_are_safe_everywhere():
    for path in files():
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, f"{path}: {call}"
