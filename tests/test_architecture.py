"""The house: which room may import which, and what the front door needs."""

import ast
import graphlib
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The library from the ground up: a package may import those that its row names.
LIBRARY = {
    "fwdgrad.util": set(),
    "fwdgrad.tangents": {"util"},
    "fwdgrad.propagation": {"util", "tangents"},
    "fwdgrad.perturbation": {"util", "tangents", "propagation"},
    "fwdgrad.estimators": {"util", "tangents", "propagation", "perturbation"},
    "fwdgrad.recurrent": {"util", "tangents", "propagation"},
    "fwdgrad.modes": {"util"},
    "fwdgrad.diagnostics": {"util", "tangents", "propagation", "perturbation", "estimators"},
}
# Above it all names come from the front door, and types and errors from `util`. Training knows a
# problem only by a protocol of its own.
_KINDS = tuple(f"experiments.{kind}" for kind in ("paper", "races", "quality", "cost", "modes"))
_APPARATUS = {
    *("fwdgrad", "fwdgrad.util", "fwdgrad.problems"),
    *("fwdgrad.records", "fwdgrad.training", "fwdgrad.measurement"),
}
MAY_USE = {
    **{name: {f"fwdgrad.{x}" for x in below} for name, below in LIBRARY.items()},
    "fwdgrad.optax": {"fwdgrad", "fwdgrad.util"},
    "fwdgrad.problems": {"fwdgrad", "fwdgrad.util"},
    "fwdgrad.records": {"fwdgrad.util"},
    "fwdgrad.training": {"fwdgrad", "fwdgrad.util", "fwdgrad.records"},
    "fwdgrad.measurement": {"fwdgrad.util", "fwdgrad.records", "fwdgrad.training"},
    "experiments.common": _APPARATUS,
    **{kind: {*_APPARATUS, "experiments.common"} for kind in _KINDS},
    "experiments": {"fwdgrad.records", "experiments.common", *_KINDS},
}
FLOORS = sorted(MAY_USE, key=len, reverse=True)  # a folder before the one around it
# Imported by the front, and no deeper, from outside.
FRONTS = ("fwdgrad.records", "fwdgrad.training", "fwdgrad.measurement")
EXTERNAL = {  # what a floor may import besides the standard library
    **{name: {"jax", "numpy"} for name in LIBRARY},
    "fwdgrad.optax": {"jax", "numpy", "optax"},
    "fwdgrad.util": {"jax", "numpy", "scipy"},  # which JAX needs
    "fwdgrad.diagnostics": {"jax", "numpy", "tqdm"},  # a progress bar, if it is installed
    "fwdgrad.problems": {"jax", "numpy", "equinox", "optax", "pooch", "sympy"},
    "fwdgrad.records": {"jax", "equinox", "filelock"},
    "fwdgrad.training": {"jax", "numpy", "optax", "tqdm"},
    "fwdgrad.measurement": {"jax", "numpy", "scipy"},
    "experiments": {"numpy", "omegaconf", "bokeh"},
    **{
        name: {
            *("jax", "numpy", "optax", "scipy", "sympy"),
            *("hydra", "omegaconf", "matplotlib", "pandas", "tqdm"),
        }
        for name in ("experiments.common", *_KINDS)
    },
}
MODULES = sorted([*(ROOT / "fwdgrad").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module):
    return next((f for f in FLOORS if module == f or module.startswith(f + ".")), None)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_from_the_floors_below_alone(path):
    floor = floor_of(name_of(path))
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if floor is None:  # the front door, and `work`, which imports nothing
            assert floor_of(imported) in LIBRARY or imported == "typing"
        elif top in ("fwdgrad", "experiments"):
            of = floor_of(imported) or imported
            assert of in {floor, *MAY_USE[floor]}, imported
            assert of not in FRONTS or of in (floor, imported), f"{imported}: not by its front"
        else:
            assert top in sys.stdlib_module_names | EXTERNAL[floor], imported


def test_no_files_import_each_other_in_a_circle():
    """Modules alone: a package's `__init__` is its front door, which gathers."""
    names = {name_of(path) for path in MODULES if path.name != "__init__.py"}
    imports = {name_of(path): set(imports_of(path)) & names for path in MODULES}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):  # from package import module
                found = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[name_of(path)] |= found & names
    assert imports["fwdgrad.propagation.pushforward"] >= {
        "fwdgrad.util.trees",
        "fwdgrad.propagation.interpreter",
    }
    assert "fwdgrad.util.validation" in imports["fwdgrad.estimators.forward_gradient"]
    tuple(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError


def test_few_lines_ask_which_form_a_tangent_has():
    """A form answers for itself, by its methods; a rule is given its own form alone."""
    asking = re.compile(r"isinstance\([^()]*\b(Factored|Blocks)\b|type\(\w+\) (is|==)")
    forms = {"factored.py", "blocks.py"}
    lines = [
        f"{path.name}:{number}"
        for name in LIBRARY
        for path in (ROOT / name.replace(".", "/")).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asking.search(line) and (path.parent.name != "tangents" or path.name not in forms)
    ]
    assert len(lines) <= 10, lines


def test_training_and_measurement_know_no_estimator_and_no_distribution_by_name():
    names = re.compile(r"\b(forward_value_and_grad|backprop_value_and_grad|Normal|Rademacher)\b")
    for path in [
        file for front in FRONTS for file in (ROOT / front.replace(".", "/")).glob("*.py")
    ]:
        code = ast.parse(path.read_text())
        for node in ast.walk(code):
            if isinstance(node, (ast.Name, ast.Attribute)):
                assert not names.search(ast.unparse(node)), path


def test_a_name_of_the_former_package_is_an_error_that_names_the_new_one():
    from fwdgrad import work

    for package, names in work._NOW.items():
        assert set(names.split()) <= set(importlib.import_module(package).__all__)
        for name in names.split():
            with pytest.raises(ImportError, match=rf"Use {package}\.{name}\."):
                getattr(work, name)
    with pytest.raises(ImportError, match=r"Use the method `guided` of the estimator"):
        from fwdgrad.work import GuidedProblem  # noqa: F401
    with pytest.raises(AttributeError, match=r"Its names are in fwdgrad\.training, "):
        work.stepping  # noqa: B018


def test_importing_the_library_needs_jax_alone():
    script = (
        "import sys, fwdgrad; "
        "print(*{'equinox', 'optax', 'hydra', 'matplotlib', 'tqdm'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0 and result.stdout.strip() == ""


def test_every_public_name_is_documented_and_exported():
    """The front door has the only list of the library's names."""
    for floor in LIBRARY:
        assert not hasattr(importlib.import_module(floor), "__all__"), floor
    for floor in ("fwdgrad", "fwdgrad.optax", "fwdgrad.problems", *FRONTS):
        package = importlib.import_module(floor)
        assert sorted(package.__all__) == sorted(set(package.__all__))
        for name in package.__all__:
            value = getattr(package, name)
            assert not callable(value) or value.__doc__


def test_docstrings_begin_with_a_verb_or_a_noun():
    """None defines a thing by "what …"; above the library."""
    riddle = re.compile(r"(What|Whether|Where|How|Which|Those|Of|Who|When|It|Its|That)\b")
    above = [path for path in MODULES if floor_of(name_of(path)) not in LIBRARY]
    for path in above:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                assert not riddle.match(ast.get_docstring(node) or ""), f"{path}: {node}"


def test_the_architecture_page_names_every_file_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"^\| `((?:fwdgrad|experiments)/[^`]*\.py)` \|", page, re.MULTILINE)
    files = [p.relative_to(ROOT).as_posix() for p in MODULES if p.name != "__init__.py"]
    assert sorted(named) == sorted(files)


def test_the_picture_of_the_house_is_that_of_the_imports():
    """Boxes and arrows are drawn from the code; a new package or import needs a new picture."""
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_house.py"))
    found = {package: others - {"fwdgrad"} for package, others in drawn["imports"]().items()}
    assert found["fwdgrad.records"] == {"fwdgrad.util"}
    below = {name: MAY_USE[name] for name in found if name in MAY_USE}
    assert all(found[name] <= below[name] for name in below) and set(below) == {*MAY_USE}
    picture = (ROOT / "docs" / "house.svg").read_text(encoding="utf-8")
    assert picture == drawn["picture"](), "run: python docs/draw_house.py"


def test_each_question_is_answered_by_a_file():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = page.partition("# Ten questions")[2].partition("\n# ")[0]
    files = re.findall(r"\? \| `(.*?)` \|$", rows, re.M)
    assert len(files) == 10 and all((ROOT / file).is_file() for file in files)


def test_docstrings_begin_with_a_verb_or_the_name_of_the_thing():
    """A definition by "what …" is a riddle, and "Returns" is no imperative."""
    riddles = re.compile(
        r"(What|Whether|Where|How|Which|Those|Such|Of|From|As) |Returns|Raises|Makes"
    )
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            documented = isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module))
            if documented and riddles.match(ast.get_docstring(node) or ""):
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}")
    assert not found


def test_no_file_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert not [path for path, length in lengths.items() if length > 300]


def test_three_files_know_of_enter_custom_vjp():
    """It is an option of the estimator and of the loss; a message names it."""
    naming = {
        path.name
        for path in MODULES
        if path.is_relative_to(ROOT / "fwdgrad") and "enter_custom_vjp" in path.read_text()
    }
    message = "custom_functions.py"
    assert naming - {message} == {"forward.py", "forward_gradient.py", "loss.py"}
