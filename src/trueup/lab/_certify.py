"""Certify that the present code computes what a published verdict rests on.

Studies rest on shared code. When that code is refactored, a sample of a study's cells is computed again;
stages are rebuilt and nothing is read from a store. They must equal the published cells bit for bit in
everything that a cell returns. Cells that do not are computed by the published commit too: another processor
may differ in the last bits, and then the two codes must agree with each other on this one.

Only the code that computes may change. A study whose plan, claims or contrasts differ from the published ones
follows another protocol, and must be published again.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from trueup.lab import _evidence as evidence
from trueup.lab import ledger
from trueup.lab._cell import CellResult, is_alive
from trueup.lab._engine import StudyRef
from trueup.lab._errors import StudyError
from trueup.lab._judging import judge_claims
from trueup.lab._measured import Evidence, measure
from trueup.lab._spec import Study

SEEDS_PER_LOOK = 2
_KEY = ("kind", "arm", "condition", "hyper", "seed", "instance")
_CLONE = (
    "Certifying runs the published commit: clone the repository, run `pip install -e .` there, and certify "
    "in it"
)
_PATIENCE = 10.0  # seconds that an interrupted process has to stop its workers


class CertifyError(StudyError):
    """A verdict cannot be certified; the message says why, and what to do instead."""


class Progress(Protocol):
    """Receives the progress of a certification."""

    def begin(self, slug: str, cells: int) -> None: ...
    def done(self, cells: int) -> None: ...


class Silent:
    """No progress."""

    def begin(self, slug: str, cells: int) -> None: ...
    def done(self, cells: int) -> None: ...


@dataclass(frozen=True)
class Difference:
    """One number of a cell that the published and the present code compute differently.

    Attributes:
        key: the cell, in the form of the ledger's history.
        number: a number's name; or `status`, `series or arrays`, or `outcome` of a cost claim.
        failed: True if the published code itself failed to compute the cell, so that nothing can be compared.
    """

    key: Mapping[str, Any]
    number: str
    published: object
    present: object
    failed: bool = False

    @property
    def cell(self) -> str:
        """Return the cell as readable text."""
        settings = {**self.key["condition"], **self.key["hyper"]}
        parts = [self.key["arm"], *(f"{k}={v}" for k, v in settings.items()), self.key["instance"]]
        seed = [f"seed {self.key['seed']}"] if self.key["kind"] in ("tune", "report") else []
        return " ".join([self.key["kind"], *filter(None, parts), *seed])

    def __str__(self) -> str:
        return f"{self.cell}: {self.number} is {self.published} by the published code, {self.present} now"


@dataclass(frozen=True)
class Certification:
    """The result of certifying one verdict.

    Attributes:
        outcome: `differs` if a cell does; `failed` if the only trouble is that the published code cannot
            compute some cells either, which says nothing about the present code.
        cells: number of cells compared, or measured again for a cost claim.
        equal_to_evidence: number of cells that equal the published ones, out of `compared`.
    """

    slug: str
    outcome: Literal["certified", "differs", "failed"]
    cells: int
    compared: int
    equal_to_evidence: int
    seconds: float
    differences: tuple[Difference, ...] = ()

    @property
    def agreement(self) -> str:
        """Describe how the cells compare with the published ones."""
        agree = self.outcome == "certified"
        if other := self.compared - self.equal_to_evidence:
            both = "; both codes agree with each other" if agree else ", by the published code too"
            return f"on this processor {other:,} of {self.compared:,} differ from the published ones{both}"
        whose = "" if agree else " by the published code"
        return f"{self.compared:,} of {self.compared:,} cells{whose} equal the stored ones"


def certify(
    slug: str,
    ref: StudyRef,
    repository: Repository,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    ledger_path: Path | None = None,
    folder: Path | None = None,
) -> Certification:
    """Compute a sample of a published verdict's cells again, compare, and record the result.

    Args:
        ref: the present study; a file must be inside the repository.
        ledger_path, folder: the ledger, and the folder of the evidence; by default the shipped ones.

    Raises:
        CertifyError: if the study is no longer the published one, or the published code cannot be run.
    """
    progress = progress or Silent()
    started = time.monotonic()
    published = ledger.read(ledger_path).get(slug)
    if published is None:
        raise CertifyError(f"{slug} has no published verdict")
    document, study = ledger.evidence_of(published, folder), ref.load()
    check_plan(study, document)
    commit = repository.require_clean()
    repository.require(document["commit"])

    drawn = sample(document, f"{slug} {commit}", differed(published.get("history", ())))
    compared = [record for record in drawn if record["kind"] != "cost"]
    progress.begin(slug, len(drawn))
    request = {
        "slug": slug,
        "scale": document["scale"],
        "threads": int(document["environment"]["threads"]),
        "device": document["environment"]["device"].partition(" ")[0],
        "workers": workers,
    }
    with repository.worktree(document["commit"]) as tree:
        here = repository.root
        new = _recompute(here, _request(request, ref, here, here, drawn), tree.parent, "present", progress)
        old = list(compared)
        unequal = [i for i, cell in enumerate(compared) if not _is_equal(cell, new["cells"][i])]
        if unequal:
            progress.begin(f"{slug}, by the published code", len(unequal))
            cells = _request(request, ref, here, tree, [compared[i] for i in unequal])
            again = _recompute(tree, cells, tree.parent, "published", progress)
            if again["fingerprint"] != document["fingerprint"]:
                raise CertifyError(
                    f"the code of commit {document['commit'][:12]} is not the code that was published "
                    "(its fingerprint is another): publish the verdict again"
                )
            for i, cell in zip(unequal, again["cells"], strict=True):
                old[i] = cell
    if repository.require_clean() != commit:
        raise CertifyError("the code changed while it was certified: certify again")

    differences = [
        *compare(old, new["cells"][: len(compared)]),
        *_cost_differences(study, document, new["cells"][len(compared) :]),
    ]
    found = Certification(
        slug=slug,
        outcome="certified"
        if not differences
        else "failed"
        if all(d.failed for d in differences)
        else "differs",
        cells=len(drawn),
        compared=len(compared),
        equal_to_evidence=sum(a["sha256"] == b["sha256"] for a, b in zip(old, compared, strict=True)),
        seconds=time.monotonic() - started,
        differences=tuple(differences),
    )
    if found.outcome != "failed":
        ledger.add_event(slug, _event(found, document, commit, new["fingerprint"]), ledger_path)
    return found


def _event(
    found: Certification, document: Mapping[str, Any], commit: str, fingerprint: str
) -> dict[str, Any]:
    event = {
        "event": "certified" if found.outcome == "certified" else "differed",
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "protocol": document["protocol"],
        "fingerprint": fingerprint,
        "cells": found.cells,
        "equal_to_evidence": found.equal_to_evidence,
        "seconds": round(found.seconds),
    }
    if found.outcome == "differs":
        event["differing"] = list({_identity(d.key): dict(d.key) for d in found.differences}.values())
    return event


# -- the same study? -----------------------------------------------------------------------------------------


def check_plan(study: Study, document: Mapping[str, Any]) -> None:
    """Check that a study is the published one, and that its contrasts give the published numbers.

    Raises:
        CertifyError: if not; it names the first difference.
    """
    why = evidence.changed(study, document)
    if why is not None:
        raise CertifyError(
            f"this is no longer the study that was published: {why}. Raise its protocol number and "
            "publish it again"
        )


# -- the sample ----------------------------------------------------------------------------------------------


def sample(
    document: Mapping[str, Any], draw: str, again: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the records of the cells to compute, in the order of the evidence, those of cost claims last.

    The sample holds two seeds of every look, at all arms and conditions; every trial of tuning at one seed,
    and the winner and the runner-up at all seeds; every instance of exact claims with its negative control;
    and all cost claims.

    Args:
        draw: text that decides the seeds. `certify` passes slug and present commit, so that a repeated
            certification computes the same cells, and one of later code computes others.
        again: keys of cells that once differed, which stay in the sample.
    """
    cells = document["cells"]
    seeds = {
        seed
        for number, look in enumerate(document["looks"], start=1)
        for seed in _drawn(look["seeds"], SEEDS_PER_LOOK, f"{draw} look {number}")
    }
    trials = _drawn({r["seed"] for r in cells if r["kind"] == "tune"}, 1, f"{draw} tuning")
    finalists = {
        (tuning["arm"], _text(tuning["condition"]), _text(trial["hyper"]))
        for tuning in document["tuning"]
        for trial in _finalists(tuning["trials"])
    }
    once_differed = {_identity(key) for key in again}

    def is_drawn(record: Mapping[str, Any]) -> bool:
        if record["kind"] == "report":
            drawn = record["seed"] in seeds
        elif record["kind"] == "tune":
            trial = (record["arm"], _text(record["condition"]), _text(record["hyper"]))
            drawn = record["seed"] in trials or trial in finalists
        else:
            drawn = True
        return drawn or _identity(record) in once_differed

    return sorted(filter(is_drawn, cells), key=lambda record: record["kind"] == "cost")


def differed(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the keys of the cells that differed in any earlier certification."""
    return [key for event in history if event["event"] == "differed" for key in event.get("differing", ())]


def _drawn(seeds: Iterable[int], n: int, draw: str) -> list[int]:
    return sorted(seeds, key=lambda seed: hashlib.sha256(f"{draw} {seed}".encode()).digest())[:n]


def _finalists(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the winner and the runner-up, which is the trial whose mean is nearest to the winner's."""
    winners = [trial for trial in trials if trial["winner"]]
    others = [trial for trial in trials if not trial["winner"]]
    return [*winners, *sorted(others, key=lambda t: abs(t["mean"] - winners[0]["mean"]))[:1]]


def _identity(record: Mapping[str, Any]) -> str:
    return _text({name: record[name] for name in _KEY})


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


# -- comparing -----------------------------------------------------------------------------------------------


def compare(published: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return where two responses of `recompute` to one request differ in any bit, or hold a failed cell."""
    found: list[Difference] = []
    for old, new in zip(published, present, strict=True):
        key = {name: old[name] for name in _KEY}
        if "failed" in (old["status"], new["status"]):
            bad = old["status"] == "failed"
            found.append(Difference(key, "status", _status(old), _status(new), failed=bad))
        elif old["status"] != new["status"]:
            found.append(Difference(key, "status", old["status"], new["status"]))
        elif old["sha256"] != new["sha256"]:
            names = sorted({*old["numbers"], *new["numbers"]})
            pairs = [(name, old["numbers"].get(name), new["numbers"].get(name)) for name in names]
            differing = [Difference(key, name, a, b) for name, a, b in pairs if a != b]
            hashes = (old["sha256"][:12], new["sha256"][:12])
            found += differing or [Difference(key, "series or arrays", *hashes)]
    return found


def _is_equal(published: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    """Return whether a cell was computed, and equals the published one in every bit."""
    keys = ("status", "sha256")
    return present["status"] != "failed" and all(published[key] == present[key] for key in keys)


def _status(record: Mapping[str, Any]) -> str:
    """Return the status, with the line of the traceback that says what happened."""
    lines = record["error"].partition("\n--- ")[0].strip().splitlines()
    return f"{record['status']} ({lines[-1]})" if lines else str(record["status"])


def _cost_differences(
    study: Study, document: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    """Return the cost claims whose rounds, measured now, give another outcome than the published ones."""
    before = _cost_outcomes(study, [r for r in document["cells"] if r["kind"] == "cost"])
    now = _cost_outcomes(study, measured)
    return [
        Difference({name: record[name] for name in _KEY}, "outcome", before[record["arm"]], outcome)
        for record in measured
        if (outcome := now[record["arm"]]) != before[record["arm"]]
    ]


def _cost_outcomes(study: Study, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    rounds = {r["arm"]: CellResult(r["status"], series=r["series"]) for r in records}
    judged = judge_claims(measure(study, Evidence(cost=rounds)), ()) if rounds else []
    return {j.claim.name: j.statistical.outcome for j in judged if j.claim.kind == "cost"}


# -- running -------------------------------------------------------------------------------------------------


def _request(
    request: Mapping[str, Any], ref: StudyRef, root: Path, tree: Path, cells: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the request for one tree; a user's own study has the same path in both."""
    where = {}
    if ref.kind == "file":
        where["file"] = str(tree / Path(ref.name).resolve().relative_to(root))
    return {**request, **where, "cells": [{name: cell[name] for name in _KEY} for cell in cells]}


def _recompute(
    tree: Path, request: Mapping[str, Any], scratch: Path, name: str, progress: Progress
) -> dict[str, Any]:
    """Return the response of a tree's own code to a request."""
    request_file, response_file = scratch / f"{name}-request.json", scratch / f"{name}-response.json"
    request_file.write_text(json.dumps(request))
    source = tree / "src"
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    # what a killed process leaves behind is removed with our folder
    variables = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "trueup.lab.recompute", str(request_file), str(response_file)]
    seen = 0
    with open(scratch / f"{name}-errors.txt", "w+") as errors:
        process = subprocess.Popen(
            command, cwd=scratch, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("cell "):
                    seen += 1
                    progress.done(1)
            process.wait()
        finally:
            _end(process)
        errors.seek(0)
        message = errors.read().strip()
    if process.returncode or not response_file.exists():
        code = f"exit code {process.returncode}"
        raise CertifyError(f"the {name} code could not be run: {message[-2000:] or code}")
    response: dict[str, Any] = json.loads(response_file.read_text(encoding="utf-8"))
    if Path(response["package"]).resolve() != (source / "trueup").resolve():
        raise CertifyError(
            f"the {name} code should have run from {source}, but {response['package']} ran: remove what "
            "comes before PYTHONPATH on Python's path"
        )
    progress.done(len(request["cells"]) - seen)  # cells whose stage failed print no line
    return response


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt a process as Ctrl-C does, so that it can stop its workers; kill it if it does not exit."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Repository:
    """The git checkout from which the present code runs.

    Args:
        root: its folder; by default the one that contains this package.

    Raises:
        CertifyError: if it is not the top of a git checkout.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or Path(__file__).parents[3]).resolve()
        try:
            top = Path(self._git("rev-parse", "--show-toplevel")).resolve()
        except CertifyError as error:
            raise CertifyError(f"{error}. {_CLONE}") from None
        if top != self.root:
            raise CertifyError(f"{self.root} is not the top of a git checkout. {_CLONE}")

    def require_clean(self) -> str:
        """Return the present commit, provided that the code that runs is the code it holds.

        Raises:
            CertifyError: if a file under `src` is not committed, or git is set to ignore its changes. The
                ledger and the evidence may differ: publishing and certifying write them.
        """
        ours = [
            *("src", ":(exclude)src/trueup/ledger.json", ":(exclude)src/trueup/evidence"),
            ":(exclude,glob)src/**/__pycache__/**",
        ]
        changed = self._git("status", "--porcelain", "--untracked-files=all", "--", *ours).splitlines()
        listed = self._git("ls-files", "--others", "--ignored", "--exclude-standard", "--", *ours)
        hidden = [line for line in listed.splitlines() if line.endswith(".py")]
        # a lower-case or S mark: files that git assumes to be unchanged
        marks = self._git("ls-files", "-v", "--", *ours).splitlines()
        hidden += [line[2:] for line in marks if line[0].islower() or line[0] == "S"]
        if changed or hidden:
            files = ", ".join([*(line[3:] for line in changed), *hidden][:3])
            raise CertifyError(f"not committed: {files}; commit first, since a certification names a commit")
        return self._git("rev-parse", "HEAD")

    def require(self, commit: str) -> None:
        """Check that the repository has a commit, and that its code can answer a request.

        Raises:
            CertifyError: if not.
        """
        if self._git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", check=False) == "":
            is_shallow = self._git("rev-parse", "--is-shallow-repository") == "true"
            remedy = "git fetch --unshallow" if is_shallow else "git fetch --all"
            clone = "shallow clone" if is_shallow else "repository"
            raise CertifyError(f"the published commit {commit[:12]} is not in this {clone}: run `{remedy}`")
        module = f"{commit}:src/trueup/lab/recompute.py"
        if self._git("rev-parse", "--verify", "--quiet", module, check=False) == "":
            raise CertifyError(
                f"the published commit {commit[:12]} is older than certification (it has no "
                "trueup.lab.recompute): publish the verdict again"
            )

    @contextlib.contextmanager
    def worktree(self, commit: str) -> Iterator[Path]:
        """Check out a commit in a temporary folder, which is removed at the end with everything in it."""
        self._clear_leftovers()
        scratch = Path(tempfile.mkdtemp(prefix=f"trueup-certify-{os.getpid()}-")).resolve()
        try:
            tree = scratch / "tree"
            # the repository's hooks must not run here
            hooks = f"core.hooksPath={os.devnull}"
            self._git("-c", hooks, "worktree", "add", "--quiet", "--detach", str(tree), commit)
            yield tree
        finally:
            self._remove(scratch)

    def _clear_leftovers(self) -> None:
        """Remove the worktrees of certifications that were killed."""
        for line in self._git("worktree", "list", "--porcelain").splitlines():
            left = re.fullmatch(r"worktree (.*[/\\]trueup-certify-(\d+)-\w+)[/\\]tree", line)
            if left and not is_alive(int(left[2])):
                self._remove(Path(left[1]))

    def _remove(self, scratch: Path) -> None:
        """Remove a certification's folder and worktree; `prune` would also remove those of the user."""
        shutil.rmtree(scratch, ignore_errors=True)
        # forced twice, since a worktree is locked while it is created
        self._git("worktree", "remove", "--force", "--force", str(scratch / "tree"), check=False)

    def _git(self, *arguments: str, check: bool = True) -> str:
        """Return what git prints; without `check`, nothing where it fails."""
        try:
            done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True)
        except OSError as error:
            raise CertifyError(f"certifying needs git, which cannot be run: {error.strerror}") from error
        if done.returncode and check:
            raise CertifyError(f"git in {self.root}: {done.stderr.strip()}")
        return "" if done.returncode else done.stdout.rstrip()
