"""The fingerprint: the changes that make a stored cell stale, and those that do not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from trueup.lab import _fingerprint as fingerprint
from trueup.lab._cell import Cell
from trueup.lab._engine import StudyRef
from trueup.lab._fingerprint import _closure, cell_fingerprint, code_fingerprint, verdict_fingerprint
from trueup.lab._spec import StudyError

LIBRARY = {
    "trueup/__init__.py": (
        "'''Areas.'''\nimport importlib\n__version__ = '0.1'\n_AREAS = ('nn', 'lab', 'data')\n"
        "def __getattr__(name):\n    if name in _AREAS:\n"
        "        return importlib.import_module(f'{__name__}.{name}')\n    raise AttributeError(name)\n"
        "def __dir__():\n    return sorted([*_AREAS, '__version__'])\n"
    ),
    "trueup/nn/__init__.py": (
        "'''Layers.'''\nfrom trueup.nn.convert import convert\nfrom trueup.nn.ghost import Ghost\n"
        "from trueup.nn.other import Other\n__all__ = ['Ghost', 'Other', 'convert']\n"
    ),
    "trueup/nn/ghost.py": (
        "'''Ghosts.'''\nfrom typing import TYPE_CHECKING\nfrom trueup.nn.shapes import check\n"
        "class Ghost:\n    '''A layer.'''\n"
        "    eps = 1e-5  # small\n    def forward(self, x):\n        '''Run.'''\n"
        "        from ..training.steps import step\n        return step(check(x))\n"
    ),
    "trueup/nn/shapes.py": "def check(x):\n    return x\n",
    "trueup/nn/other.py": "class Other:\n    pass\n",
    "trueup/nn/convert.py": "def convert(x):\n    return x\n",
    "trueup/training/__init__.py": "from trueup.training.steps import step\n",
    "trueup/training/steps.py": "def step(x):\n    return x + 1\n",
    "trueup/lab/__init__.py": "from trueup.lab._spec import Study\n",
    "trueup/lab/_spec.py": "class Study:\n    pass\n",
    "trueup/lab/_run.py": "def split(rows):\n    return rows[:9]\n",
    "trueup/lab/_scoring.py": "WORST = 0.1\n",
    "trueup/lab/_seeds.py": "def draw(n):\n    return n\n",
    "trueup/data/__init__.py": "from trueup.data._sets import load\n",
    "trueup/data/_sets.py": "SETS = ()\ndef load(name):\n    return name\n",
    "trueup/studies/__init__.py": "",
    "trueup/studies/ghost.py": (
        "'''A study.'''\nimport numpy as np\nfrom trueup import data\nfrom trueup.lab import Study\n"
        "from trueup.nn import Ghost\nstudy = Study(data.load, Ghost, np)\n"
    ),
}
LAB = {"trueup.lab._run", "trueup.lab._scoring", "trueup.lab._seeds"}
GHOST = LAB | {"trueup.studies.ghost", "trueup.nn.ghost", "trueup.nn.shapes", "trueup.training.steps"}
REF = StudyRef("module", "trueup.studies.ghost")


class Tree:
    """A copy of a small library, to edit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._edits = 0

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            self._edits += 1  # two edits within one tick of the clock must differ
            os.utime(path, ns=(self._edits, self._edits))

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write({name: text.replace(old, new)})


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(fingerprint, "_SOURCE", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = Tree(tmp_path)
    tree.write(LIBRARY)
    return tree


def reached(tree: Tree, source: str) -> set[str]:
    """Return the modules that a study file with this source reaches, besides itself."""
    tree.write({"mine/study.py": source})
    return set(_closure(tree.root / "mine" / "study.py")) - {"<study>"} - LAB


# -- what is edited ------------------------------------------------------------------------------------------
KEEPS = {
    "docstring of a class": ("trueup/nn/ghost.py", "'''A layer.'''", "'''The layer.\n    of the paper.'''"),
    "docstring gone": ("trueup/nn/ghost.py", "        '''Run.'''\n", ""),
    "module docstring": ("trueup/studies/ghost.py", "'''A study.'''\n", ""),
    "comment": ("trueup/nn/ghost.py", "# small", "# very small"),
    "layout": (
        "trueup/nn/ghost.py",
        "return step(check(x))",
        "return step(\n            check(x),\n        )",
    ),
    "spelling of a number": ("trueup/nn/ghost.py", "1e-5", "0.00001"),
    "a sibling": ("trueup/nn/other.py", "pass", "x = 1"),
    "a sibling that no longer parses": ("trueup/nn/other.py", "pass", "x = = 1"),
    "a new sibling": (
        "trueup/nn/__init__.py",
        "__all__ = ['Ghost',",
        "from trueup.nn.new import New\n__all__ = ['New', 'Ghost',",
    ),
    "the lab": ("trueup/lab/_spec.py", "pass", "x = 1"),
    "the lab's init": ("trueup/lab/__init__.py", "Study\n", "Study\nX = 1\n"),
    "data sets, pinned by their hash": ("trueup/data/_sets.py", "()", "('new',)"),
    "the version": ("trueup/__init__.py", "0.1", "0.2"),
    "a new area": ("trueup/__init__.py", "('nn',", "('optim', 'nn',"),
    "type-checking imports": (
        "trueup/nn/ghost.py",
        "from trueup.nn.shapes",
        "if TYPE_CHECKING:\n    from trueup.nn.other import Other\nfrom trueup.nn.shapes",
    ),
}
CHANGES = {
    "epsilon": ("trueup/nn/ghost.py", "1e-5", "1e-6"),
    "type of a number": ("trueup/nn/ghost.py", "1e-5", "1"),
    "transitive module": ("trueup/nn/shapes.py", "return x", "return -x"),
    "import inside a function": ("trueup/training/steps.py", "+ 1", "+ 2"),
    "study file": ("trueup/studies/ghost.py", "Study(", "Study(1, "),
    "where a name comes from": ("trueup/nn/__init__.py", "nn.ghost import", "nn.other import Other as"),
    "text that is used": ("trueup/nn/ghost.py", "return step", "x = 'text'\n        return step"),
}  # fmt: skip


@pytest.mark.parametrize("edit", KEEPS.values(), ids=KEEPS)
def test_an_edit_that_changes_no_result_keeps_the_fingerprint(tree: Tree, edit: tuple[str, str, str]) -> None:
    before = code_fingerprint(REF)
    tree.edit(*edit)
    assert code_fingerprint(REF) == before


@pytest.mark.parametrize("edit", CHANGES.values(), ids=CHANGES)
def test_an_edit_that_may_change_a_result_changes_it(tree: Tree, edit: tuple[str, str, str]) -> None:
    before = code_fingerprint(REF)
    tree.edit(*edit)
    assert code_fingerprint(REF) != before


def test_the_fingerprint_is_the_same_in_every_process_and_place(tree: Tree, tmp_path: Path) -> None:
    assert set(_closure(REF)) == GHOST
    script = (
        "import sys; from pathlib import Path; from trueup.lab import _fingerprint as f\n"
        "f._SOURCE = Path(sys.argv[1])\n"
        "print(f.code_fingerprint(Path(sys.argv[2])))"
    )
    source = tree.root / "trueup/studies/ghost.py"
    moved = tmp_path / "elsewhere" / "renamed.py"
    moved.parent.mkdir()
    moved.write_text(source.read_text())
    done = subprocess.run(
        [sys.executable, "-c", script, str(tree.root), str(moved)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == code_fingerprint(source)


# -- how names are found -------------------------------------------------------------------------------------
LAYER = {"trueup.nn.ghost", "trueup.nn.shapes", "trueup.training.steps"}
NN = LAYER | {"trueup.nn.other", "trueup.nn.convert"}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("from trueup.nn import Ghost", LAYER),
        ("from trueup.nn import Ghost as G; G()", LAYER),
        ("from trueup.nn.ghost import Ghost", LAYER),
        ("import trueup.nn.other", {"trueup.nn.other"}),
        ("import trueup.nn; trueup.nn.Ghost(trueup.__version__)", LAYER),
        ("import trueup; trueup.nn.Ghost.eps", LAYER),
        ("import trueup as t; t.nn.ghost", LAYER),
        ("import trueup.nn as n; n.Other()", {"trueup.nn.other"}),
        ("from trueup import nn; nn.Other.x.y()", {"trueup.nn.other"}),
        ("def f():\n    from trueup import nn\n    return nn.Other", {"trueup.nn.other"}),
        ("from trueup.nn import *", NN),
        ("from trueup.nn.other import *", {"trueup.nn.other"}),
        ("from trueup import nn; getattr(nn, 'Ghost')", NN),
        ("from trueup import nn", NN),
        ("import trueup.nn", set()),
        ("import importlib; importlib.import_module('trueup.nn.other')", {"trueup.nn.other"}),
        ("__import__('trueup.nn')", NN),
        ("import importlib; importlib.import_module(name)", set()),
        ("import trueup.lab._spec, trueup.data; trueup.lab.Study(trueup.data.load)", set()),
        ("import torch; from numpy import *; import os.path", set()),
        ("from trueup.nn import nonesuch", set()),
    ],
)
def test_imports_lead_to_the_defining_module(tree: Tree, source: str, modules: set[str]) -> None:
    assert reached(tree, source) == modules


def test_relative_imports(tree: Tree) -> None:
    tree.write({
        "trueup/nn/__init__.py": "from . import ghost, other\nfrom .convert import convert\n",
        "trueup/nn/convert.py": "from . import other\nfrom .. import training\nother.x; training.step\n",
    })  # fmt: skip
    assert reached(tree, "from trueup.nn import convert") == {
        "trueup.nn.convert",
        "trueup.nn.other",
        "trueup.training.steps",
    }
    assert reached(tree, "from trueup import nn; nn.other") == {"trueup.nn.other"}


def test_circular_imports_end(tree: Tree) -> None:
    tree.write({
        "trueup/nn/shapes.py": "import trueup.nn\nfrom trueup.nn import Ghost\nfrom trueup.nn import loop\n",
        "trueup/nn/__init__.py": "from trueup.nn.ghost import Ghost\nfrom trueup.nn import loop\n",
    })  # fmt: skip
    assert reached(tree, "from trueup.nn import Ghost") == LAYER


@pytest.mark.parametrize(
    "init",
    [
        "_LAZY = {'Ghost': '.ghost', 'Other': '.other'}\n"
        "def __getattr__(name):\n    return getattr(importlib.import_module(_LAZY[name], __name__), name)\n",
        "_LAZY = {'Ghost': 'trueup.nn.ghost', 'Other': 'trueup.nn.other'}\n"
        "def __getattr__(name):\n    return getattr(importlib.import_module(_LAZY[name]), name)\n",
        "if TYPE_CHECKING:\n    from trueup.nn.ghost import Ghost\n    from trueup.nn.other import Other\n"
        "def __getattr__(name):\n    return load(name)\n",
        "def __getattr__(name):\n    from .ghost import Ghost\n    return {'Ghost': Ghost}[name]\n",
        "try:\n    from trueup.nn.ghost import Ghost\nexcept ImportError:\n    pass\n",
        "from trueup.nn.ghost import *\n",
    ],
)
def test_lazy_names_lead_to_the_defining_module_too(tree: Tree, init: str) -> None:
    tree.write({"trueup/nn/__init__.py": init})
    assert reached(tree, "from trueup.nn import Ghost") == LAYER


def test_lazy_names_that_cannot_be_followed_take_the_whole_package(tree: Tree) -> None:
    tree.write({"trueup/nn/__init__.py": "def __getattr__(name):\n    return make(name)\n"})
    assert reached(tree, "from trueup.nn import Ghost") == NN
    assert reached(tree, "import trueup.nn; trueup.nn.other, trueup.nn.__path__") == {"trueup.nn.other"}


def test_code_in_an_init_counts_without_the_names_it_forwards(tree: Tree) -> None:
    init = (
        "from trueup.nn.ghost import Ghost\nfrom trueup.nn.other import Other\nimport os\n"
        "from trueup.nn import convert as c\n__all__ = ['Ghost', 'SCALE']\n"
        "SCALE = 2.0\ndef double(x):\n    return Other(SCALE * x)\n"
        "def __getattr__(name):\n    raise AttributeError(name)\n"
    )
    tree.write({"trueup/nn/__init__.py": init})
    here = {"trueup.nn", "trueup.nn.other"}
    assert reached(tree, "from trueup.nn import double") == here
    assert reached(tree, "from trueup.nn import Ghost") == here | LAYER  # importing the package runs it
    assert reached(tree, "from trueup.nn.shapes import check") == here | {"trueup.nn.shapes"}
    before = code_fingerprint(tree.root / "mine/study.py")
    tree.write(
        {
            "trueup/nn/__init__.py": init.replace("'SCALE'", "'SCALE', 'New'").replace(
                "import os", "import sys"
            )
        }
    )
    assert code_fingerprint(tree.root / "mine/study.py") == before
    tree.write({"trueup/nn/__init__.py": init.replace("2.0", "3.0")})
    assert code_fingerprint(tree.root / "mine/study.py") != before


# -- a user's own study --------------------------------------------------------------------------------------
def test_modules_beside_a_study_file_count(tree: Tree) -> None:
    tree.write({
        "mine/helpers.py": "import deeper.inner\nfrom bare import part\n",
        "mine/deeper/__init__.py": "from deeper.unused import x\n",
        "mine/deeper/inner.py": "from . import sibling\n",
        "mine/deeper/sibling.py": "x = 1\n",
        "mine/deeper/unused.py": "x = 1\n",
        "mine/bare/part.py": "x = 1\n",  # a package without __init__
        "mine/bare/sub/more.py": "x = 1\n",
        "mine/whole/__init__.py": "from outside import y\n",
        "mine/whole/a.py": "",
        "mine/whole/b/__init__.py": "z = 1\n",
        "mine/whole/b/c.py": "",
        "mine/outside.py": "y = 1\n",
        "mine/not_imported.py": "x = = 1\n",
    })  # fmt: skip
    local = {"helpers", "deeper.inner", "deeper.sibling", "bare.part"}
    assert reached(tree, "import helpers") == local
    assert reached(tree, "import bare; f(bare)") == {"bare.part", "bare.sub.more"}
    assert reached(tree, "from whole import *") == {"whole.a", "whole.b", "whole.b.c", "outside"}
    assert reached(tree, "from helpers import nn\nfrom trueup.nn import Other") == local | {"trueup.nn.other"}
    before = code_fingerprint(str(tree.root / "mine/study.py"))
    tree.edit("mine/deeper/sibling.py", "1", "2")
    assert code_fingerprint(str(tree.root / "mine/study.py")) != before


def test_a_study_module_of_another_package_counts_that_package(tree: Tree) -> None:
    tree.write({
        "theirs/__init__.py": "raise RuntimeError('read, never run')\n",
        "theirs/study.py": "from theirs.model import Net\nfrom trueup.nn import Other\nimport loose\n",
        "theirs/model.py": "class Net: ...\n",
        "loose.py": "x = 1\n",
    })  # fmt: skip
    assert set(_closure(StudyRef("module", "theirs.study"))) - LAB == {
        "theirs",
        "theirs.study",
        "theirs.model",
        "trueup.nn.other",
    }
    assert set(_closure(StudyRef("module", "loose"))) - LAB == {"loose"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nif x\n", r"study\.py, line 2: not valid Python"),
        ("x\0", r"study\.py.*not valid Python.*null byte"),
    ],
)
def test_a_file_that_is_not_python_says_where(tree: Tree, source: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        reached(tree, source)


def test_a_broken_local_module_says_where(tree: Tree) -> None:
    tree.write({"mine/helpers.py": "def f(:\n"})
    with pytest.raises(StudyError, match=r"helpers\.py, line 1: not valid Python"):
        reached(tree, "import helpers")


def test_a_missing_study_is_refused(tree: Tree) -> None:
    with pytest.raises(StudyError, match="there is no study file"):
        code_fingerprint(tree.root / "none.py")
    for name in ("nonesuch.study", "trueup.studies.nonesuch"):
        with pytest.raises(StudyError, match=f"there is no module '{name}'"):
            code_fingerprint(StudyRef("module", name))


def test_files_are_read_once_while_they_stay_the_same(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_fingerprint(REF)
    monkeypatch.setattr(fingerprint, "_parse", lambda path: pytest.fail(f"read {path} again"))
    assert code_fingerprint(REF) == before


# -- the syntax as text --------------------------------------------------------------------------------------
def test_the_dump_tells_apart_what_differs_and_knows_no_position() -> None:
    def dump(source: str) -> str:
        return "".join(fingerprint._dump(ast.parse(source)))

    distinct = [
        *(
            "f(None)",
            "f()",
            "f(0)",
            "f(0.0)",
            "f(False)",
            "f('0')",
            "f(b'0')",
            "f(...)",
            "f(a, b)",
            "f((a, b))",
        ),
        *("{**a}", "{None: a}", "x[:1]", "x[1:]", "x[::1]", "async def f(): x", "def f(): x"),
        *("def f(a, /, *, b=1): x", "def f(*, a, b=1): x"),
    ]
    assert len({dump(source) for source in distinct}) == len(distinct)
    assert dump("f( 1,\n  2)") == dump("f(1, 2)  # twelve")
    assert dump("u'text'") == dump("'text'")


# -- the cell's fingerprint ----------------------------------------------------------------------------------
def test_a_cells_fingerprint_depends_on_all_that_its_result_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("s", "desk", 1, "report", arm="a", seed=1)

    def with_torch(version: str) -> str:
        fingerprint._torch_version.cache_clear()
        monkeypatch.setattr("importlib.metadata.version", lambda name: version)
        return cell_fingerprint("code", ["d1", "d2"], cell)

    others = [with_torch("2.14.0"), with_torch("3.13.0")]
    first = with_torch("2.13.0")
    assert with_torch("2.13.1+cpu") == cell_fingerprint("code", ["d2", "d1"], cell) == first
    others += [
        cell_fingerprint("other", ["d1", "d2"], cell),
        cell_fingerprint("code", ["d1"], cell),
        cell_fingerprint("code", ["d1", "d2"], replace(cell, seed=2)),
        cell_fingerprint("code", ["d1", "d2"], replace(cell, scale="paper")),
    ]
    monkeypatch.setattr(fingerprint, "PROTOCOL", fingerprint.PROTOCOL + 1)
    others.append(cell_fingerprint("code", ["d1", "d2"], cell))
    others.append(cell_fingerprint("code", ["d1", "d2"], cell, "cuda"))
    assert cell_fingerprint("code", ["d1", "d2"], cell, "cuda:1") == others[-1]
    assert len({first, *others}) == 1 + len(others)
    assert {len(f) for f in (first, *others)} == {64}
    fingerprint._torch_version.cache_clear()


def test_the_torch_version_is_read_without_torch() -> None:
    script = (
        "import sys; from trueup.lab._fingerprint import _torch_version; v = _torch_version()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "import torch; assert torch.__version__.startswith(v + '.'), v"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- what a cell cannot see ----------------------------------------------------------------------------------
DECLARED = """
from trueup.lab import Arm, Axis, Claim, Condition, ExactClaim, Figure, Metric, Study, difference
def cell(run):
    return {"acc": run["depth"] * 0.1}
def gap(a):
    return a - 1
study = Study(
    slug="mine", question="Is it?", cell=cell,
    metrics=(Metric("acc", higher=True, worst=0.1, unit="%", label="accuracy"),),
    arms=(Arm("plain", "baseline", {"depth": 2}, label="the plain one"), Arm("ours", "method", {"depth": 3})),
    conditions=(Condition("batch", (1, 32)),), tune=(Axis("lr", (0.1, 1.0)),), tuning_seeds=3,
    scales={"desk": {"epochs": 9}},
    claims=(
        Claim("better", "It is better.", difference("ours", "plain", "acc"), min_effect=0.01, why="a point"),
        ExactClaim("sum", "It adds up.", deviation=gap, instances={"one": {"a": 1}}, tolerance=0.5,
                   negative_control=lambda a: a + 9, control_label="nine more"),
    ),
    figures=(Figure("Accuracy", "acc"),), data=("digits",), tested_on="digits", looks=((10, 0.005),),
)
"""


def fingerprints(tree: Tree) -> tuple[str, str]:
    """Of the cells' code, and of the verdict."""
    path = tree.root / "mine" / "study.py"
    return code_fingerprint(path), verdict_fingerprint(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"Is it?"', '"Is it so?"'),
        ("the plain one", "plain"),
        ('label="accuracy"', 'label="test accuracy"'),
        ('"It is better."', '"It beats plain."'),
        ('why="a point"', 'why="one point"'),
        ('Figure("Accuracy", "acc")', 'Figure("Accuracy of every seed", "acc"), Figure("Again", "acc")'),
        ('tested_on="digits"', 'tested_on="small images"'),
        ("nine more", "9 more"),
    ],
)
def test_words_of_a_study_do_not_count(tree: Tree, old: str, new: str) -> None:
    tree.write({"mine/study.py": DECLARED})
    before = fingerprints(tree)
    tree.edit("mine/study.py", old, new)
    assert fingerprints(tree) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("min_effect=0.01", "min_effect=0.02"),
        ('difference("ours", "plain", "acc")', 'difference("plain", "ours", "acc")'),
        ("tolerance=0.5", "tolerance=0.1"),
        ("(1, 32)", "(1, 32, 64)"),
        ("(0.1, 1.0)", "(0.1, 1.0, 10.0)"),
        ("(10, 0.005)", "(10, 0.005), (20, 0.02)"),
        ("tuning_seeds=3", "tuning_seeds=6"),
        ('"baseline"', '"control"'),
    ],
)
def test_claims_grids_and_looks_count_for_the_verdict_alone(tree: Tree, old: str, new: str) -> None:
    tree.write({"mine/study.py": DECLARED})
    cells, verdict = fingerprints(tree)
    tree.edit("mine/study.py", old, new)
    assert fingerprints(tree)[0] == cells
    assert fingerprints(tree)[1] != verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* 0.1}", "* 0.2}"),
        ('{"depth": 3}', '{"depth": 4}'),
        ("worst=0.1", "worst=0.2"),
        ('"epochs": 9', '"epochs": 8'),
        ("return a - 1", "return a - 2"),
        ("a + 9", "a + 8"),
        ('{"a": 1}', '{"a": 2}'),
        # a name of one's own is no declaration of the lab's
        ("Claim, Condition", "Condition"),
    ],
)
def test_what_a_cell_computes_counts(tree: Tree, old: str, new: str) -> None:
    tree.write({"mine/study.py": DECLARED})
    cells, verdict = fingerprints(tree)
    tree.edit("mine/study.py", old, new)
    assert fingerprints(tree)[0] != cells
    assert fingerprints(tree)[1] != verdict


def test_a_declaration_that_code_can_read_counts(tree: Tree) -> None:
    named = DECLARED.replace('tune=(Axis("lr", (0.1, 1.0)),)', "tune=(LR,)")
    named = named.replace(
        "def cell(run):", 'LR = Axis("lr", (0.1, 1.0))\ndef cell(run):\n    best = LR.values[0]'
    )
    tree.write({"mine/study.py": named})
    cells, verdict = fingerprints(tree)
    tree.edit("mine/study.py", "(0.1, 1.0)", "(0.2, 1.0)")
    assert fingerprints(tree)[0] != cells
    assert fingerprints(tree)[1] != verdict


def test_data_and_torch_count_for_the_verdict(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verdict_fingerprint(REF, ["d1", "d2"])
    assert verdict_fingerprint(REF, ["d2", "d1"]) == first
    assert verdict_fingerprint(REF, ["d1", "moved"]) != first
    monkeypatch.setattr(fingerprint, "_torch_version", lambda: "9.9")
    assert verdict_fingerprint(REF, ["d1", "d2"]) != first


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("run", "[:9]", "[:8]"), ("scoring", "0.1", "0.2"), ("seeds", "return n", "return n + 1")],
)
def test_the_labs_split_scoring_and_seeds_count(tree: Tree, file: str, old: str, new: str) -> None:
    before = code_fingerprint(REF)
    tree.edit(f"trueup/lab/_{file}.py", old, new)
    assert code_fingerprint(REF) != before


# -- the real library ---------------------------------------------------------------------------------------
def test_a_real_study_reaches_its_method_and_not_the_neighbours() -> None:
    modules = set(_closure(StudyRef("module", "trueup.studies.ghost_batch_norm")))
    assert {"trueup.studies.ghost_batch_norm", "trueup.nn._ghost_batch_norm"} <= modules
    assert not modules & {"trueup.optim._adamp", "trueup.estimators", "trueup.nn", "trueup.optim", "trueup"}
    assert not any(m.startswith(("trueup.data", "trueup.estimators")) for m in modules)
    # of the lab only what decides what a cell sees and how it is scored
    lab = {m for m in modules if m.startswith("trueup.lab")}
    assert lab == {"trueup.lab._run", "trueup.lab._scoring", "trueup.lab._seeds"}
