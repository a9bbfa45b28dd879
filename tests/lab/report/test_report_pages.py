"""The report's files, read as text: what they say, that they are safe, and that they are written whole."""

from __future__ import annotations

import csv
import hashlib
import html.parser
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import outcomes as made
import pytest

from trueup.lab import _formatting as formatting
from trueup.lab.report import (
    ReportError,
    write_comparison,
    write_report,
)
from trueup.lab.report import _export as export
from trueup.lab.report import _phrases as phrases
from trueup.lab.report import _site as site
from trueup.lab.report import _summaries as summaries
from trueup.lab.report._dots import arms_figure, claim_figure
from trueup.lab.report._lines import LONGEST_SERIES, figure_panels
from trueup.lab.report._plotly import arm_styles


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a study of every kind."""
    root = tmp_path_factory.mktemp("report")
    write_report(root, [*made.outcomes(), made.nasty()], made.PAPERS, made.LEDGER)
    return root


class Page(html.parser.HTMLParser):
    """A page as a browser sees it: tags, attributes, text, and the JSON of the figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.figures: list[Any] = []
        self._script = ""
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = (dict(attrs).get("type") or "code") if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script == "application/json":
            self.figures.append(json.loads(data))
        elif not self._script:
            self.words.append(data)


def page(folder: Path, name: str) -> Page:
    return Page((folder / name).read_text(encoding="utf-8"))


# -- what the pages say


def test_the_verdict_comes_first_and_large(folder: Path) -> None:
    text = (folder / "adamp.html").read_text(encoding="utf-8")
    sentence = text.index('<p class="sentence">AdamP beats Adam by 1.1 points on digits')
    assert sentence < text.index('id="claims"') < text.index('id="protocol"') < text.index('id="cost"')


def test_a_claim_is_a_sentence_then_its_control_then_its_scope(folder: Path) -> None:
    text = page(folder, "adamp.html").text
    parts = (
        "AdamP beats Adam by 1.1 points (99 % interval",
        "It also beats scaled Adam",
        "Tested on digits with 20k parameters; the paper: ImageNet, ResNet-50.",
    )
    places = [text.index(part, text.index("Claims")) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["index.html", "mtard.html", "ghost-batch-norm.html"])
def test_contradicted_always_carries_the_scale(folder: Path, name: str) -> None:
    seen = page(folder, name)
    assert "contradicted at desk scale" in seen.text
    assert not re.search(r"contradicted(?! at desk scale)", seen.text)
    assert not re.search(r"contradicted(?! at desk scale)", json.dumps(seen.figures).replace("<br>", " "))


def test_a_gain_below_the_minimum_has_a_chip_of_its_own(tmp_path: Path) -> None:
    write_report(tmp_path, [made.smaller()], made.PAPERS, {})
    text = (tmp_path / "layer-norm.html").read_text(encoding="utf-8")
    assert '<span class="chip is-less">' in text
    seen = page(tmp_path, "layer-norm.html")
    parts = [
        "Below the minimum effect at desk scale: AdamP is 19.",
        "lower than Adam in weight norm (a factor of 1.",
        "The minimum effect is a factor of 1.4.",
        "The gain of lower-loss survives its control.",
        "Tested on digits with 20k parameters; the paper used ImageNet, ResNet-50.",
        "Both primary claims below the minimum effect (slower-norm, lower-loss).",
        "The question:",
        "Below the minimum effect at desk scale: AdamP is 19.",
        "10 seeds; minimum effect a factor of 1.4; lower is better.",
        "Below the minimum effect at desk scale: AdamP is ahead of Adam in loss by 0.0",
        "Against its control, the gain holds: AdamP beats scaled Adam by",
        "10 seeds; minimum effect 0.03; lower is better.",
        "These seeds are strongly skewed",
        "the dashed line is the minimum effect (0.03; 0 against a control).",
        "10 seeds without a divergence do not exclude one in 4 runs.",
    ]
    place, words = 0, seen.text.replace("\xa0", " ")
    for part in parts:  # in this order
        place = words.index(part, place)
    assert seen.text.count("Tested on") == 1
    index = row(tmp_path, "layer-norm")
    assert 'data-order="2" data-search="smaller"' in index
    figure = page(tmp_path, "index.html").figures[-1]
    assert [t["name"] for t in figure["data"]] == ["below the minimum effect"]


def test_a_label_has_the_order_of_the_number_drawn(tmp_path: Path) -> None:
    norm, gain = made.smaller()["claims"]
    for claim, label in ((norm, "Adam / AdamP, norm"), (gain, "Adam - AdamP, loss")):
        figure = claim_figure(claim)
        assert figure is not None
        assert figure["layout"]["annotations"][0]["text"] == f"{label}: below the minimum effect"
        assert all(x > 0 for x in figure["data"][0]["x"])
    effect = phrases.effect(norm)
    assert effect is not None
    assert re.fullmatch(r"19\.\d % lower", effect["mean"])
    assert re.fullmatch(r"1\d\.\d % to 2\d\.\d % lower; ×1\.2\d", effect["interval"])
    assert phrases.effect(norm | {"higher": None})["mean"].startswith("×1.2")  # as old documents are


def test_the_head_of_the_ledger_counts_false_wins(folder: Path) -> None:
    text = page(folder, "index.html").text
    # one statistical primary claim each of adamp, power-norm, mtard; two of ghost-batch-norm. What was run
    # on exploratory seeds (stable-spam) counts as well, exact claims and own studies do not
    assert "6 primary statistical claims × .025 = 0.15 false wins" in text


def test_the_ledger_lists_every_paper_and_own_studies_apart(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    papers, own = text.split('id="own"')
    assert papers.count("<tr data-slug=") == len(made.PAPERS) == 50
    assert re.findall(r'<tr data-slug="([^"]*)"', own) == ["my-two-optimizers", "nasty"]


def test_a_published_verdict_stands_in_where_nothing_was_run(folder: Path) -> None:
    text = page(folder, "partial-correlation.html").text
    assert "published verdict, not run here" in text
    assert "certified: the code was rewritten, the results are equal bit for bit" in text
    assert ">certified<" in row(folder, "partial-correlation")
    assert "Replicated on fresh seeds (2026-11-24): the effects agree, reproduced." in text
    assert "This protocol was published 2 times, on the same seeds." in text
    assert "protocol 1 published at commit beef: reproduced (a bug mended)" in text
    assert "certified at commit f00d: 24 of 24 cells equal the published ones" in text


def test_a_study_of_ones_own_names_its_file_and_no_paper(tmp_path: Path) -> None:
    own = made.study() | {"slug": "mine", "scale": "smoke", "target": "/data/o'neil/my study.py"}
    own["claims"][0]["origin"] = "post_hoc"
    write_report(tmp_path, [own], made.PAPERS, {})
    text = page(tmp_path, "mine.html").text
    assert """trueup run '/data/o'"'"'neil/my study.py' --scale smoke""" in text
    assert "claimed by the paper" not in text
    assert "our reading of the paper" not in text
    assert "added after seeing the data" in text
    write_report(tmp_path, [made.study()], made.PAPERS, {})
    papers = page(tmp_path, "adamp.html").text
    assert "claimed by the paper" in papers
    assert "trueup run adamp" in papers


def test_a_label_cannot_turn_the_direction_of_the_text_around_it(tmp_path: Path) -> None:
    own = made.study() | {"slug": "mine", "question": "Is \u202eesrever\u2066 <b>better</b>?"}
    write_report(tmp_path, [own], made.PAPERS, {})
    text = (tmp_path / "mine.html").read_text(encoding="utf-8")
    assert "Is esrever &lt;b&gt;better&lt;/b&gt;?" in text


def test_a_condition_says_where_arms_are_tuned(tmp_path: Path) -> None:
    document = made.study()
    document["conditions"] = [
        {"name": "factor", "values": [1, 3], "tuned_at": 1},
        {"name": "noise", "values": [0, 2], "tuned_at": None},
    ]
    write_report(tmp_path, [document], [], {})
    text = page(tmp_path, f"{document['slug']}.html").text
    assert "arms are tuned at factor 1, 3 1 alone noise 0, 2 each value" in text
    document["conditions"] = [{"name": "factor", "values": [1, 3]}]  # as documents were before
    write_report(tmp_path, [document], [], {})
    assert "tuned at factor" not in page(tmp_path, f"{document['slug']}.html").text


def test_the_key_of_a_figure_says_what_is_drawn(tmp_path: Path) -> None:
    document = made.study()
    (gain,) = (c for c in document["claims"] if c.get("controls"))
    gain["controls"][0]["level"], gain["unit"], gain["margin"] = 0.96, "points", 0.01
    write_report(tmp_path, [document], [], {})
    name = f"{document['slug']}.html"
    assert (
        "Each mark is one seed; the bar is the mean with its 99 % interval (96 % where a control was judged "
        "at another look); the dashed line is the minimum effect (1 point)." in page(tmp_path, name).text
    )
    assert "99\N{NO-BREAK SPACE}% interval" in (tmp_path / name).read_text(encoding="utf-8")
    for claim in document["claims"]:
        claim["d"] = []  # as the ledger has it
    write_report(tmp_path, [document], [], {})
    assert "mark is one seed; the bar is the mean with its 99" not in page(tmp_path, name).text


def test_a_look_without_a_level_shows_a_dash(tmp_path: Path) -> None:
    smoke = made.study() | {"published": False, "looks": [{"n": 1, "alpha": None, "seeds": [0]}]}
    write_report(tmp_path, [smoke], made.PAPERS, {})
    text = page(tmp_path, "adamp.html").text
    assert "Looks, declared in advance" not in text
    assert "one-sided level which seeds 1 1 – 0" in text


def row(folder: Path, slug: str) -> str:
    return (
        (folder / "index.html").read_text(encoding="utf-8").split(f'data-slug="{slug}"')[1].split("</tr>")[0]
    )


def test_a_reconstructed_method_is_marked(folder: Path) -> None:
    mark = "reconstructed: the paper's equations could not be confirmed"
    for slug, marked in (("power-norm", True), ("adamp", False)):
        assert (">reconstructed<" in row(folder, slug)) == marked
        assert (mark in html.unescape((folder / f"{slug}.html").read_text(encoding="utf-8"))) == marked


def test_a_stale_verdict_is_marked(folder: Path) -> None:
    assert "published: stale" in row(folder, "adamp")
    published = "Published in the ledger: reproduced (stale: the code has changed since)"
    assert published in page(folder, "adamp.html").text
    assert "stale" not in page(folder, "mtard.html").text


def test_an_exploratory_run_does_not_hide_the_published_verdict(tmp_path: Path) -> None:
    tried = made.contradicted() | {"slug": "adamp", "published": False}
    write_report(tmp_path, [tried], made.PAPERS, {"adamp": made.LEDGER["adamp"]})
    shown = row(tmp_path, "adamp")
    assert 'data-search="reproduced"' in shown
    assert ">stale<" in shown
    assert "contradicted at desk scale" in page(tmp_path, "adamp.html").text
    assert "exploratory seeds: not for publication" in page(tmp_path, "adamp.html").text


def test_failed_and_diverged_cells_are_shown_apart(folder: Path) -> None:
    seen = page(folder, "stable-spam.html")
    assert "3 cells failed and returned no number" in seen.text.replace("  ", " ")
    assert "5 cells diverged and scored" in seen.text.replace("  ", " ")
    assert "RuntimeError: <b>4-bit</b> overflow" in seen.text
    assert "tuning trial AdamP lr 0.3" in seen.text


def test_an_available_paper_without_a_run_tells_the_command(folder: Path) -> None:
    assert "trueup run layer-norm" in page(folder, "layer-norm.html").text
    assert not (folder / "planned-9.html").exists()


def test_every_protocol_tried_is_shown_with_its_reason(folder: Path) -> None:
    text = page(folder, "adamp.html").text
    assert "2 protocols were tried" in text
    assert "the learning-rate grid was too coarse for every arm" in text


def test_an_edge_in_the_tuning_grid_is_shown(folder: Path) -> None:
    assert "at the edge: lr" in page(folder, "power-norm.html").text
    assert "about 14" in page(folder, "power-norm.html").text


def test_how_many_trials_the_arms_had_is_counted(folder: Path, tmp_path: Path) -> None:
    assert "Every arm had 4 trials at each condition it was tuned at" in page(folder, "adamp.html").text
    first, *others = made.study()["tuning"]
    widened = [first | {"trials": [*first["trials"], {**first["trials"][0], "winner": False}]}, *others]
    write_report(tmp_path, [made.study(tuning=widened)], made.PAPERS, {})
    assert "after grids were widened they had 4 to 5" in page(tmp_path, "adamp.html").text


def test_a_study_whose_results_are_of_another_code_says_so(tmp_path: Path) -> None:
    empty = [entry | {"trials": []} for entry in made.study()["tuning"]]
    write_report(tmp_path, [made.study(cells=[], series=[], tuning=empty)], made.PAPERS, {})
    text = page(tmp_path, "adamp.html").text
    assert "No stored result fits the present code" in text
    assert "no winner" not in text


def test_a_number_that_is_no_metric_has_no_direction() -> None:
    outcome = made.study()
    (panel,) = figure_panels({"x": None, "y": "norm"}, outcome)
    assert panel.figure["layout"]["xaxis"]["title"]["text"] == "norm"
    (panel,) = figure_panels({"x": None, "y": "loss"}, outcome)
    assert panel.figure["layout"]["xaxis"]["title"]["text"] == "loss, lower is better"


def test_links_lead_somewhere(folder: Path) -> None:
    for path in folder.glob("*.html"):
        for tag, attributes in page(folder, path.name).tags:
            target = attributes.get("href" if tag in ("a", "link") else "src" if tag == "script" else "none")
            if not target or target.startswith(("https://arxiv.org/", "data:")):
                continue
            name, _, anchor = target.partition("#")
            there = folder / (name or path.name)
            assert there.exists(), f"{path.name}: {target}"
            if anchor:
                ids = {attributes.get("id") for _, attributes in page(folder, there.name).tags}
                assert anchor in ids, f"{path.name}: {target}"


def test_an_empty_report_teaches_the_command(tmp_path: Path) -> None:
    text = Page(write_report(tmp_path, [], made.PAPERS, {}).read_text(encoding="utf-8")).text
    assert "Nothing has been run yet" in text
    assert "trueup run ghost-batch-norm" in text
    assert "false wins" not in text


def test_smoke_scale_gets_a_page_of_its_own_beside_desk(tmp_path: Path) -> None:
    smoke = made.study("adamp", scale="smoke", claims=[], published=False)
    write_report(tmp_path, [smoke, made.study("adamp")], made.PAPERS, {})
    assert "smoke scale: no verdict" in page(tmp_path, "adamp.smoke.html").text
    assert "Tested on" not in page(tmp_path, "adamp.smoke.html").text  # it ran on less than that
    assert "desk scale" in page(tmp_path, "adamp.html").text
    assert json.loads((tmp_path / "data" / "adamp.smoke.json").read_text())["scale"] == "smoke"


# -- figures


def test_a_claim_shows_every_seed_its_interval_zero_and_the_margin() -> None:
    claim = made.study()["claims"][0]
    figure = claim_figure(claim)
    assert figure is not None
    dots, mean = figure["data"][0], figure["data"][1]
    assert dots["x"] == pytest.approx([100 * item["d"] for item in claim["d"]], rel=1e-5)
    assert mean["x"] == pytest.approx([100 * claim["mean"]], rel=1e-5)
    error = mean["error_x"]
    assert mean["x"][0] + error["array"][0] == pytest.approx(100 * claim["high"], rel=1e-4)
    assert mean["x"][0] - error["arrayminus"][0] == pytest.approx(100 * claim["low"], rel=1e-4)
    lines = {(round(s["x0"], 9), s["line"]["dash"]) for s in figure["layout"]["shapes"]}
    assert lines == {(0.0, "solid"), (0.56, "dash")}
    assert len(figure["data"]) == 4  # the control has its own row


def test_a_log_ratio_is_drawn_as_a_ratio_on_a_log_axis() -> None:
    claim = next(c for c in made.study()["claims"] if c["name"] == "slower-norm")
    figure = claim_figure(claim)
    assert figure is not None
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["data"][0]["x"] == pytest.approx([math.exp(i["d"]) for i in claim["d"]], rel=1e-5)
    assert [s["x0"] for s in figure["layout"]["shapes"]] == pytest.approx([1.0, 1.1])


def test_margins_follow_the_test() -> None:
    claims = {c["name"]: c for c in made.study()["claims"]}
    ordering = claim_figure(claims["ordering"])
    assert ordering is not None
    dashed = [s["x0"] for s in ordering["layout"]["shapes"] if s["line"].get("dash") == "dash"]
    assert dashed == pytest.approx([-0.56, 0.56])  # non-inferiority, then superiority
    same = claim_figure(claims["same-loss"])
    assert same is not None
    bands = [(s["x0"], s["x1"]) for s in same["layout"]["shapes"] if s["type"] == "rect"]
    assert bands == [(-0.01, 0.01)]


def test_a_cost_is_drawn_as_a_multiple_of_the_peer() -> None:
    claim = made.cost()
    figure = claim_figure(claim)
    assert figure is not None
    assert figure["data"][-1]["x"] == pytest.approx([2.6 * math.exp(-claim["mean"])], rel=1e-4)
    low, high = (2.6 * math.exp(-claim[k]) for k in ("high", "low"))
    assert phrases.interval(claim)[1:] == pytest.approx((low, high))
    assert figure["data"][-1]["error_x"]["array"][0] > 0


def test_an_exact_claim_places_zero_and_infinity_at_the_ends() -> None:
    figure = claim_figure(made.exact("law"))
    assert figure is not None
    held, broken = figure["data"]
    assert min(held["x"]) == pytest.approx(1e-8)  # the zero, a decade left of the smallest
    assert max(broken["x"]) == pytest.approx(
        5.0
    )  # the one that was not finite, a decade right of the largest
    assert max(held["x"]) < 1e-5 < min(broken["x"])


def test_seeds_average_over_conditions_before_an_interval_is_drawn() -> None:
    outcome = made.study()
    values = summaries.per_seed(outcome, "Adam", "accuracy")
    cells = [c for c in outcome["cells"] if c["arm"] == "Adam" and c["seed"] == 100]
    assert len(values) == 10
    assert values[0].value == pytest.approx(sum(c["numbers"]["accuracy"] for c in cells) / 3)


def test_a_sweep_draws_every_seed_and_a_long_series_is_thinned() -> None:
    outcome = made.study()
    outcome["series"] = made.series(["Adam", "AdamP"], steps=1000)
    arm, sweep, loss = (figure_panels(f, outcome) for f in outcome["figures"])
    assert len(arm) == len(sweep) == len(loss) == 1
    assert len(sweep[0].figure["data"][0]["x"]) == 30
    line = loss[0].figure["data"][1]
    assert len(line["x"]) <= LONGEST_SERIES + 1
    assert line["x"][-1] == 999
    assert loss[0].note == "one point in 4 drawn"


def test_the_mean_of_thinned_seeds_is_of_one_step_to_the_end_of_the_shortest() -> None:
    outcome = made.study()
    outcome["series"] = made.series(["Adam"], seeds=2, steps=1000)
    for entry, length in zip(outcome["series"], (1000, 702), strict=True):  # as of a run that diverged
        entry["values"] = [float(step) for step in range(length)]
    loss = figure_panels(outcome["figures"][2], outcome)
    mean = loss[0].figure["data"][1]
    assert mean["x"] == mean["y"] == [*range(0, 702, 4), 701]


def test_roles_differ_in_shape_not_only_in_colour() -> None:
    looks = arm_styles(made.study()["arms"] + [{"name": "second", "role": "control"}])
    assert len({symbol for _, symbol, _ in looks.values()}) == 5


def test_intervals_are_those_of_a_t_test() -> None:
    one, steady, single = summaries.intervals([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0], [5.0]])
    half = 3.182446305 * math.sqrt(5 / 3) / 2  # t quantile with 3 degrees of freedom
    assert (one.mean, one.low, one.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert (steady.low, steady.high) == (2.0, 2.0)
    assert single.low is None


def test_a_failed_cell_has_no_number_and_a_diverged_one_is_crossed_out() -> None:
    outcome = made.incomplete()
    figure = arms_figure(outcome, outcome["metrics"][0])
    assert figure is not None
    crosses = [t for t in figure["data"] if t["marker"]["symbol"] == "x-thin"]
    assert sum(len(t["x"]) for t in crosses) == 5
    dots = [t for t in figure["data"] if t.get("text")]
    assert sum(len(t["x"]) for t in dots) == len(outcome["cells"]) - 3


# -- safety


def test_nothing_hostile_becomes_markup(folder: Path) -> None:
    for name in ("nasty.html", "index.html"):
        seen = page(folder, name)
        assert "<script>alert('x')</script> & \"quotes\"" in seen.text  # shown as it is
        assert "alert" not in " ".join(str(a) for t, a in seen.tags if t == "script")
        allowed = {
            "a",
            "b",
            "p",
            "h1",
            "h2",
            "h3",
            "td",
            "th",
            "tr",
            "dt",
            "dd",
            "code",
            "pre",
            "small",
            "span",
            "div",
        }
        assert "bold" not in " ".join(a.get("class") or "" for t, a in seen.tags if t in allowed)
        assert not [a for t, a in seen.tags if any(k.startswith("on") for k in a)]
    scripts = re.findall(
        r"<script(?![^>]*json)[^>]*>(.*?)</script>", (folder / "nasty.html").read_text(), re.S
    )
    assert not any("alert" in s for s in scripts)


def test_figures_carry_hostile_names_as_inert_text(folder: Path) -> None:
    drawn = page(folder, "nasty.html").figures
    assert len(drawn) > 5
    texts = re.findall(r"alert", json.dumps(drawn))
    assert texts
    assert "<script>" not in json.dumps(drawn)  # plotly reads tags in labels: these are entities


def test_script_json_is_safe_and_faithful() -> None:
    document = {"a": made.NASTY, "b": [math.nan, math.inf, 1.5], "c": "\ud800"}
    text = export.script_json(document)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": made.NASTY, "b": [None, None, 1.5], "c": "\ud800"}


@pytest.mark.parametrize("slug", ["../../etc/passwd", "a/b", "", None, "A B", "a.b"])
def test_a_slug_cannot_leave_the_folder(tmp_path: Path, slug: Any) -> None:
    with pytest.raises(ValueError, match="slug of lower-case words"):
        write_report(tmp_path, [made.study(slug)], [], {})
    assert not list(tmp_path.iterdir())


def test_unknown_scale_and_two_outcomes_for_one_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale must be one of desk, paper, smoke; got 'huge'"):
        write_report(tmp_path, [made.study(scale="huge")], [], {})
    with pytest.raises(ValueError, match="two outcomes for adamp at desk scale"):
        write_report(tmp_path, [made.study(), made.study()], [], {})


# -- data files


def test_the_json_is_the_outcome_and_strict(folder: Path) -> None:
    text = (folder / "data" / "adamp.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document == export.finite(made.study())


def test_the_csv_has_a_row_a_cell(folder: Path) -> None:
    rows = list(
        csv.DictReader(io.StringIO((folder / "data" / "stable-spam.csv").read_text(encoding="utf-8")))
    )
    cells = made.incomplete()["cells"]
    assert len(rows) == len(cells)
    assert list(rows[5]) == ["arm", "lr scale", "lr", "seed", "status", "accuracy", "loss", "norm", "seconds"]
    assert (rows[1]["status"], rows[1]["accuracy"]) == ("failed", "")
    assert float(rows[5]["accuracy"]) == cells[5]["numbers"]["accuracy"]


def test_a_csv_field_cannot_be_a_spreadsheet_formula() -> None:
    outcome = made.study() | {"cells": [made.study()["cells"][0] | {"arm": "=HYPERLINK(1)", "seed": -3}]}
    row = next(csv.DictReader(io.StringIO(export.cells_csv(outcome))))
    assert (row["arm"], row["seed"]) == ("'=HYPERLINK(1)", "-3")


def test_the_ledger_has_a_row_a_claim(folder: Path) -> None:
    records = json.loads((folder / "data" / "ledger.json").read_text(encoding="utf-8"))
    gain = next(r for r in records if r["slug"] == "adamp" and r["claim"] == "higher-accuracy")
    assert gain["effect"] == pytest.approx(100 * made.study()["claims"][0]["mean"])
    assert (gain["unit"], gain["verdict"], gain["stale"], gain["protocols"]) == (
        "points",
        "reproduced",
        True,
        2,
    )
    rows = list(csv.DictReader(io.StringIO((folder / "data" / "ledger.csv").read_text(encoding="utf-8"))))
    assert [r["slug"] for r in rows] == [r["slug"] for r in records]


# -- writing


def test_a_crash_leaves_the_old_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_report(tmp_path, [], made.PAPERS, {})
    before = index.read_bytes()
    real = os.replace

    def crash(source: str, target: Path) -> None:
        if Path(target).name == "index.html":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, made.outcomes(), made.PAPERS, {})
    assert index.read_bytes() == before


def test_no_temporary_file_is_left_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ReportError, match=r"cannot write .*No space left on device; choose a folder"):
        write_report(tmp_path, [], [], {})
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(ReportError, match=r"cannot write .*taken"):
        write_report(tmp_path / "taken", [], [], {})


def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    write_report(tmp_path, [made.study()], made.PAPERS, {})
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    write_report(tmp_path, [made.study() | made.contradicted() | {"slug": "adamp"}], made.PAPERS, {})
    assert "two teachers lose against one" in page(tmp_path, "adamp.html").text
    assert other.read_text() == "mine"


def test_a_comparison_below_the_minimum_has_its_own_words(tmp_path: Path) -> None:
    claim = made.smaller()["claims"][1] | {"word": "better, by less than you asked"}
    claim |= {"words": claim["word"], "arms": []}
    text = Page(write_comparison(tmp_path / "c.html", claim).read_text(encoding="utf-8")).text
    assert "better, by less than you asked survives its control" in text
    assert "the minimum effect (0.03; 0 against a control)" in text
    assert "These seeds are strongly skewed" in text


def test_a_comparison_is_one_file(tmp_path: Path) -> None:
    source = made.study()
    comparison = source["claims"][0] | {"words": "better", "title": "Mine <b>against</b> theirs"}
    comparison |= {k: source[k] for k in ("arms", "metrics", "conditions", "cells")}
    path = write_comparison(tmp_path / "deep" / "comparison.html", comparison)
    text = path.read_text(encoding="utf-8")
    assert "Mine &lt;b&gt;against&lt;/b&gt; theirs" in text
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="(?!data:)', text)
    assert len(text) < 6e6
    assert [p.name for p in path.parent.iterdir()] == ["comparison.html"]


def test_a_comparison_needs_only_the_verdict(tmp_path: Path) -> None:
    claim = made.claim("mine", mean=0.1, sd=0.2, margin=0.05, outcome="inconclusive", sentence="Cannot tell.")
    text = Page(write_comparison(tmp_path / "c.html", claim | {"words": "cannot tell"}).read_text()).text
    assert "cannot tell" in text


def test_kept_files_of_others_are_as_recorded() -> None:
    assets = Path(site.__file__).parent / "assets"
    record = (assets / "THIRD-PARTY.md").read_text(encoding="utf-8")
    for name, digest in re.findall(r"\| `([\w.-]+)` \|.*`([0-9a-f]{64})` \|", record):
        assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == digest
    assert "plotly-basic.min.js" in record


def test_another_itables_bundle_is_told_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Files:
        def joinpath(self, *parts: str) -> Files:
            return self

        def read_text(self, encoding: str) -> str:
            return "window.something = 1"

    monkeypatch.setattr("importlib.resources.files", lambda name: Files())
    with pytest.raises(ReportError, match="itables"):
        site._datatables()


@pytest.mark.parametrize(
    "missing", ["cells", "arms", "tuning", "figures", "provenance", "cost", "looks", "verdict"]
)
def test_an_outcome_without_a_part_still_gets_a_page(tmp_path: Path, missing: str) -> None:
    outcome = {k: v for k, v in made.study().items() if k != missing}
    if missing == "arms":
        outcome["cells"] = []
        outcome["tuning"] = []
    write_report(tmp_path, [outcome], made.PAPERS, {})
    assert "AdamP" in page(tmp_path, "adamp.html").text


@pytest.mark.parametrize(
    ("mean", "low", "high", "texts"),
    [
        (0.61234, 0.3141, 0.9201, ("0.61", "0.31", "0.92")),
        (-1234.5, -2000.0, -500.0, ("−1,234", "−2,000", "−500")),
        (1.0, 1.0, 1.0, ("1", "1", "1")),
        (2.0, None, None, ("2", "–", "–")),
    ],
)
def test_mean_and_interval_are_rounded_alike(
    mean: float, low: float | None, high: float | None, texts: tuple[str, str, str]
) -> None:
    assert formatting.rounded(mean, low, high) == texts
