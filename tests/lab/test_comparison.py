"""Comparing a user's own results: the verdict, the text, and every way in which results can be unfit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from trueup.lab import compare, judge, read_results

NOISE = np.random.default_rng(0).normal(0, 0.004, (3, 10, 2))
ARMS = {"sgd": 0.90, "adamp": 0.93, "smoothing": 0.91}


def results(**means: float) -> pd.DataFrame:
    """Ten seeds, two conditions; each arm's mean as given."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "condition": condition, "acc": mean + NOISE[i, seed, k] + 0.02 * k}
            for i, (arm, mean) in enumerate((ARMS | means).items())
            for seed in range(10)
            for k, condition in enumerate(["clean", "noisy"])
        ]
    )


ASKED: dict[str, Any] = {
    "metric": "acc",
    "baseline": "sgd",
    "method": "adamp",
    "higher": True,
    "min_effect": 0.01,
}


def asked(frame: Any, **changes: Any) -> Any:
    return compare(frame, **ASKED | changes)


# -- the verdict ---------------------------------------------------------------------------------------------


def test_conditions_are_brought_together_inside_the_seed() -> None:
    frame = results()
    means = frame.groupby(["arm", "seed"]).acc.mean()
    result = asked(frame)
    np.testing.assert_allclose(result.judgement.d, means["adamp"] - means["sgd"])
    assert result.judgement == judge(result.judgement.d, 0.01)
    assert result.judgement.n == 10  # not 20: the seed is the unit
    assert result.seeds == tuple(range(10))


@pytest.mark.parametrize(
    ("means", "word", "note"),
    [
        ({}, "better", ""),
        ({"adamp": 0.91}, "cannot tell", ""),
        ({"adamp": 0.905}, "better, by less than you asked", ""),
        (
            {"adamp": 0.90},
            "too small or worse",
            "no gain of the minimum effect or more; a smaller one is not excluded",
        ),
        ({"adamp": 0.88}, "too small or worse", "opposite"),
    ],
)
def test_the_four_words(means: dict[str, float], word: str, note: str) -> None:
    result = asked(results(**means))
    assert (result.word, result.judgement.note) == (word, note)
    assert f": {word}" in result.sentence
    assert note in result.sentence


def test_pairing_is_by_seed_and_not_by_row() -> None:
    frame = results()
    shuffled = frame.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(
        pd.Series(dict(zip(asked(frame).seeds, asked(frame).judgement.d, strict=True))).sort_index(),
        pd.Series(dict(zip(asked(shuffled).seeds, asked(shuffled).judgement.d, strict=True))).sort_index(),
    )


def test_lower_is_better_for_a_loss() -> None:
    assert asked(results(), higher=False).word == "too small or worse"
    assert asked(results(), higher=False, baseline="adamp", method="sgd").word == "better"


def test_a_gain_as_a_ratio() -> None:
    frame = results()
    means = frame.groupby(["arm", "seed"]).acc.mean()
    result = asked(frame, gain="ratio", min_effect=0.02)
    np.testing.assert_allclose(result.judgement.d, np.log(means["adamp"] / means["sgd"]))
    assert result.judgement.margin == pytest.approx(math.log(1.02))
    assert "adamp is 3.41 % higher than sgd in acc (a factor of 1.034;" in result.sentence
    assert "minimum effect a factor of 1.02)" in result.sentence


@pytest.mark.parametrize(("higher", "label"), [(True, "adamp - sgd, acc"), (False, "sgd - adamp, acc")])
def test_the_label_has_the_order_of_the_numbers(higher: bool, label: str) -> None:
    document = asked(results(), higher=higher).to_dict()
    assert document["contrast"] == label
    assert (document["d"][0]["d"] > 0) == higher


def test_alpha_sets_the_interval() -> None:
    assert "99 % interval" in asked(results(), alpha=0.005).sentence


def test_too_few_seeds_say_how_many_a_new_comparison_takes() -> None:
    frame = results().query("seed < 3")
    result = asked(frame)
    assert result.word == "cannot tell"
    assert "cannot tell: too few seeds; about 6 fresh seeds, judged on their own, would" in result.sentence
    assert result.to_dict()["fresh_seeds"] == result.fresh_seeds == 6
    assert asked(results()).fresh_seeds is None


def test_one_seed_says_nothing_of_the_spread_so_the_sentence_only_names_the_fewest() -> None:
    result = asked(results().query("seed < 1"))
    assert result.fresh_seeds is None
    assert result.sentence.endswith(
        "cannot tell: too few seeds; 6 fresh seeds are the fewest that can decide."
    )


def test_the_sentence() -> None:
    frame = {
        "arm": ["a"] * 6 + ["b"] * 6,
        "seed": [*range(6)] * 2,
        "top1": [0.5] * 6 + [0.6, 0.61, 0.59, 0.6, 0.62, 0.58],
    }
    result = compare(frame, metric="top1", baseline="a", method="b", higher=True, min_effect=0.05)
    assert str(result) == (
        "b beats a in top1 by 0.100 (95 % interval 0.085 to 0.115, 6 seeds; minimum effect 0.05): better."
    )


# -- controls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "control"), [(0.91, "survives"), (0.92, "undecided"), (0.93, "explained"), (0.95, "explained")]
)
def test_a_gain_must_survive_its_control(mean: float, control: str) -> None:
    result = asked(results(smoothing=mean), control="smoothing")
    assert result.word == "better"  # the gain over the baseline stands; the control says what it is worth
    assert result.control == control
    assert "smoothing" in result.control_sentence
    assert str(result).splitlines() == [result.sentence, result.control_sentence]


@pytest.mark.parametrize(
    ("mean", "control"), [(0.90, "survives"), (0.9055, "undecided"), (0.91, "explained")]
)
def test_a_gain_below_what_was_asked_need_only_be_one_over_its_control_too(mean: float, control: str) -> None:
    result = asked(results(adamp=0.905, smoothing=mean), control="smoothing")
    assert result.word == "better, by less than you asked"
    assert result.control == control
    assert result.controls["smoothing"].margin == 0


def test_a_control_that_equals_the_method_explains_its_gain() -> None:
    frame = results()
    frame.loc[frame.arm == "smoothing", "acc"] = frame.loc[frame.arm == "adamp", "acc"].to_numpy()
    result = asked(frame, control="smoothing")
    assert (result.word, result.control) == ("better", "explained")


def test_constant_differences_of_results_that_vary_are_judged() -> None:
    accuracy = [0.90, 0.91, 0.89, 0.92, 0.90, 0.91]
    runs = {
        "arm": ["sgd"] * 6 + ["adamp"] * 6,
        "seed": [*range(6)] * 2,
        "acc": [*accuracy, *(a + 0.02 for a in accuracy)],
    }
    assert asked(runs).word == "better"
    assert asked(runs, min_effect=0.03).word == "better, by less than you asked"
    assert asked(runs, min_effect=0.02).word == "cannot tell"
    assert asked(runs).judgement.low is None  # there is no spread to give an interval by


def test_a_control_is_asked_only_of_a_gain() -> None:
    result = asked(results(adamp=0.90), control=["smoothing"])
    assert (result.control, result.control_sentence, dict(result.controls)) == (None, "", {})


# -- what may differ in the frame ----------------------------------------------------------------------------


def test_a_mapping_of_columns_is_as_good_as_a_frame() -> None:
    frame = results()
    assert asked({c: frame[c].tolist() for c in frame}).to_dict() == asked(frame).to_dict()


def test_conditions_may_be_named() -> None:
    frame = results().rename(columns={"condition": "noise"})
    with pytest.raises(
        ValueError, match=r"one row of arm 'sgd', seed 0; got 2; .* pass conditions= \(--condition\): noise"
    ):
        asked(frame)
    named = asked(frame, conditions="noise")
    assert named.judgement == asked(results()).judgement
    frame["width"] = 8
    assert asked(frame, conditions=["noise", "width"]).judgement == named.judgement


def test_other_arms_and_columns_are_not_looked_at() -> None:
    frame = results()
    frame["note"] = "x"
    other = pd.DataFrame({"arm": ["rmsprop"], "seed": [99], "condition": ["clean"], "acc": [math.nan]})
    assert asked(pd.concat([frame, other])).judgement == asked(results()).judgement


def test_seeds_may_be_names() -> None:
    frame = results()
    frame["seed"] = "run-" + frame["seed"].astype(str)
    assert asked(frame).seeds[:2] == ("run-0", "run-1")


def test_seeds_read_as_floats_are_the_same_seeds() -> None:
    frame = results()
    frame["seed"] = frame["seed"].astype(float)
    assert asked(frame).seeds == tuple(range(10))


def test_a_diverged_run_scores_worst_and_is_counted() -> None:
    frame = results()
    frame.loc[0, "acc"] = math.nan
    frame.loc[1, "acc"] = 0.05  # worse than chance
    result = asked(frame, worst=0.1)
    means = results().groupby(["arm", "seed"]).acc.mean()
    assert result.judgement.d[0] == pytest.approx(means["adamp"][0] - 0.1)
    found = result.to_dict()
    assert found["diverged"] == {"sgd": 2}
    assert [c["status"] for c in found["cells"][:3]] == ["diverged", "diverged", "ok"]


def test_to_dict_is_a_claim_in_plain_json() -> None:
    result = asked(results(smoothing=0.92), control="smoothing")
    found = json.loads(json.dumps(result.to_dict()))
    assert (found["outcome"], found["word"], found["sentence"]) == ("reproduced", "better", result.sentence)
    assert found["control_sentence"] == result.control_sentence
    assert found["survives"] == "undecided"
    assert [(c["arm"], c["word"]) for c in found["controls"]] == [("smoothing", "cannot tell")]
    assert {a["name"]: a["role"] for a in found["arms"]} == {
        "sgd": "baseline",
        "adamp": "method",
        "smoothing": "control",
    }
    assert found["conditions"] == [{"name": "condition", "values": ["clean", "noisy"]}]
    assert [x["seed"] for x in found["d"]] == list(range(10))
    assert len(found["cells"]) == 60
    assert found["cells"][0]["numbers"] == {"acc": pytest.approx(results().acc[0])}
    assert found["level"] == 0.95


def test_a_control_that_was_not_asked_keeps_its_role() -> None:
    found = asked(results(adamp=0.90), control="smoothing").to_dict()
    assert [a["role"] for a in found["arms"]] == ["baseline", "method", "control"]


# -- unfit results -------------------------------------------------------------------------------------------


def without(column: str) -> pd.DataFrame:
    return results().drop(columns=column)


def with_value(value: object) -> pd.DataFrame:
    frame = results().astype({"acc": object})
    frame.loc[21, "acc"] = value
    return frame


UNFIT: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: asked(without("arm")),
        "no column 'arm'; columns here: seed, condition, acc; needed: arm, seed and",
    ),
    (lambda: asked(without("seed")), "no column 'seed'"),
    (
        lambda: asked(results(), metric="ac"),
        "no column 'ac'; did you mean 'acc'?; columns here: arm, seed, cond",
    ),
    (lambda: asked(results(), conditions="nois"), "no column 'nois'"),
    (
        lambda: asked(results(), method="adanp"),
        "no rows of arm 'adanp'; did you mean 'adamp'?; arms here: sgd,",
    ),
    (lambda: asked(results(), control="mixup"), "no rows of arm 'mixup'; arms here: sgd, adamp, smoothing"),
    (lambda: asked(results().iloc[:0]), "no rows of arm 'sgd'; arms here: none"),
    (lambda: asked(results(), method="sgd"), "baseline and method are both 'sgd': name two different arms"),
    (lambda: asked(results(), control="sgd"), "control 'sgd' is already named: a control is a third arm"),
    (lambda: asked(results(), control=["smoothing"] * 2), "control 'smoothing' is already named"),
    (
        lambda: asked(results(), min_effect=0.0),
        "min_effect must be > 0, got 0.0: it is the smallest gain",
    ),
    (lambda: asked(results(), min_effect=-0.1), "min_effect must be > 0"),
    (lambda: asked(results(), min_effect=math.nan), "min_effect must be > 0"),
    (
        lambda: asked(results(), alpha=0.5),
        "alpha must lie between 0 and 0.5, got 0.5: 0.025 gives a 95 % int",
    ),
    (lambda: asked(results(), gain="percent"), "gain must be 'difference' or 'ratio', got 'percent'"),
    (
        lambda: asked(pd.concat([results(), results()[:1]])),
        "expected one row of arm 'sgd', seed 0, condition clean; got 2; if one is a repeat, keep the",
    ),
    (
        lambda: asked(results().query("not (arm == 'adamp' and seed in [3, 7])")),
        "arm 'adamp' has no row for seeds 3, 7, which another arm has. Arms are compared seed by seed and no",
    ),
    (
        lambda: asked(results().query("not (arm == 'sgd' and seed == 3)")),
        "arm 'sgd' has no row for seed 3, which another arm has",
    ),
    (
        lambda: asked(results().query("not (arm == 'smoothing' and seed == 3)"), control="smoothing"),
        "arm 'smoothing' has no row for seed 3, which another arm has",
    ),
    (
        lambda: asked(results().query("not (arm == 'sgd' and seed == 4 and condition == 'noisy')")),
        "arm 'sgd' has no row for seed 4, condition noisy: every arm needs every condition at every seed",
    ),
    (
        lambda: asked(with_value(math.nan)),
        "acc is not finite in row 22 (arm adamp, seed 0). A run that diverged is a result, not a gap",
    ),
    (lambda: asked(with_value(math.inf)), "acc is not finite in row 22"),
    (
        lambda: asked(with_value("crashed")),
        "row 22 (arm adamp, seed 0): acc is 'crashed', not a number; write nan",
    ),
    (lambda: asked(with_value(None)), "row 22 (arm adamp, seed 0): acc is missing; write nan"),
    (lambda: asked(with_value(None), worst=0.1), "row 22 (arm adamp, seed 0): acc is missing; write nan"),
    (
        lambda: asked(results().assign(condition=[math.nan, *[1.0] * 59])),
        "row 1 (arm sgd, seed 0): condition is missing",
    ),
    (
        lambda: asked(results().assign(more=0).rename(columns={"more": "acc"})),
        "two columns are called 'acc': rename or remove one",
    ),
    (lambda: asked(results(), worst=math.nan), "metric 'acc': worst must be finite, got nan"),
    (
        lambda: asked(results().assign(seed=[math.nan] + [1.0] * 59)),
        "row 1 has no seed: every run needs the seed that pairs it",
    ),
    (lambda: asked(results().assign(seed=[None] * 60)), "row 1 has no seed"),
    (
        lambda: asked(results().assign(acc=lambda f: f.arm.map(ARMS))),
        "adamp - sgd, acc: every seed gives the same results, so seeds change nothing",
    ),
    (lambda: asked(results(sgd=0.0).assign(acc=-1.0), gain="ratio"), "needs values > 0"),
    (
        lambda: asked({"arm": ["sgd", "adamp"], "seed": [0, 0], "acc": [1.0]}),
        "columns must be of one length, one entry per run; got {'arm': 2, 'seed': 2, 'acc': 1}",
    ),
]


@pytest.mark.parametrize(("ask", "message"), UNFIT, ids=[message for _, message in UNFIT])
def test_unfit(ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ask()
    assert message in str(caught.value)


def test_a_long_list_is_cut() -> None:
    frame = results().query("arm != 'adamp' or seed == 0")
    with pytest.raises(ValueError, match=r"seeds 1, 2, 3, 4, 5, 6, 7, 8 and 1 more, which"):
        asked(frame)


# -- reading CSV files ---------------------------------------------------------------------------------------


def test_a_csv_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results().to_csv(path, index=False)
    assert asked(read_results(path)).to_dict() == asked(results()).to_dict()


def test_arms_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("arm, seed, acc\nNone,0,0.5\n1e3,0,\n007,0,nan\n")
    frame = read_results(path)
    assert frame.arm.tolist() == ["None", "1e3", "007"]
    assert list(frame.columns) == ["arm", "seed", "acc"]
    assert frame.acc.isna().tolist() == [False, True, True]
    assert frame.seed.dtype.kind == "i"


def test_a_run_that_is_missing_is_none_that_diverged(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    for rows in ("sgd,0,0.5\nadamp,0,\n", "sgd,0,0.5\nadamp,0\n"):
        path.write_text(f"arm,seed,acc\n{rows}")
        with pytest.raises(ValueError, match=r"row 2 \(arm adamp, seed 0\): acc is missing"):
            asked(read_results(path), worst=0.1)
    path.write_text("arm,seed,acc\nsgd,0,0.5\nadamp,,0.5\n")
    with pytest.raises(ValueError, match="row 2 has no seed"):
        asked(read_results(path))


def test_large_seeds_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    frame = results().assign(seed=lambda f: f.seed + 1764130000000000000)
    frame.to_csv(path, index=False)
    for seeds in (asked(read_results(path)).seeds, asked(frame).seeds):
        assert seeds == tuple(range(1764130000000000000, 1764130000000000010))


def test_conditions_may_be_tensors_of_one_number() -> None:
    frame = {name: list(column) for name, column in results().items()}
    frame["condition"] = [torch.tensor(float(c == "noisy")) for c in frame["condition"]]
    assert json.dumps(asked(frame).to_dict()["conditions"][0]["values"]) == "[0.0, 1.0]"


def test_arms_may_be_numbers() -> None:
    frame = results().assign(arm=lambda f: f.arm.map({"sgd": 1, "adamp": 2, "smoothing": 3}))
    result = asked(frame, baseline=1, method=2, control=3)
    assert (result.baseline, result.method) == ("1", "2")
    assert result.judgement == asked(results(), control="smoothing").judgement


def test_three_seeds_of_one_difference_need_a_handful_more() -> None:
    runs = {
        "arm": ["sgd"] * 3 + ["adamp"] * 3,
        "seed": [0, 1, 2] * 2,
        "acc": [0.90, 0.91, 0.92, 0.93, 0.94, 0.95],
    }
    assert asked(runs).fresh_seeds == 6


def test_text_in_the_metric_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("arm,seed,acc\nsgd,0,0.5\nadamp,0,NA\n")
    with pytest.raises(
        ValueError, match=r"row 2 \(arm adamp, seed 0\): acc is 'NA', not a number; write nan"
    ):
        asked(read_results(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "results.csv: not a CSV file with a header line"),
        ("arm;seed;acc\nsgd;0;0.5\n", "separated by ';'; separate them by commas"),
        (
            "arm,seed,acc\nsgd,0,0,5\nsgd,1,0,6\n",
            "more values than the header has columns; use a decimal point",
        ),
        ('arm,seed,acc\n"sgd,0,0.5\n', "results.csv: not a CSV file"),
        (b"\xff\xfe\x00\x01", "results.csv: not a CSV file"),
        ("arm,seed,acc\n", "results.csv: a header but no rows; give one row per run"),
        ("method,seed,acc\nsgd,0,0.5\n", "results.csv: no column 'arm'; columns here: method, seed, acc"),
        (
            "arm,seed,acc,acc\nsgd,0,0.5,0.6\n",
            "results.csv: two columns are called 'acc': rename or remove one",
        ),
        (
            "arm,seed,acc,acc \nsgd,0,0.5,0.6\n",
            "results.csv: two columns are called 'acc': rename or remove one",
        ),
        ("arm,sede,acc\nsgd,0,0.5\n", "results.csv: no column 'seed'; did you mean 'sede'?"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        read_results(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no results file '.*gone.csv': give a CSV file with columns arm, seed"
    ):
        read_results(tmp_path / "gone.csv")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    results().to_csv(path, index=False)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pd, "read_csv", refuse)
    with pytest.raises(ValueError, match=r"cannot read .*results.csv: Permission denied"):
        read_results(path)


def test_reading_needs_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'trueup\[cli\]'"):
        read_results("results.csv")
