"""The catalogue is complete, spells names that exist, and costs nothing to read."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trueup import papers

AVAILABLE = [paper for paper in papers.CATALOGUE if paper.state == "available"]


def test_fifty_papers_each_once() -> None:
    assert len(papers.CATALOGUE) == 50
    for attribute in ("slug", "title", "arxiv", "problem", "reference"):
        values = [getattr(paper, attribute) for paper in papers.CATALOGUE]
        assert len(set(values)) == 50, attribute
        assert all(value == value.strip() != "" for value in values), attribute


@pytest.mark.parametrize("paper", papers.CATALOGUE, ids=lambda paper: paper.slug)
def test_record_is_well_formed(paper: papers.Paper) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", paper.slug)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)
    assert 2000 + int(paper.arxiv[:2]) <= paper.year <= 2000 + int(paper.arxiv[:2]) + 4
    assert all(len(name) > 3 for name in paper.authors.split(", "))
    assert paper.fidelity in papers.Fidelity.__args__  # type: ignore[attr-defined]
    assert paper.state == ("available" if paper.names else "planned")
    assert bool(paper.usage) == bool(paper.names)
    assert paper.study == "trueup.studies." + paper.slug.replace("-", "_")


def test_every_area_of_the_catalogue_has_its_place_in_the_import_contracts() -> None:
    layers = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]["contracts"][0]["layers"]
    tiers = [set(re.findall(r"\w+", layer)) for layer in layers]
    assert {paper.area for paper in papers.CATALOGUE} <= set.union(*tiers)
    tier_of = {name: i for i, tier in enumerate(tiers) for name in tier}
    assert tier_of["cli"] < tier_of["search"] < tier_of["lab"]
    assert tier_of["fairness"] == tier_of["robustness"] == tier_of["calibration"]


@pytest.mark.parametrize(
    ("slug", "area"),
    [("calibration-sets", "alignment"), ("fairseg", "fairness"), ("accuracy-disparity", "fairness")],
)
def test_papers_stand_in_the_area_of_their_problem(slug: str, area: str) -> None:
    assert papers.get(slug).area == area


def test_get_returns_the_record_and_teaches_the_spelling() -> None:
    assert papers.get("adamp").title.startswith("AdamP")
    with pytest.raises(ValueError, match="did you mean 'adamp'"):
        papers.get("adam-p")
    with pytest.raises(ValueError, match="did you mean 'ghost-batch-norm'"):
        papers.get("Ghost_Batch_Norm")
    with pytest.raises(ValueError, match="'qqqq'; `trueup list`"):
        papers.get("qqqq")


@pytest.mark.parametrize("name", [name for paper in AVAILABLE for name in paper.names])
def test_public_names_import_from_their_room(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    area = importlib.import_module(module)
    assert attribute in area.__all__
    assert callable(getattr(area, attribute))


@pytest.mark.parametrize("paper", AVAILABLE, ids=lambda paper: paper.slug)
def test_names_lead_with_the_papers_room(paper: papers.Paper) -> None:
    assert paper.names[0].split(".")[:2] == ["trueup", paper.area]


@pytest.mark.parametrize("paper", AVAILABLE, ids=lambda paper: paper.slug)
def test_usage_is_three_lines_that_run(paper: papers.Paper) -> None:
    import torch
    from torch import nn

    import trueup

    assert len(paper.usage.splitlines()) == 3
    assert all(len(line) <= 78 for line in paper.usage.splitlines())  # what a terminal of 80 shows unbroken
    torch.manual_seed(0)
    scope = {
        "torch": torch,
        "trueup": trueup,
        "model": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        "loss": nn.CrossEntropyLoss(),
        "inputs": torch.randn(64, 4),
        "targets": torch.randint(3, (64,)),
        "logits": torch.randn(64, 5),
        "view_logits": torch.randn(3, 64, 5),
        "target": torch.randint(5, (64,)),
        "parts": torch.rand(40, 5, dtype=torch.float64).numpy() + 0.1,
    }
    exec(paper.usage, scope)


def test_reading_the_catalogue_imports_no_heavy_package() -> None:
    code = (
        "import sys, trueup, trueup.papers as p; [x.state for x in p.CATALOGUE]\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch','numpy','scipy','sklearn','pandas','jaxtyping','typer','rich','plotly'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
