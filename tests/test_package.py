"""The package as a whole: importing is cheap, everything public is documented, nothing private leaked in."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import trueup
from trueup import papers
from trueup.lab import ledger

ROOT = Path(__file__).parent.parent
AREAS = [name for name in dir(trueup) if hasattr(getattr(trueup, name), "__all__") and name != "papers"]
PUBLIC = [(area, name) for area in AREAS for name in importlib.import_module(f"trueup.{area}").__all__]


@pytest.mark.parametrize("module", ["trueup", "trueup.papers"])
def test_importing_brings_in_nothing_beyond_the_standard_library(module: str) -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        f"import {module}\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['trueup']"


def test_areas_load_when_used_and_unknown_names_do_not() -> None:
    code = "import sys, trueup; trueup.papers; assert 'torch' not in sys.modules; trueup.optim.AdamP"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"papers", "nn", "optim", "estimators", "lab", "data", "__version__"} <= set(dir(trueup))
    with pytest.raises(AttributeError, match="has no attribute 'optims'"):
        _ = trueup.optims  # type: ignore[attr-defined]


def test_version_is_the_one_in_the_changelog_or_newer() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", trueup.__version__)
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_area_says_what_is_public() -> None:
    packages = {path.parent.name for path in (ROOT / "src/trueup").glob("*/__init__.py")}
    assert {name for name in packages if not name.startswith("_")} - {"cli", "studies"} <= set(AREAS)


@pytest.mark.parametrize("area", [area for area in AREAS if area != "lab"])
def test_modules_of_an_area_are_private(area: str) -> None:
    names = {
        module.name for module in pkgutil.iter_modules(importlib.import_module(f"trueup.{area}").__path__)
    }
    assert all(name.startswith("_") for name in names)


@pytest.mark.parametrize(("area", "name"), PUBLIC, ids=[f"{area}.{name}" for area, name in PUBLIC])
def test_no_public_name_hides_a_module(area: str, name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"trueup.{area}.{name}")


def test_without_the_cli_extra_only_the_command_line_is_missing() -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "import trueup; [getattr(trueup, name) for name in dir(trueup)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("area", "name"), PUBLIC, ids=[f"{area}.{name}" for area, name in PUBLIC])
def test_everything_public_is_documented(area: str, name: str) -> None:
    thing: Any = getattr(importlib.import_module(f"trueup.{area}"), name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert thing.__doc__, f"trueup.{area}.{name} has no docstring"
        assert len(thing.__doc__.split()) >= 4, f"trueup.{area}.{name}: a docstring says what the thing is"


METHODS = [name for paper in papers.CATALOGUE for name in paper.names]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_shows_an_example(name: str) -> None:
    area, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(area), attribute)
    examples = [e for test in doctest.DocTestFinder(recurse=False).find(thing) for e in test.examples]
    assert examples, f"{name} has no example in its docstring"
    skipped = [e.source for e in examples if e.options.get(doctest.SKIP)]
    assert not skipped, f"{name}: an example that is not run may be wrong"


def test_readme_shows_the_published_ledger() -> None:
    parts = (ROOT / "README.md").read_text(encoding="utf-8").split(ledger.MARK)
    assert len(parts) == 3
    assert parts[1].strip() == ledger.readme_table(ledger.read(), papers.CATALOGUE)


def test_the_tutorial_includes_the_example_study() -> None:
    text = (ROOT / "docs/tutorials/write-a-study.md").read_text(encoding="utf-8")
    assert '\n--8<-- "examples/my_study.py"\n' in text  # which a formatter takes for Python, and spaces


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_tracked_files_name_no_machine() -> None:
    # absolute paths of somebody's machine, and addresses inside a private network
    private = re.compile(
        r"(?<![\w.:/])/(?:work|home|root|Users|opt|mnt)/\w|\b(?:10|192\.168)\.\d+\.\d+\.\d+\b|\blocalhost:\d"
    )
    found = []
    for path in _tracked():
        if path == Path(__file__) or path.suffix in {".npz", ".png", ".gz", ".lock"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if private.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_no_module_has_a_name_without_meaning() -> None:
    vague = {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}
    ours = [
        path for path in _tracked() if "stub" not in path.parts
    ]  # a stub has the names of what it replaces
    assert not [path for path in ours if path.name in vague]


def test_every_extra_that_ci_installs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}  # type: ignore[index]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", pins, flags=re.MULTILINE))
    assert names - {"trueup"} <= set(pinned)
    assert "+" not in pinned["torch"]
