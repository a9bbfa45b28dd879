"""The declarations of which a study consists, checked when they are made.

A study file declares one `Study`. Everything here is plain, frozen data; `_runner` runs it and `_verdict`
judges it. Duplicate names, a training claim without a minimum effect, arms tuned with unequal effort and
similar mistakes are refused here, before any time is spent.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from trueup.lab._contrasts import Contrast
from trueup.lab._errors import StudyError
from trueup.lab._scoring import Metric, plain
from trueup.lab._verdict import fewest_seeds

Value: TypeAlias = int | float | str | bool
Settings: TypeAlias = Mapping[str, Any]
ScaleName: TypeAlias = Literal["smoke", "desk", "paper"]
Role: TypeAlias = Literal["baseline", "method", "ablation", "control"]
Origin: TypeAlias = Literal["paper", "interpretation", "post_hoc"]

SCALES: tuple[ScaleName, ...] = ("smoke", "desk", "paper")
MAX_PRIMARY_CLAIMS = 3
_SLUG = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


@dataclass(frozen=True)
class Axis:
    """One tuned hyperparameter and the grid of values every arm tries.

    Args:
        name: key under which the cell function finds the value, `run["lr"]`.
        values: the grid; numbers in increasing order if the axis has a direction.
        low, high: natural limits of the value (momentum below 1, say); an end of the grid at a limit is not
            an edge.
    """

    name: str
    values: tuple[Value, ...]
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(plain(value) for value in self.values))
        if not self.values:
            raise StudyError(f"axis {self.name!r} has no values")
        if len(set(self.values)) != len(self.values):
            raise StudyError(f"axis {self.name!r} lists a value twice: {self.values}")
        if self.ordered and list(self.values) != sorted(self.values):
            raise StudyError(f"axis {self.name!r}: list the numbers in increasing order, got {self.values}")

    @property
    def ordered(self) -> bool:
        """Whether the grid can be widened: numbers have a direction, names and single values have none."""
        return len(self.values) > 1 and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values
        )


@dataclass(frozen=True)
class Condition:
    """A declared factor crossed with every arm: batch size, corruption, a learning-rate sweep.

    Args:
        name: key under which the cell function finds the value, `run["batch_size"]`.
        values: every arm runs each of them.
        tuned_at: arms are tuned only at this value, and use the best setting from there at all others, which
            measures sensitivity; by default arms are tuned at each value.
    """

    name: str
    values: tuple[Value, ...]
    tuned_at: Value | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(plain(value) for value in self.values))
        object.__setattr__(self, "tuned_at", plain(self.tuned_at))
        if not self.values or len(set(self.values)) != len(self.values):
            raise StudyError(f"condition {self.name!r} needs values, each once; got {self.values}")
        if self.tuned_at is not None and self.tuned_at not in self.values:
            raise StudyError(
                f"condition {self.name!r} is tuned at one of its values {self.values}; got {self.tuned_at!r}"
            )


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares.

    Args:
        name: short name used in claims, tables and results files.
        role: `baseline`, `method`, `ablation` or `control` (the simplest thing that could explain the gain
            without the paper's idea).
        settings: passed to the cell function; they override those of the scale.
        tune: this arm's own grid, if it has hyperparameters of its own. The grid must hold as many trials as
            the study's, and no value of a shared axis that the others do not try.
        label: one line for readers.
    """

    name: str
    role: Role
    settings: Settings = field(default_factory=dict)
    tune: tuple[Axis, ...] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.tune is not None:
            object.__setattr__(self, "tune", tuple(self.tune))
        if self.role not in ("baseline", "method", "ablation", "control"):
            raise StudyError(
                f"arm {self.name!r}: role must be baseline, method, ablation or control; got {self.role!r}"
            )
        if not re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", self.name):
            raise StudyError(
                f"arm name {self.name!r}: use letters, digits, spaces and the signs _ . + - only"
            )


@dataclass(frozen=True)
class Stage:
    """A cached artefact that the arms of a seed share: a teacher, a pretrained net, logits.

    Args:
        name: key under which cells and later stages find it, `run.inputs["teacher"]`.
        build: `build(run)` returns a flat dictionary of arrays or tensors (`model.state_dict()`).
        inputs: names of earlier stages that it reads.
        conditions: names of the conditions that it depends on; it is built once for all values of the others.
    """

    name: str
    build: Callable[[Any], Mapping[str, Any]]
    inputs: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "conditions", tuple(self.conditions))


@dataclass(frozen=True)
class Claim:
    """A statistical claim: one contrast per seed, judged by the verdict rule.

    Args:
        name: short name, by which `requires` refers to it.
        statement: the claim as a sentence.
        contrast: one number per seed, positive in the claimed direction (see `difference`, `log_ratio`, ...).
        min_effect: smallest effect worth having, > 0, in the contrast's own unit (for a log ratio, the
            minimum gain: 0.1 is 10 %).
        why: the reason for this minimum effect.
        origin: `paper`, `interpretation` (our reading of what must follow) or `post_hoc` (added after seeing
            data, and never primary).
        primary: True if the claim counts for the paper's verdict.
        requires: earlier claims without which the question does not arise.
        controls: control arms that a reproduced gain must also beat; by default all control arms.
    """

    name: str
    statement: str
    contrast: Contrast
    min_effect: float
    why: str
    origin: Origin = "paper"
    primary: bool = False
    requires: tuple[str, ...] = ()
    controls: tuple[str, ...] | None = None

    kind = "statistical"

    def __post_init__(self) -> None:
        object.__setattr__(self, "requires", tuple(self.requires))
        _check_claim(self)
        if not (self.min_effect > 0 and math.isfinite(self.min_effect)):
            raise StudyError(
                f"claim {self.name!r}: min_effect must be > 0, got {self.min_effect}; "
                "for accuracy at least two test items, 2 / n_test"
            )
        if not self.why.strip():
            raise StudyError(f"claim {self.name!r}: say why this min_effect")


@dataclass(frozen=True)
class ExactClaim:
    """A claim that holds or does not: no seeds, no interval; one failing instance contradicts it.

    Args:
        name, statement, origin, primary, requires: as for `Claim`.
        deviation: `deviation(**instance)` returns how far the instance is from the claim, >= 0.
        instances: name -> arguments.
        tolerance: the claim holds where `deviation <= tolerance` (NaN never does).
        negative_control: a function of the same arguments, for something on which the claim must *fail*. If
            it does not, the verdict is `invalid`, since a claim that nothing breaks shows nothing.
        control_label: a description of the negative control.
    """

    name: str
    statement: str
    deviation: Callable[..., float]
    instances: Mapping[str, Settings]
    tolerance: float
    negative_control: Callable[..., float]
    control_label: str
    origin: Origin = "paper"
    primary: bool = False
    requires: tuple[str, ...] = ()

    kind = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "requires", tuple(self.requires))
        _check_claim(self)
        if not self.instances:
            raise StudyError(f"exact claim {self.name!r} lists no instances")


@dataclass(frozen=True)
class CostClaim:
    """A claim about time: interleaved rounds, run alone with no other worker.

    `prepare()` returns `(ours, peer)`, two callables; the claim is that ours takes at most `at_most` times as
    long. Exact counts (bytes, operations) are an `ExactClaim`.
    """

    name: str
    statement: str
    prepare: Callable[[], tuple[Callable[[], object], Callable[[], object]]]
    at_most: float
    rounds: int = 21
    origin: Origin = "paper"
    primary: bool = False
    requires: tuple[str, ...] = ()

    kind = "cost"

    def __post_init__(self) -> None:
        object.__setattr__(self, "requires", tuple(self.requires))
        _check_claim(self)
        if self.at_most <= 0 or self.rounds < 8:
            raise StudyError(f"cost claim {self.name!r}: at_most must be > 0 and rounds >= 8")


AnyClaim: TypeAlias = Claim | ExactClaim | CostClaim


def _check_claim(claim: AnyClaim) -> None:
    if not _SLUG.fullmatch(claim.name):
        raise StudyError(f"claim name {claim.name!r}: use lower-case words joined by hyphens")
    if claim.origin not in ("paper", "interpretation", "post_hoc"):
        raise StudyError(
            f"claim {claim.name!r}: origin must be paper, interpretation or post_hoc; got {claim.origin!r}"
        )
    if claim.primary and claim.origin == "post_hoc":
        raise StudyError(f"claim {claim.name!r}: a post-hoc claim is never primary")


@dataclass(frozen=True)
class Figure:
    """A figure of the report, drawn from report cells.

    Args:
        title, caption: text for readers.
        y: a metric or a series that the cells return.
        x: `None` draws one column of dots per arm; the name of a condition draws `y` over its values; the
            name of a series draws `y` against it; `"step"` draws `y` against its index.
        arms: the arms to draw; by default all.
        log_x, log_y: True for logarithmic axes.
    """

    title: str
    y: str
    x: str | None = None
    caption: str = ""
    arms: tuple[str, ...] | None = None
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and the claims to judge; checked when it is declared.

    Args:
        slug: the paper's slug, or any lower-case name for your own study.
        question: one sentence.
        metrics: what cells return; the first is the headline, and its validation score chooses
            hyperparameters.
        arms: at least two if the study trains anything; none if all claims are exact.
        cell: `cell(run)` returns a dictionary of numbers, series and small arrays (256 KB in all).
        claims: the claims to judge; at most three primary.
        scales: settings at each scale, read as `run["epochs"]`.
        conditions: crossed with every arm.
        tune: the grid shared by all arms, tuned for each (arm, condition), or at the condition's `tuned_at`.
        stages: cached artefacts, in order.
        figures: the figures of the report.
        data: names of the data sets used (their hashes enter the fingerprint), or scale -> names.
        tested_on: the set-up of this study ("digits with 20k parameters").
        paper_setup: the set-up of the paper ("ImageNet, ResNet-50").
        protocol: raised by hand whenever the protocol changes, which draws fresh seeds.
        protocols: for every earlier protocol number, one line on why it was changed.
        looks: total number of seeds and one-sided alpha of each look.
        tuning_seeds: number of seeds on which every trial is scored, at least 3.
        timeout: seconds that one cell or stage may take, after which it is stopped and counts as failed (its
            claims are then incomplete); a worker's first cell also loads the study in that time. `None` is no
            limit. The default of half an hour applies at smoke and desk scale; at paper scale, where a cell
            may take days, only another number is a limit.
    """

    slug: str
    question: str
    metrics: tuple[Metric, ...] = ()
    arms: tuple[Arm, ...] = ()
    cell: Callable[[Any], Mapping[str, Any]] | None = None
    claims: tuple[AnyClaim, ...] = ()
    scales: Mapping[str, Settings] = field(default_factory=lambda: {"smoke": {}, "desk": {}})
    conditions: tuple[Condition, ...] = ()
    tune: tuple[Axis, ...] = ()
    stages: tuple[Stage, ...] = ()
    figures: tuple[Figure, ...] = ()
    data: Sequence[str] | Mapping[str, Sequence[str]] = ()
    tested_on: str = ""
    paper_setup: str = ""
    protocol: int = 1
    protocols: Mapping[int, str] = field(default_factory=dict)
    looks: tuple[tuple[int, float], ...] = ((10, 0.005), (20, 0.02))
    tuning_seeds: int = 3
    timeout: float | None = 1800.0

    def __post_init__(self) -> None:
        for name in ("metrics", "arms", "claims", "conditions", "tune", "stages", "figures", "looks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_names()
        self._check_tuning()
        self._check_claims()
        missing = [n for n in range(1, self.protocol) if n not in self.protocols]
        if missing:
            raise StudyError(
                f"protocol {self.protocol}: say in `protocols` why protocol {missing[0]} was changed"
            )

    # -- lookups ---------------------------------------------------------------------------------------------
    def metric(self, name: str) -> Metric:
        return _by_name(self.metrics, name, "metric")

    def arm(self, name: str) -> Arm:
        return _by_name(self.arms, name, "arm")

    def claim(self, name: str) -> AnyClaim:
        return _by_name(self.claims, name, "claim")

    @property
    def statistical(self) -> tuple[Claim, ...]:
        return tuple(c for c in self.claims if isinstance(c, Claim))

    def data_at(self, scale: str) -> tuple[str, ...]:
        """Return the names of the data sets used at one scale."""
        return tuple(self.data.get(scale, ()) if isinstance(self.data, Mapping) else self.data)

    def grid(self, arm: Arm, axes: Sequence[Axis] | None = None) -> list[dict[str, Value]]:
        """Return every trial of an arm, in the order listed; one empty trial if nothing is tuned."""
        axes = self.axes(arm) if axes is None else axes
        return [
            dict(zip([a.name for a in axes], vs, strict=True))
            for vs in itertools.product(*(a.values for a in axes))
        ]

    def axes(self, arm: Arm) -> tuple[Axis, ...]:
        return self.tune if arm.tune is None else arm.tune

    def condition_grid(self) -> list[dict[str, Value]]:
        """Return every combination of the conditions' values; one empty combination if there are none."""
        return [
            dict(zip([c.name for c in self.conditions], vs, strict=True))
            for vs in itertools.product(*(c.values for c in self.conditions))
        ]

    def tuning_condition(self, condition: Settings) -> dict[str, Value]:
        """Return the combination at which arms are tuned for this one: `tuned_at` replaces the value."""
        fixed = {c.name: c.tuned_at for c in self.conditions if c.tuned_at is not None}
        return {**condition, **fixed}

    # -- checks ----------------------------------------------------------------------------------------------
    def _check_names(self) -> None:
        if not _SLUG.fullmatch(self.slug):
            raise StudyError(f"slug {self.slug!r}: use lower-case words joined by hyphens")
        declared: tuple[tuple[str, Sequence[_Named]], ...] = (
            ("metric", self.metrics),
            ("arm", self.arms),
            ("claim", self.claims),
            ("condition", self.conditions),
            ("stage", self.stages),
        )
        for what, items in declared:
            names = [item.name for item in items]
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise StudyError(f"{self.slug}: {what} {twice[0]!r} is declared twice")
        unknown = [s for s in self.scales if s not in SCALES]
        if unknown:
            raise StudyError(f"{self.slug}: unknown scale {unknown[0]!r}; scales are {', '.join(SCALES)}")
        if self.arms and (self.cell is None or not self.metrics):
            raise StudyError(f"{self.slug}: arms need a cell function and at least one metric")
        if len(self.arms) == 1:
            raise StudyError(f"{self.slug}: one arm has nothing to compare with; add a baseline")
        if not self.arms and self.statistical:
            raise StudyError(
                f"{self.slug}: claim {self.statistical[0].name!r} is statistical but there are no arms"
            )
        for arm in self.arms:
            names = [
                *(axis.name for axis in self.axes(arm)),
                *(c.name for c in self.conditions),
                *arm.settings,
            ]
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise StudyError(
                    f"{self.slug}: arm {arm.name!r} has {twice[0]!r} twice among its axes, its settings and "
                    "the study's conditions; one would silently hide the other: rename one"
                )
        known: list[str] = []
        for stage in self.stages:
            for name in stage.inputs:
                if name not in known:
                    raise StudyError(f"stage {stage.name!r} reads {name!r}, which is not an earlier stage")
            for name in stage.conditions:
                _by_name(self.conditions, name, "condition")
            known.append(stage.name)

    def _check_tuning(self) -> None:
        if self.tune and self.tuning_seeds < 3:
            raise StudyError(f"{self.slug}: tuning needs at least 3 seeds, got {self.tuning_seeds}")
        trials = len(self.grid(Arm("shared", "baseline"), self.tune))
        shared = {axis.name: set(axis.values) for axis in self.tune}
        for arm in self.arms:
            if (n := len(self.grid(arm))) != trials:
                raise StudyError(
                    f"{self.slug}: arm {arm.name!r} is tuned with {n} trials, the study's grid has {trials}: "
                    "every arm gets the same number"
                )
            for axis in arm.tune or ():
                extra = set(axis.values) - shared.get(axis.name, set(axis.values))
                if extra:
                    raise StudyError(
                        f"{self.slug}: arm {arm.name!r} tries {axis.name}={extra.pop()!r}, "
                        "which the others do not"
                    )
        for n, alpha in self.looks:
            if n < 1 or not 0 < alpha < 0.5:
                raise StudyError(f"{self.slug}: a look is (seeds >= 1, alpha in (0, 0.5)); got {(n, alpha)}")
            if n < (fewest := fewest_seeds(alpha)):
                raise StudyError(
                    f"{self.slug}: a look at {n} seeds cannot decide anything at alpha = {alpha}: give it at "
                    f"least {fewest}"
                )
        if [n for n, _ in self.looks] != sorted({n for n, _ in self.looks}) or not self.looks:
            raise StudyError(f"{self.slug}: looks need increasing numbers of seeds; got {self.looks}")

    def _check_claims(self) -> None:
        primary = [c for c in self.claims if c.primary]
        if len(primary) > MAX_PRIMARY_CLAIMS:
            raise StudyError(f"{self.slug}: {len(primary)} primary claims; at most {MAX_PRIMARY_CLAIMS}")
        if self.claims and not primary:
            raise StudyError(
                f"{self.slug}: mark at least one claim primary: the headline over all conditions"
            )
        seen: list[str] = []
        for claim in self.claims:
            for name in claim.requires:
                if name not in seen:
                    raise StudyError(f"claim {claim.name!r} requires {name!r}, which is not an earlier claim")
            seen.append(claim.name)
            if isinstance(claim, Claim):
                for name in claim.contrast.arms:
                    self.arm(name)
                for name in claim.contrast.metrics:
                    self.metric(name)
                for condition in claim.contrast.conditions:
                    _by_name(self.conditions, condition, "condition")
                pinned = [
                    pair for each in (claim.contrast, *claim.contrast.links) for pair in each.at.items()
                ]
                for condition, value in pinned:
                    values = _by_name(self.conditions, condition, "condition").values
                    if value not in values:
                        raise StudyError(
                            f"claim {claim.name!r} is about {condition}={value!r}, which no cell runs; "
                            f"condition {condition!r} has the values {values}"
                        )
                for name in claim.controls or ():
                    if self.arm(name).role != "control":
                        raise StudyError(f"claim {claim.name!r}: arm {name!r} is not a control")
                    if name in claim.contrast.methods:
                        raise StudyError(f"claim {claim.name!r}: arm {name!r} cannot be its own control")
        if self.statistical and not any(arm.role == "control" for arm in self.arms):
            raise StudyError(
                f"{self.slug}: a training claim needs a control arm: "
                "the simplest thing that could explain the gain without the idea"
            )

    def controls(self, claim: Claim) -> tuple[str, ...]:
        """Return the control arms that a reproduced gain of this claim must also beat."""
        if claim.controls is not None:
            return claim.controls
        claimed = claim.contrast.methods
        return tuple(arm.name for arm in self.arms if arm.role == "control" and arm.name not in claimed)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def _by_name(items: Sequence[_N], name: str, what: str) -> _N:
    for item in items:
        if item.name == name:
            return item
    known = ", ".join(repr(item.name) for item in items) or "none"
    raise StudyError(f"unknown {what} {name!r}; declared: {known}")
