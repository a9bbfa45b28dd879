"""Fingerprint the code of a study, to decide whether a stored cell is still what the code would compute.

A cell's result may be reused exactly as long as nothing that computes it has changed. The code that computes
it is found statically, by following imports from the study's file through `trueup` and through the modules
beside the study. The fingerprint hashes the syntax of these modules: an edited epsilon changes it; an edited
docstring, comment or line break does not.

Four rules keep verdicts from becoming stale without reason:

* A package's `__init__` only forwards names. `from trueup.nn import GhostBatchNorm1d` leads to the module
  that defines the name, and not to its siblings; names that a package loads lazily are followed in the same
  way. Of the `__init__` itself, only statements other than imports, `__all__` and lazy loading count.
* `trueup.lab` does not count, except `_COUNTED_IN_LAB`, which decide what a cell sees and how its metrics are
  scored; the rest measures and does not compute. `PROTOCOL` is raised by hand when it changes what a stored
  cell means.
* A study's texts (labels, titles, reasons, figures) do not count. Its claims, grids and looks count for its
  verdict (`verdict_fingerprint`), but not for its cells, which cannot see them.
* `trueup.data` does not count: the arrays that a study declares are pinned bit for bit and count by their
  hash.

Dynamic code counts in full or not at all: a package used as a value (`getattr(nn, name)`) counts with all its
modules; a module whose name is computed at run time does not count.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trueup.lab._errors import StudyError

if TYPE_CHECKING:
    from trueup.lab._cell import Cell
    from trueup.lab._engine import StudyRef

PROTOCOL = 1
"""Raised by hand when the lab changes what a stored cell means."""

_SOURCE = Path(__file__).parents[2]
_NOT_COUNTED = ("trueup.lab", "trueup.data")
_COUNTED_IN_LAB = ("trueup.lab._run", "trueup.lab._scoring", "trueup.lab._seeds")
_STUDY = (
    "<study>"  # the name of a study file in the hash, so that moving or renaming the file changes nothing
)


def code_fingerprint(ref: StudyRef | str | Path) -> str:
    """Return the sha256 of everything that computes a study's cells, except libraries, data and the lab.

    Args:
        ref: the study, by module or file; a path stands for a file.

    Raises:
        StudyError: for a file that is missing or is not Python, with file and line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "study.py"
        >>> _ = file.write_text("eps = 1e-5")
        >>> before = code_fingerprint(file)
        >>> _ = file.write_text("eps = 1e-5  # small")
        >>> code_fingerprint(file) == before
        True
        >>> _ = file.write_text("eps = 1e-6")
        >>> code_fingerprint(file) == before
        False
    """
    return _hash(_closure(ref))


def verdict_fingerprint(ref: StudyRef | str | Path, data_hashes: Iterable[str] = ()) -> str:
    """Return the sha256 of what a verdict rests on: cells' code, claims, grids, looks, data, torch's version.

    Args:
        data_hashes: hashes of the data sets that the study declares, in any order.

    Raises:
        StudyError: for a file that is missing or is not Python, with file and line.
    """
    parts = [_hash(_closure(ref, _OF_VERDICTS)), *sorted(data_hashes), f"torch {_torch_version()}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hash(closure: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, code in sorted(closure.items()):
        digest.update(f"{name} {code}\n".encode())
    return digest.hexdigest()


def cell_fingerprint(code: str, data_hashes: Iterable[str], cell: Cell, device: str = "cpu") -> str:
    """Return the sha256 under which a cell is stored: code, data, torch's major.minor, `PROTOCOL`, the cell.

    Args:
        code: the result of `code_fingerprint`.
        data_hashes: hashes of the data sets that the study declares, in any order.
        device: `cuda:1` counts as `cuda`, since only the kind of device decides the last bits.
    """
    lab = f"lab {PROTOCOL} {device.partition(':')[0]}"
    parts = [code, *sorted(data_hashes), f"torch {_torch_version()}", lab, cell.key()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _torch_version() -> str:
    """Return major.minor, read without importing torch."""
    return ".".join(importlib.metadata.version("torch").split(".")[:2])


# -- what counts of a study's declarations -------------------------------------------------------------------
# The parameters that count, by position; "" stands for one that does not. Declarations that a table lacks do
# not count.
_Counted: TypeAlias = Mapping[str, tuple[str, ...]]
_OF_CELLS: _Counted = {
    "Study": ("slug", "", "metrics", "arms", "cell", "claims", "scales", "", "", "stages", "", "data"),
    "Metric": ("name", "higher", "worst"),
    "Arm": ("name", "", "settings"),
    "ExactClaim": ("name", "", "deviation", "instances", "", "negative_control"),
    "CostClaim": ("name", "", "prepare", "", "rounds"),
}
_OF_VERDICTS: _Counted = {
    "Study": (
        *("slug", "", "metrics", "arms", "cell", "claims", "scales", "conditions", "tune"),
        *("stages", "", "data", "", "", "protocol", "", "looks", "tuning_seeds"),
    ),
    "Metric": ("name", "higher", "worst"),
    "Arm": ("name", "role", "settings", "tune"),
    "Axis": ("name", "values", "low", "high"),
    "Condition": ("name", "values", "tuned_at"),
    "Claim": ("name", "", "contrast", "min_effect", "", "origin", "primary", "requires", "controls"),
    "ExactClaim": (
        *("name", "", "deviation", "instances", "tolerance", "negative_control", ""),
        *("origin", "primary", "requires"),
    ),
    "CostClaim": ("name", "", "prepare", "at_most", "rounds", "origin", "primary", "requires"),
}
_DECLARATIONS = {*_OF_VERDICTS, "Figure"}


# -- following references ------------------------------------------------------------------------------------
# A reference is a dotted name that code mentions: `trueup.nn.GhostBatchNorm1d.forward`, or `trueup.nn.*`.
# The flag is True if a package at its end is used as a value and so counts whole, False if only imported.
_Reference: TypeAlias = tuple[str, bool]


def _closure(ref: StudyRef | str | Path, counted: _Counted = _OF_CELLS) -> dict[str, str]:
    """Return module name -> hash of its syntax, for every module that the study reaches."""
    if isinstance(ref, (str, Path)) or ref.kind == "file":
        path = Path(ref if isinstance(ref, (str, Path)) else ref.name).absolute()
        if not path.is_file():
            raise StudyError(f"there is no study file {path}")
        trace = _Trace(beside=path.parent)
        trace.add_study(_STUDY, path, counted)
    else:
        trace = _Trace(top_level=_top_level(ref.name))
        module = trace.locate(ref.name)
        if module is None:
            raise StudyError(f"there is no module {ref.name!r} on Python's path")
        if module.is_file():
            trace.add_study(ref.name, module, counted)
        trace.reach(ref.name, whole=True)
    for name in _COUNTED_IN_LAB:
        if (of_lab := trace.locate(name)) is not None:
            trace.add_file(name, of_lab)
    return trace.code


def _top_level(module: str) -> dict[str, Path]:
    """Return the folder that contains a module's top-level package, found without importing it."""
    top = module.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top, sys.path)
    if spec is None:
        return {}
    inside = list(spec.submodule_search_locations or ())
    return {top: Path(inside[0] if inside else str(spec.origin)).parent}


class _Trace:
    """One walk over the imports of a study, with the code found so far.

    Args:
        beside: the folder of a study file; modules in it count.
        top_level: packages that count wherever they are installed.
    """

    def __init__(self, beside: Path | None = None, top_level: Mapping[str, Path] | None = None) -> None:
        self.code: dict[str, str] = {}
        self._beside = beside
        self._top_level = {**(top_level or {}), "trueup": _SOURCE}
        self._located: dict[str, Path | None] = {}
        self._seen: set[_Reference] = set()
        self._entered: set[str] = set()

    def locate(self, module: str) -> Path | None:
        """Return a module's file, or its folder if it has no `__init__`; `None` for a library's module."""
        if module not in self._located:
            self._located[module] = self._find(module)
        return self._located[module]

    def _find(self, module: str) -> Path | None:
        root = self._top_level.get(module.partition(".")[0], self._beside)
        if root is None:
            return None
        stem = root.joinpath(*module.split("."))
        for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if file.is_file():
                return file
        return stem if stem.is_dir() else None

    def reach(self, dotted: str, *, whole: bool) -> None:
        """Count what a reference leads to: a module and everything that it refers to."""
        if (dotted, whole) in self._seen:
            return
        self._seen.add((dotted, whole))
        module, *names = dotted.split(".")
        while module not in _NOT_COUNTED and (path := self.locate(module)) is not None:
            if path.name != "__init__.py" and path.is_file():
                self.add_file(module, path)  # further names are its attributes
                return
            init = self.enter(module, path)
            if not names or names == ["*"]:
                if whole:
                    self.add_all(module, path, init)
                return
            name, *names = names
            submodule = f"{module}.{name}"
            sources = [s for s in init.names.get(name, ()) if s != submodule]
            if any(s.startswith(f"{submodule}.") for s in sources) and self.locate(submodule) is not None:
                # a function named after its module: either way the file is what counts
                module = submodule
                continue
            if sources:
                for source in sources:
                    self.reach(".".join((source, *names)), whole=whole)
                return
            if name in init.defines:
                return
            if self.locate(submodule) is None:
                for star in init.stars:
                    self.reach(star.removesuffix("*") + name, whole=whole)
                if init.is_lazy and not init.stars and not name.startswith("__"):
                    self.add_all(module, path, init)  # created by code that cannot be followed
                return
            module = submodule

    def add_study(self, module: str, path: Path, counted: _Counted) -> None:
        """Count a study's own file, without the parts of its declarations that do not count."""
        stat = path.stat()
        tree = _study_tree(path, stat.st_mtime_ns, stat.st_size)
        self._add(module, _count(_StripDeclarations(counted).strip(tree), module.rpartition(".")[0]))

    def add_file(self, module: str, path: Path) -> None:
        """Count a whole file."""
        if module not in self.code:
            self._add(module, _read(path, module))

    def enter(self, package: str, path: Path) -> _Init:
        """Count the code of a package's own `__init__`, and return where its names come from."""
        if path.is_dir():
            return _NO_INIT
        init = _read_init(path, package)
        if package not in self._entered:
            self._entered.add(package)
            if init.own is not None:
                self._add(package, init.own)
        return init

    def add_all(self, package: str, path: Path, init: _Init) -> None:
        """Count every module of a package, and what its `__init__` forwards from elsewhere."""
        folder = path if path.is_dir() else path.parent
        for file in sorted(folder.rglob("*.py")):
            inside = file.relative_to(folder).with_suffix("").parts
            if inside[-1] != "__init__":
                self.reach(".".join((package, *inside)), whole=True)
            elif len(inside) > 1:
                self.reach(".".join((package, *inside[:-1])), whole=True)
        for source in (*init.stars, *(s for sources in init.names.values() for s in sources)):
            self.reach(source, whole=True)

    def _add(self, module: str, code: _Code) -> None:
        self.code[module] = code.digest
        for dotted, whole in code.references:
            self.reach(dotted, whole=whole)


# -- reading a file ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Code:
    """The hash of a file's syntax, and its references."""

    digest: str
    references: frozenset[_Reference]


@dataclass(frozen=True)
class _Init:
    """A package's `__init__`: its own code, if any, and the names that it forwards.

    Attributes:
        names: name -> the dotted names it may stand for, by an import or a table of lazy names.
        stars: packages and modules imported with a star, as `module.*`.
        defines: names that its own code defines.
        is_lazy: True if it has a `__getattr__`.
    """

    own: _Code | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stars: tuple[str, ...] = ()
    defines: frozenset[str] = frozenset()
    is_lazy: bool = False


_NO_INIT = _Init()


def _read(path: Path, module: str) -> _Code:
    stat = path.stat()
    package = module.rpartition(".")[0]
    return _code_of(path, stat.st_mtime_ns, stat.st_size, package)


def _read_init(path: Path, package: str) -> _Init:
    stat = path.stat()
    return _init_of(path, stat.st_mtime_ns, stat.st_size, package)


@functools.cache
def _code_of(path: Path, changed: int, size: int, package: str) -> _Code:
    return _count(_Strip().visit(_parse(path)), package)


@functools.cache
def _study_tree(path: Path, changed: int, size: int) -> ast.Module:
    tree: ast.Module = _Strip().visit(_parse(path))
    return tree


@functools.cache
def _init_of(path: Path, changed: int, size: int, package: str) -> _Init:
    tree = _parse(path)
    names: defaultdict[str, list[str]] = defaultdict(list)
    stars = []
    for node in ast.walk(tree):  # imports for type checkers too: they show where a lazy name is defined
        for bound, target in _bindings(node, package):
            if bound == "*":
                stars.append(target)
            else:
                names[bound].append(target)
        if isinstance(node, ast.Dict):
            for name, module in _lazy_table(node, package):
                names[name].append(f"{module}.{name}")

    statements = _Strip().visit(tree).body
    own = _own_statements(statements)
    used = _chains(own)
    defined = {name for statement in own for name in _defined(statement)}
    imports = [
        type(node)(**{**vars(node), "names": [alias]})
        for statement in statements
        if statement not in own
        for node in ast.walk(statement)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if (alias.asname or alias.name).partition(".")[0] in used
    ]
    return _Init(
        own=_count(ast.Module([*imports, *own], []), package) if own else None,
        names={name: tuple(targets) for name, targets in names.items()},
        stars=tuple(stars),
        defines=frozenset(defined),
        is_lazy="__getattr__" in {getattr(statement, "name", "") for statement in statements},
    )


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise StudyError(f"{path}, line {error.lineno}: not valid Python: {error.msg}") from error
    except ValueError as error:
        raise StudyError(f"{path}: not valid Python: {error}") from error


class _Strip(ast.NodeTransformer):
    """Drop what does nothing at run time: docstrings, `pass`, imports for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        name = getattr(node.test, "id", getattr(node.test, "attr", ""))
        return node.orelse if name == "TYPE_CHECKING" else node


class _StripDeclarations(ast.NodeTransformer):
    """Drop the parts of a study's declarations that do not count."""

    def __init__(self, counted: _Counted) -> None:
        self._counted = counted
        self._names: dict[str, str] = {}
        self._depth = 0  # of calls of Study: code may read declarations elsewhere, so those count whole

    def strip(self, tree: ast.Module) -> ast.Module:
        """Return a stripped copy of a study file's syntax."""
        self._names = {
            alias.asname or alias.name: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "trueup.lab" and not node.level
            for alias in node.names
        }
        stripped: ast.Module = self.visit(copy.deepcopy(tree))
        return stripped

    def visit_Call(self, node: ast.Call) -> ast.AST:
        declared = self._declared(node)
        self._depth += declared == "Study"
        self.generic_visit(node)
        inside = self._depth > 0
        self._depth -= declared == "Study"
        if inside and declared and not any(isinstance(a, ast.Starred) for a in node.args):
            counted = self._counted.get(declared, ())
            node.args = [a for a, name in zip(node.args, counted) if name]
            node.keywords = [k for k in node.keywords if k.arg is None or k.arg in counted]
        return node

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        self.generic_visit(node)
        node.elts = [e for e in node.elts if self._counts(e)]
        return node

    def visit_List(self, node: ast.List) -> ast.AST:
        self.generic_visit(node)
        node.elts = [e for e in node.elts if self._counts(e)]
        return node

    def _counts(self, node: ast.AST) -> bool:
        declared = self._declared(node)
        return self._depth == 0 or not declared or declared in self._counted

    def _declared(self, node: ast.AST) -> str:
        """Return what a call declares, by the lab's own name; "" for any other syntax."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            return ""
        name = self._names.get(node.func.id, "")
        return name if name in _DECLARATIONS else ""


def _count(tree: ast.AST, package: str) -> _Code:
    digest = hashlib.sha256("".join(_dump(tree)).encode("utf-8", "surrogatepass")).hexdigest()
    return _Code(digest, frozenset(_references(tree, package)))


def _dump(node: object) -> Iterator[str]:
    """Yield the syntax as text, without positions; unlike `ast.dump`, alike under every version of Python.

    Empty fields are left out, since later versions add such fields to old nodes.
    """
    if isinstance(node, ast.AST):
        yield type(node).__name__ + "("
        for name, value in ast.iter_fields(node):
            is_value = isinstance(node, ast.Constant) and name == "value"
            if is_value or (value is not None and value != [] and name not in ("kind", "type_comment")):
                yield name + "="
                yield from _dump(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _dump(item)
            yield ","
    else:
        yield repr(node)


# -- what code refers to -------------------------------------------------------------------------------------
def _references(tree: ast.AST, package: str) -> Iterator[_Reference]:
    chains = _chains([tree])
    for node in ast.walk(tree):
        for bound, target in _bindings(node, package):
            if bound == "*":
                yield target, True
                continue
            # a name without attribute look-ups may be passed on, so it counts whole
            for chain in chains.get(bound) or ([()] if isinstance(node, ast.ImportFrom) else []):
                yield ".".join((target, *chain)), True
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield _absolute(argument.value, package), True


def _bindings(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Yield `(name, dotted name it stands for)` of an import statement; `("*", "module.*")` for a star."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, top)
    elif isinstance(node, ast.ImportFrom):
        module = _absolute("." * node.level + (node.module or ""), package)
        for alias in node.names:
            yield alias.asname or alias.name, f"{module}.{alias.name}"


def _absolute(module: str, package: str) -> str:
    """Resolve a relative module name: `..b` in package `a.c` is `a.b`."""
    name = module.lstrip(".")
    dots = len(module) - len(name)
    if not dots:
        return module
    parts = package.split(".") if package else []
    above = parts[: len(parts) - (dots - 1)]
    return ".".join((*above, name)) if name else ".".join(above)


def _chains(nodes: Iterable[ast.AST]) -> dict[str, set[tuple[str, ...]]]:
    """Map names that are read to the attributes looked up on them: `a.b` and `a` give `{a: {(b,), ()}}`."""
    found: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found[node.id].add(tuple(attributes))
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return found


def _called(function: ast.expr) -> str:
    return str(getattr(function, "attr", getattr(function, "id", "")))


# -- the names that an __init__ forwards ---------------------------------------------------------------------
def _own_statements(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of an `__init__` that do more than forward names."""
    own = [s for s in statements if not _only_forwards(s)]
    # a table that only these read (the names to load lazily) forwards names too
    hooks = [s for s in statements if _only_forwards(s)]
    while tables := [
        s
        for s in own
        if isinstance(s, (ast.Assign, ast.AnnAssign))
        and (names := set(_defined(s)))
        and names & set(_chains(hooks))
        and not names & set(_chains([o for o in own if o is not s]))
    ]:
        own = [s for s in own if s not in tables]
        hooks += tables
    return own


def _only_forwards(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.FunctionDef(name=name):
            return name in ("__getattr__", "__dir__")
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            return all(name.startswith("__") for name in _defined(statement)) and any(_defined(statement))
        case ast.If() | ast.Try():
            blocks = [statement, *getattr(statement, "handlers", [])]
            inner = [s for b in blocks for s in ast.iter_child_nodes(b) if isinstance(s, ast.stmt)]
            return all(map(_only_forwards, inner))
    return False


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of an `__init__` defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _lazy_table(table: ast.Dict, package: str) -> Iterator[tuple[str, str]]:
    """Yield the names of a table `{"Name": ".module"}` with the modules they are loaded from."""
    for key, value in zip(table.keys, table.values):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
            name, module = key.value, value.value
            if isinstance(name, str) and isinstance(module, str):
                yield name, _absolute(module, package)
