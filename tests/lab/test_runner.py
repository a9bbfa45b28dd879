import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import InlineEngine, write_toy

from trueup.lab import _planning as planning
from trueup.lab import _runner as runner
from trueup.lab._cell import CellResult
from trueup.lab._engine import StudyRef
from trueup.lab._runner import Options
from trueup.lab._seeds import published_seeds
from trueup.lab._spec import StudyError
from trueup.lab._store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def toy(tmp_path, **effects) -> StudyRef:
    # a separate name for each file: a study is loaded once per process
    name = f"toy_{abs(hash(tuple(sorted(effects.items()))))}.py"
    return StudyRef("file", write_toy(tmp_path, name=name, **effects))


def claim(outcome, name):
    return next(c for c in outcome["claims"] if c["name"] == name)


def test_a_clear_gain_is_reproduced_at_the_first_look_and_survives_its_control(tmp_path, store):
    outcome = runner.run(toy(tmp_path), store, InlineEngine())
    better = claim(outcome, "better")
    assert (better["outcome"], better["look"], better["n"]) == ("reproduced", 1, 10)
    assert better["survives"] == outcome["verdict"]["control"] == "survives"
    assert outcome["verdict"]["outcome"] == "reproduced"
    assert better["mean"] == pytest.approx(1.0, abs=0.3)
    assert claim(outcome, "sum")["outcome"] == "reproduced"
    assert outcome["published"]
    assert [d["seed"] for d in better["d"]] == published_seeds("toy", 1, 1, 10)
    json.dumps(outcome, allow_nan=False)


def test_conditions_are_brought_together_inside_the_seed(tmp_path, store):
    outcome = runner.run(toy(tmp_path), store, InlineEngine())
    cells = {(c["arm"], c["condition"]["size"], c["seed"]): c["numbers"]["score"] for c in outcome["cells"]}
    for record in claim(outcome, "better")["d"]:
        means = [np.mean([cells[arm, size, record["seed"]] for size in (1, 2)]) for arm in ("ours", "plain")]
        assert record["d"] == pytest.approx(means[0] - means[1])


def test_a_gain_that_the_control_shows_too_is_explained(tmp_path, store):
    outcome = runner.run(toy(tmp_path, control=1.0, noise=0.02), store, InlineEngine())
    assert claim(outcome, "better")["survives"] == "explained"


def test_an_undecided_primary_claim_gets_the_second_look_and_no_third(tmp_path, store):
    outcome = runner.run(toy(tmp_path, gain=0.1, noise=1.0), store, InlineEngine())
    better = claim(outcome, "better")
    assert (better["outcome"], better["look"], better["n"]) == ("inconclusive", 2, 20)
    assert [look["alpha"] for look in outcome["looks"]] == [0.005, 0.02]
    assert [d["seed"] for d in better["d"]][10:] == published_seeds("toy", 1, 2, 10)


def test_a_claim_without_its_problem_is_inconclusive(tmp_path, store):
    outcome = runner.run(toy(tmp_path, gain=-1.0), store, InlineEngine())
    assert claim(outcome, "better")["outcome"] == "contradicted"
    same = claim(outcome, "same")
    assert same["outcome"] == "inconclusive"
    assert "did not arise" in same["note"]
    assert outcome["verdict"]["outcome"] == "contradicted"
    assert outcome["verdict"]["control"] is None


def test_a_second_run_computes_nothing_and_says_the_same(tmp_path, store):
    ref = toy(tmp_path)
    first = runner.run(ref, store, InlineEngine())
    engine = InlineEngine()
    second = runner.run(ref, store, engine)
    assert engine.done == []
    assert second["claims"] == first["claims"]
    assert runner.collect(ref, store)["claims"] == first["claims"]
    assert second["cost"]["reused"] == second["cost"]["cells"] == first["cost"]["cells"]


def test_fresh_runs_everything_again(tmp_path, store):
    ref = toy(tmp_path)
    first, second = InlineEngine(), InlineEngine()
    runner.run(ref, store, first)
    runner.run(ref, store, second, Options(fresh=True))
    assert sorted(map(str, second.done)) == sorted(map(str, first.done))


@pytest.mark.parametrize("stop_after", [0, 1, 7, 40, 80])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, store, stop_after):
    ref = toy(tmp_path)
    whole = runner.run(ref, Store(tmp_path / "other.sqlite"), InlineEngine())
    with pytest.raises(KeyboardInterrupt):
        runner.run(ref, store, InlineEngine(stop_after))
    rest = InlineEngine()
    resumed = runner.run(ref, store, rest)
    assert resumed["claims"] == whole["claims"]
    assert resumed["cost"]["reused"] == stop_after
    assert len(rest.done) == whole["cost"]["cells"] - stop_after


def test_a_stage_is_built_once_per_seed_and_separately_for_trials(tmp_path, store):
    engine = InlineEngine()
    runner.run(toy(tmp_path), store, engine)
    stages = [c for c in engine.done if c.kind == "stage"]
    assert len(stages) == len(set(stages)) == 3 + 10
    assert {c.instance for c in stages if c.seed < 100} == {"tune"}


def test_a_winner_at_the_edge_widens_the_grid_for_every_arm_once(tmp_path, store):
    outcome = runner.run(toy(tmp_path, best=10.0), store, InlineEngine())
    for tuning in outcome["tuning"]:
        assert [t["hyper"]["lr"] for t in tuning["trials"]] == [0.01, 0.1, 1.0, 10.0]
        assert tuning["widened"]
        assert tuning["edge"] == ["lr"]
    better = claim(outcome, "better")
    assert better["outcome"] == "inconclusive"
    assert "edge" in better["note"]


OWN = 'Arm("ours", "method", tune=[Axis("lr", (1.0,)), Axis("beta", (0.1, 0.2, 0.3))])'
BETA = "-abs(run.get('beta', 0.2) - 0.2)"


def with_own_axes(tmp_path, own=OWN, **effects) -> StudyRef:
    """A toy study in which beta = 0.2 is best for the arm that tunes it."""
    path = Path(write_toy(tmp_path, name=f"own_{abs(hash((own, *effects.items())))}.py", **effects))
    text = path.read_text().replace('Arm("ours", "method")', own)
    path.write_text(text.replace("score = base", f"score = {BETA} + base"))
    return StudyRef("file", str(path))


def test_an_arm_with_axes_of_its_own_gets_as_many_new_trials_at_its_best_values(tmp_path, store):
    outcome = runner.run(with_own_axes(tmp_path, best=10.0), store, InlineEngine())
    for tuning in outcome["tuning"]:
        trials = [tuple(t["hyper"].values()) for t in tuning["trials"]]
        if tuning["arm"] == "ours":
            assert trials == [(1.0, 0.1), (1.0, 0.2), (1.0, 0.3), (10.0, 0.2)]
        else:
            assert trials == [(0.01,), (0.1,), (1.0,), (10.0,)]
        assert tuning["widened"]
        assert "lr" in tuning["edge"]


def test_an_arm_that_does_not_try_the_axis_that_grows_gets_no_new_trials(tmp_path, store):
    own = 'Arm("ours", "method", {"lr": 1.0}, tune=[Axis("beta", (0.1, 0.2, 0.3))])'
    outcome = runner.run(with_own_axes(tmp_path, own, best=10.0), store, InlineEngine())
    assert {(t["arm"], len(t["trials"]), t["widened"]) for t in outcome["tuning"]} == {
        ("plain", 4, True),
        ("control", 4, True),
        ("ours", 3, False),
    }


def test_an_axis_grows_only_at_the_condition_that_hits_its_edge(tmp_path, store):
    ref = with_own_axes(tmp_path, best="(10.0 if run['size'] == 2 and run.arm == 'plain' else 1.0)")
    path = Path(ref.name)
    path.write_text(path.read_text().replace("(0.01, 0.1, 1.0)", "(0.1, 1.0, 3.0)"))
    outcome = runner.run(ref, store, InlineEngine())
    assert {(t["condition"]["size"], len(t["trials"])) for t in outcome["tuning"]} == {(1, 3), (2, 4)}


def test_trials_that_a_wider_grid_asks_for_again_are_run_and_counted_once(tmp_path, store):
    ref = toy(tmp_path, best=10.0)
    for options in (Options(), Options(fresh=True)):
        engine = InlineEngine()
        cost = runner.run(ref, store, engine, options)["cost"]
        assert len(engine.done) == len(set(engine.done)) == cost["cells"]
        assert cost["reused"] == 0
    again = runner.collect(ref, store)["cost"]
    assert again["reused"] == again["cells"] == cost["cells"]
    assert again["cpu_seconds"] == pytest.approx(cost["cpu_seconds"])
    assert again["stage_seconds"] == pytest.approx(cost["stage_seconds"])


def test_the_edge_does_not_matter_within_the_grid(tmp_path, store):
    outcome = runner.run(toy(tmp_path), store, InlineEngine())
    assert not any(t["edge"] or t["widened"] for t in outcome["tuning"])
    assert {
        tuple(t["hyper"].items()) for tuning in outcome["tuning"] for t in tuning["trials"] if t["winner"]
    } == {(("lr", 0.1),)}


def test_divergence_is_data(tmp_path, store):
    trouble = 'if run.arm == "plain" and not run.tuning: return {"score": float("nan")}'
    outcome = runner.run(toy(tmp_path, trouble=trouble), store, InlineEngine())
    better = claim(outcome, "better")
    assert better["outcome"] == "reproduced"
    assert better["diverged"] == {"plain": 20}
    assert {c["status"] for c in outcome["cells"] if c["arm"] == "plain"} == {"diverged"}
    assert all(c["numbers"]["score"] == -50.0 for c in outcome["cells"] if c["arm"] == "plain")


@pytest.mark.parametrize(
    "trouble",
    [
        'assert run.tuning or run.arm != "ours", "a bug"',
        'assert not run.tuning, "a bug"',
        'return {"other": 1.0}',
        "return 3",
    ],
)
def test_a_crash_is_not_data(tmp_path, store, trouble):
    outcome = runner.run(toy(tmp_path, trouble=trouble), store, InlineEngine())
    assert claim(outcome, "better")["outcome"] == "incomplete"
    assert outcome["verdict"]["outcome"] == "incomplete"
    assert claim(outcome, "sum")["outcome"] == "reproduced"
    assert outcome["failures"] or any(c["error"] for c in outcome["cells"])


def test_a_failed_stage_takes_its_cells_along(tmp_path, store):
    path = Path(write_toy(tmp_path, name="broken_stage.py"))
    broken = "def build(run):\n    raise RuntimeError('no teacher')"
    path.write_text(path.read_text().replace("def build(run):", broken))
    ref = StudyRef("file", str(path))
    ran = runner.run(ref, store, InlineEngine())
    for outcome in (ran, runner.collect(ref, store)):
        assert outcome["verdict"]["outcome"] == "incomplete"
        assert any("no teacher" in f["error"] for f in outcome["failures"])


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_of_a_stage_that_is_not_there_is_not_there_either(tmp_path, store, fails):
    path = Path(write_toy(tmp_path, name=f"chained_{fails}.py"))
    chained = 'stages=[Stage("data", draw), Stage("teacher", build, inputs=["data"])]'
    draw = f"def draw(run):\n    return {{'x': np.ones(1 // int({not fails}))}}\n\ndef build(run):"
    text = path.read_text().replace('stages=[Stage("teacher", build)]', chained)
    path.write_text(text.replace("def build(run):", draw))
    ref = StudyRef("file", str(path))
    assert runner.collect(ref, store)["verdict"]["outcome"] == "incomplete"
    assert planning.plan(ref, store).cells["look 1"] == 60
    outcome = runner.run(ref, store, InlineEngine())
    assert outcome["verdict"]["outcome"] == ("incomplete" if fails else "reproduced")
    assert runner.collect(ref, store)["verdict"] == outcome["verdict"]


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_artefact_is_built_again(tmp_path, store, damage):
    ref = toy(tmp_path)
    whole = runner.run(ref, store, InlineEngine())
    for fingerprint, cell, _ in list(store.cells("toy")):
        if cell.kind == "report":
            store.forget(fingerprint)
    artefacts = sorted(store.artefacts.iterdir())
    content = artefacts[0].read_bytes()
    middle = content.index(b"NUMPY") + 128  # among the numbers
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    artefacts[0].write_bytes(flipped if damage is None else damage)
    engine = InlineEngine()
    again = runner.run(ref, store, engine)
    assert sum(c.kind == "stage" for c in engine.done) == 1
    assert again["claims"] == whole["claims"]
    for fingerprint, cell, _ in list(store.cells("toy")):
        if cell.kind == "stage":
            assert (store.artefacts / f"{fingerprint}.npz").stat().st_size == len(content)


@pytest.mark.parametrize(
    "bad",
    [
        CellResult("ok", {"score": float("nan")}),
        CellResult("ok", {"score": 1.0, ("a", "b"): 1.0}),
        CellResult("ok", {"score": 1.0}, arrays={"x": np.array([{}])}),
        CellResult("ok", {"score": 1.0}, peak_memory=2**70),
        CellResult("failed", error="a file called \udcff"),
    ],
    ids=["nan", "tuple", "objects", "huge", "surrogate"],
)
def test_a_result_that_cannot_be_stored_fails_its_cell_alone(tmp_path, store, bad):
    class Odd(InlineEngine):
        def map(self, tasks):
            for task, result in super().map(tasks):
                odd = task.cell.kind == "report" and task.cell.arm == "ours" and task.cell.seed == 0
                yield task, bad if odd else result

    outcome = runner.run(toy(tmp_path), store, Odd(), Options(seeds=6))
    failed = [c for c in outcome["cells"] if c["status"] == "failed"]
    assert [(c["arm"], c["seed"]) for c in failed] == [("ours", 0)] * 2
    assert len(outcome["cells"]) == 36
    for cell in failed:
        assert "cannot be stored" in cell["error"] or "called \\udcff" in cell["error"]
        cell["error"].encode()
    assert runner.collect(toy(tmp_path), store, Options(seeds=6))["cells"] == outcome["cells"]


def test_cost_sums_cpu_time_and_plans_go_by_wall_time(tmp_path, store):
    class Timed(InlineEngine):
        def map(self, tasks):
            for task, result in super().map(tasks):
                yield task, replace(result, seconds=10.0, cpu_seconds=2.0)

    ref = toy(tmp_path)
    cost = runner.run(ref, store, Timed(), Options(seeds=3))["cost"]
    assert (cost["cpu_seconds"], cost["stage_seconds"]) == (2.0 * (2 + 54 + 18), 2.0 * (3 + 3))
    left = planning.plan(ref, store)
    assert left.minutes == pytest.approx(10 / 60 * (120 + 20))


def test_cells_of_a_run_on_another_device_are_found_again(tmp_path, store):
    ref = toy(tmp_path)
    ran = runner.run(ref, store, InlineEngine(), Options(device="cuda"))
    assert runner.collect(ref, store)["cost"]["cells"] == 0
    store.note_run("toy", "desk", ref.kind, ref.name, None, "cuda")
    for options in (None, Options(device="cuda:1")):
        assert runner.collect(ref, store, options)["claims"] == ran["claims"]


def test_a_cell_has_half_an_hour_unless_its_study_says_more(tmp_path, store):
    class Limits(InlineEngine):
        def map(self, tasks):
            limits.update(task.timeout for task in tasks)
            return super().map(tasks)

    path = Path(write_toy(tmp_path, name="limits.py"))
    text = path.read_text().replace('"desk": {}', '"desk": {}, "paper": {}')
    for given, scale, expected in (
        ("", "smoke", 1800),
        ("", "desk", 1800),
        ("", "paper", None),
        ("timeout=60,", "paper", 60),
        ("timeout=None,", "desk", None),
    ):
        limits: set[float | None] = set()
        study = tmp_path / f"limits_{len(given)}_{scale}.py"
        study.write_text(text.replace('slug="toy",', f'slug="toy", {given}'))
        runner.run(StudyRef("file", str(study)), store, Limits(), Options(scale, fresh=True))
        assert limits == {expected}


def test_failed_cells_are_tried_again(tmp_path, store):
    flag = tmp_path / "fixed"
    trouble = f'import os; assert os.path.exists({str(flag)!r}) or run.arm != "ours", "not yet"'
    ref = toy(tmp_path, trouble=trouble)
    assert runner.run(ref, store, InlineEngine())["verdict"]["outcome"] == "incomplete"
    flag.touch()
    assert runner.run(ref, store, InlineEngine())["verdict"]["outcome"] == "reproduced"


def test_a_new_protocol_draws_fresh_seeds_and_is_counted(tmp_path, store):
    first = runner.run(toy(tmp_path), store, InlineEngine())
    second = runner.run(toy(tmp_path, protocol=2), store, InlineEngine())
    assert [p["protocol"] for p in second["protocols"]] == [1, 2]
    with Store(tmp_path / "younger.sqlite") as younger:
        tried = runner.collect(toy(tmp_path, protocol=2), younger)["protocols"]
    assert tried == [{"protocol": 1, "changed_because": "changed"}, {"protocol": 2, "changed_because": ""}]
    assert not {c["seed"] for c in first["cells"]} & {c["seed"] for c in second["cells"]}


def test_exploring_uses_development_seeds_and_is_never_published(tmp_path, store):
    outcome = runner.run(toy(tmp_path), store, InlineEngine(), Options(seeds=6))
    assert {c["seed"] for c in outcome["cells"]} == set(range(6))
    assert not outcome["published"]
    assert "never published" in outcome["seeds_note"]


def test_arms_tuned_at_one_value_of_a_condition_keep_the_winner_at_the_others(tmp_path, store):
    effects = {"best": '(0.1 if run["size"] == 1 else 1.0)'}
    anew = runner.run(toy(tmp_path, **effects), store, InlineEngine())
    winners = {(t["arm"], t["condition"]["size"]): t for t in anew["tuning"]}
    assert {c["hyper"]["lr"] for c in anew["cells"] if c["condition"]["size"] == 2} == {1.0}
    assert len(winners) == 6

    path = Path(write_toy(tmp_path, name="tuned_at.py", **effects))
    path.write_text(path.read_text().replace('"size", (1, 2)', '"size", (1, 2), tuned_at=1'))
    engine = InlineEngine()
    with Store(tmp_path / "tuned_at.sqlite") as fresh:
        plan = planning.plan(StudyRef("file", str(path)), fresh)
        outcome = runner.run(StudyRef("file", str(path)), fresh, engine)
    assert plan.cells["tuning"] == 3 * 3 * 3
    tried = [cell for cell in engine.done if cell.kind == "tune"]
    assert len(tried) == len(set(tried)) == 27
    assert {dict(cell.condition)["size"] for cell in tried} == {1}
    assert {c["hyper"]["lr"] for c in outcome["cells"]} == {0.1}
    assert {c["condition"]["size"] for c in outcome["cells"]} == {1, 2}
    assert outcome["conditions"] == [{"name": "size", "values": [1, 2], "tuned_at": 1}]
    assert [(t["arm"], t["condition"]) for t in outcome["tuning"]] == [
        (arm, {"size": 1}) for arm in ("control", "ours", "plain")
    ]


def test_an_edge_where_arms_are_tuned_counts_at_every_value(tmp_path, store):
    path = Path(write_toy(tmp_path, best="1000.0 if run.arm == 'plain' else 0.1"))
    path.write_text(path.read_text().replace('"size", (1, 2)', '"size", (1, 2), tuned_at=2'))
    outcome = runner.run(StudyRef("file", str(path)), store, InlineEngine())
    assert claim(outcome, "better")["outcome"] == "inconclusive"
    assert "edge" in claim(outcome, "better")["note"]


def test_a_replication_draws_fresh_seeds_for_tuning_too(tmp_path, store):
    ref = toy(tmp_path)
    first_engine, engine = InlineEngine(), InlineEngine()
    first = runner.run(ref, store, first_engine)
    again = runner.run(ref, store, engine, Options(replicate=1))
    assert not {c["seed"] for c in first["cells"]} & {c["seed"] for c in again["cells"]}
    for kind, count in (("tune", 54), ("stage", 3 + 10)):
        cells = [c for c in engine.done if c.kind == kind]
        assert len(cells) == count
        assert not set(cells) & set(first_engine.done)
        assert not {c.seed for c in cells} & set(range(100))
    assert not again["published"]
    rest = InlineEngine()
    assert runner.run(ref, store, rest, Options(replicate=1))["tuning"] == again["tuning"]
    assert {c.kind for c in rest.done} == {"exact", "exact-control"}
    assert planning.plan(ref, store, Options(replicate=1)).stored["tuning"] == 54


def test_a_replication_computes_exact_claims_again_and_leaves_the_stored_ones(tmp_path, store):
    ref = toy(tmp_path)
    runner.run(ref, store, InlineEngine())
    before = {f: r for f, c, r in store.cells("toy") if c.kind.startswith("exact")}
    engine = InlineEngine()
    runner.run(ref, store, engine, Options(replicate=1))
    assert sum(c.kind.startswith("exact") for c in engine.done) == len(before) == 2
    assert {f: r for f, c, r in store.cells("toy") if c.kind.startswith("exact")} == before
    again = runner.collect(ref, store, Options(replicate=1))
    assert all(claim["outcome"] != "incomplete" for claim in again["claims"])


def test_smoke_is_one_seed_without_tuning_or_verdict(tmp_path, store):
    engine = InlineEngine()
    outcome = runner.run(toy(tmp_path), store, engine, Options("smoke"))
    assert outcome["claims"] == []
    assert outcome["verdict"]["outcome"] == "none"
    assert [look["alpha"] for look in outcome["looks"]] == [None]
    assert {c.kind for c in engine.done} == {"stage", "report", "exact", "exact-control"}
    assert len([c for c in engine.done if c.kind == "report"]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "desktop"}, "unknown scale 'desktop'; scales are smoke, desk, paper"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seeds": 101}, "there are 100 development seeds; got seeds = 101"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(StudyError, match=re.escape(message)):
        Options(**options)


def test_a_scale_that_the_study_lacks_is_refused(tmp_path, store):
    with pytest.raises(StudyError, match="has no scale 'paper'; it has smoke, desk"):
        runner.run(toy(tmp_path), store, InlineEngine(), Options("paper"))


def test_code_that_changes_during_a_run_stops_it(tmp_path, store):
    path = Path(write_toy(tmp_path, name="edited.py"))

    class Editing(InlineEngine):
        def map(self, tasks):
            for number, done in enumerate(super().map(tasks)):
                if number == 3:
                    path.write_text(path.read_text().replace("GAIN = 1.0", "GAIN = 12.0"))
                yield done

    with pytest.raises(StudyError, match="changed while it ran"):
        runner.run(StudyRef("file", str(path)), store, Editing())
