"""Measure whether the tests notice a changed equation: `make mutate`, no part of continuous integration.

mutmut makes the mutants: a sign flipped, a comparison moved, an argument dropped, one at a time. A mutant is
killed when a test fails. Mutants that only change the text of a message are left out, and of the others a
sample drawn by a fixed seed is run from every file. mutmut passes over functions with a decorator, such as
`torch.no_grad()`. The exit code is 1 below the goal.

    python tests/mutation.py                     # 20 mutants per file
    python tests/mutation.py --each 0            # all of them: hours
    python tests/mutation.py lab/_verdict         # only this file

Then `mutmut show NAME` prints a mutant that survived.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTMUT = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "2"]
GOAL = 0.9
SURVIVED = (0, 33)  # mutmut's exit codes for "the tests passed" and "no test reaches this"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="modules, such as nn/_evonorm; all if left out")
    parser.add_argument("--each", type=int, default=20, help="mutants per file; 0 runs all (default: 20)")
    options = parser.parse_args()
    files = {name: ROOT / "mutants/src/trueup" / f"{name}.py" for name in modules()}
    unknown = sorted(set(options.names) - set(files))
    if unknown:
        parser.error(f"no equations in {unknown[0]!r}; files are {', '.join(files)}")

    # Asked for a mutant that does not exist, mutmut writes them all and stops.
    subprocess.run([*MUTMUT, "none"], cwd=ROOT, capture_output=True, check=False)
    chosen: dict[str, list[str]] = {}
    for stem in options.names or files:
        mutants = of_equations(files[stem])
        sample = random.Random(stem).sample(mutants, min(options.each or len(mutants), len(mutants)))
        chosen[stem] = sorted(sample)
    run([name for names in chosen.values() for name in names])

    survivors: list[str] = []
    total = 0
    for stem, names in chosen.items():
        codes = json.loads(Path(f"{files[stem]}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
        alive = [name for name in names if codes[name] in SURVIVED]
        print(f"{stem:40} {len(names) - len(alive):4} of {len(names):4} killed")
        survivors += alive
        total += len(names)
    rate = 1 - len(survivors) / total
    print("\n".join(f"survived: {name}" for name in survivors))
    print(f"{rate:.1%} of {total} mutants killed; the goal is {GOAL:.0%}")
    return 0 if rate >= GOAL else 1


def modules() -> list[str]:
    """Return the modules to mutate, such as `nn/_evonorm`: all that pyproject.toml does not leave out."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src/trueup").rglob("*.py"))
    kept = [name for name in found if not any(fnmatch(name, out) for out in config["do_not_mutate"])]
    return [name.removeprefix("src/trueup/").removesuffix(".py") for name in kept]


def run(names: list[str]) -> None:
    """Let mutmut run the named mutants, one thread per process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    subprocess.run([*MUTMUT, *names], cwd=ROOT, env=os.environ | threads, check=True)


def of_equations(path: Path) -> list[str]:
    """Names of the mutants in a mutated file that change more than text."""
    keys = json.loads(Path(f"{path}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    bodies = {
        node.name: without_text(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    names = {key: key.rpartition(".")[2] for key in keys}
    original = {name: re.sub(r"__mutmut_\d+$", "__mutmut_orig", name) for name in names.values()}
    return [key for key, name in names.items() if bodies[name] != bodies[original[name]]]


def without_text(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The function's syntax tree with every string emptied."""
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return "".join(ast.dump(statement) for statement in [*function.args.defaults, *function.body])


if __name__ == "__main__":
    sys.exit(main())
