"""Outcome documents as the lab writes them, with every state a report must show. Numbers are invented."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from trueup.lab import _sentences as sentences

Doc = dict[str, Any]

NASTY = "<script>alert('x')</script> & \"quotes\" </script> \u2028 %{x} <b>bold</b>"


def claim(
    name: str,
    *,
    mean: float,
    sd: float,
    margin: float,
    outcome: str,
    n: int = 10,
    test: str = "superiority",
    scale: str = "difference",
    unit: str = "points",
    factor: float = 100.0,
    seed: int = 0,
    **more: Any,
) -> Doc:
    """A statistical claim whose seeds scatter around ``mean``."""
    rng = np.random.default_rng([seed, len(name), n])
    d = mean + sd * rng.standard_normal(n)
    alpha = 0.005 if n == 10 else 0.02
    half = 3.25 * d.std(ddof=1) / math.sqrt(n)
    return {
        "name": name,
        "statement": f"{name.replace('-', ' ')} holds",
        "origin": "paper",
        "primary": True,
        "kind": "statistical",
        "requires": [],
        "why": "two test images of 360",
        "contrast": "method - baseline, accuracy",
        "outcome": outcome,
        "note": "",
        "sentence": "",
        "control_sentence": "",
        "unit": unit,
        "scale_factor": factor,
        "test": test,
        "scale": scale,
        "margin": margin,
        "n": n,
        "alpha": alpha,
        "look": 1 if n == 10 else 2,
        "level": 1 - 2 * alpha,
        "mean": float(d.mean()),
        "low": float(d.mean() - half),
        "high": float(d.mean() + half),
        "pvalue": 0.0011,
        "d": [{"seed": 100 + i, "d": float(x)} for i, x in enumerate(d)],
        "wins": int((d > 0).sum()),
        "losses": int((d < 0).sum()),
        "ties": 0,
        "diverged": {},
        "links": [],
        "controls": [],
        "survives": None,
        "instances": [],
        "tolerance": None,
        "negative_control": None,
        "more_seeds": None,
        "q": None,
    } | more


def control(arm: str, of: Doc, *, mean: float, sd: float, outcome: str) -> Doc:
    """A gain held against one control arm."""
    part = claim("c", mean=mean, sd=sd, margin=of["margin"], outcome=outcome, n=of["n"], seed=7)
    return {"arm": arm} | {k: part[k] for k in ("outcome", "mean", "low", "high", "level", "d")}


def link(text: str, outcome: str, note: str = "", **kw: Any) -> Doc:
    """One link of an ordering."""
    keys = ("outcome", "margin", "test", "n", "level", "mean", "low", "high", "d")
    part = claim(text, outcome=outcome, seed=3, **kw)
    return {"text": text, "note": note} | {k: part[k] for k in keys}


def exact(name: str, outcome: str = "reproduced", **more: Any) -> Doc:
    """An exact claim with its negative control."""
    sizes = [8, 64, 512, 4096]
    instances = [
        {"name": f"width {s}", "deviation": 1e-7 * (i + 1), "holds": True} for i, s in enumerate(sizes)
    ]
    instances.append({"name": "zero weights", "deviation": 0.0, "holds": True})
    broken = [{"name": f"width {s}", "deviation": 0.2 + 0.1 * i, "holds": False} for i, s in enumerate(sizes)]
    broken.append({"name": "zero weights", "deviation": None, "holds": False})
    return {
        "name": name,
        "statement": "the projected step never shrinks the norm faster than its square",
        "origin": "paper",
        "primary": True,
        "kind": "exact",
        "requires": [],
        "outcome": outcome,
        "note": "",
        "sentence": "The norm obeys the projected growth law exactly in all 5 instances: reproduced.",
        "control_sentence": "Plain Adam breaks it, so the predicate can fail.",
        "instances": instances,
        "tolerance": 1e-5,
        "negative_control": {"label": "plain Adam", "instances": broken, "breaks": True},
    } | more


def cost() -> Doc:
    """A claim about time; its contrast is log(bound x peer / ours) a round."""
    part = claim("fast-step", mean=0.12, sd=0.02, margin=0.0, outcome="reproduced", n=21, primary=False)
    part |= {
        "kind": "cost",
        "at_most": 2.6,
        "rounds": 21,
        "d": [],
        "sentence": "A step takes 2.3 times Adam's: reproduced.",
    }
    for key in ("scale", "unit", "scale_factor", "links", "controls"):
        del part[key]
    return part


def cells(
    arms: list[str],
    seeds: int = 10,
    *,
    conditions: list[Doc] | None = None,
    level: dict[str, float] | None = None,
    seed: int = 0,
) -> list[Doc]:
    """Report cells with an accuracy, a loss and a norm."""
    rng = np.random.default_rng(seed)
    made = []
    for a, arm in enumerate(arms):
        for c, condition in enumerate(conditions or [{}]):
            for s in range(seeds):
                accuracy = (level or {}).get(arm, 0.93 + 0.008 * a) - 0.01 * c + 0.004 * rng.standard_normal()
                made.append(
                    {
                        "arm": arm,
                        "condition": condition,
                        "hyper": {"lr": 0.1 if a % 2 else 0.03},
                        "seed": 100 + s,
                        "status": "ok",
                        "numbers": {"accuracy": accuracy, "loss": 2.0 * (1 - accuracy), "norm": 10.0 + a},
                        "seconds": 2.5 + 0.2 * a,
                        "peak_memory": 180 * 2**20,
                        "error": "",
                    }
                )
    return made


def series(
    arms: list[str], seeds: int = 10, steps: int = 60, conditions: list[Doc] | None = None
) -> list[Doc]:
    """A training loss a cell."""
    rng = np.random.default_rng(5)
    return [
        {
            "arm": arm,
            "condition": condition,
            "seed": 100 + s,
            "name": "loss",
            "values": (
                2.3 * np.exp(-np.arange(steps) / (12 + 4 * a)) + 0.05 + 0.02 * rng.random(steps)
            ).tolist(),
        }
        for a, arm in enumerate(arms)
        for condition in conditions or [{}]
        for s in range(seeds)
    ]


def study(slug: str = "adamp", **changes: Any) -> Doc:
    """A reproduced study with everything in place; ``changes`` replace parts of it."""
    arms = ["Adam", "AdamP", "AdamP, no projection", "scaled Adam"]
    conditions: list[Doc] = [{"lr scale": v} for v in (0.25, 1, 4)]
    gain = claim(
        "higher-accuracy",
        mean=0.011,
        sd=0.004,
        margin=0.0056,
        outcome="reproduced",
        sentence="AdamP beats Adam by 1.1 points (99 % interval 0.7 to 1.5, 10 seeds; 0.56 asked): better.",
        control_sentence="It also beats scaled Adam by 0.9 points (99 % interval 0.4 to 1.3).",
        survives="survives",
        q=0.004,
    )
    gain["controls"] = [control("scaled Adam", gain, mean=0.009, sd=0.004, outcome="reproduced")]
    ordered = claim(
        "ordering",
        mean=0.013,
        sd=0.004,
        margin=0.0056,
        outcome="reproduced",
        primary=False,
        origin="interpretation",
        sentence="From Adam through its ablation to AdamP, accuracy does not fall: reproduced.",
        links=[
            link(
                "Adam <= no projection",
                "reproduced",
                mean=0.001,
                sd=0.003,
                margin=0.0056,
                test="non-inferiority",
            ),
            link("no projection < AdamP", "reproduced", mean=0.012, sd=0.004, margin=0.0056),
        ],
    )
    same = claim(
        "same-loss",
        mean=0.0005,
        sd=0.002,
        margin=0.01,
        outcome="reproduced",
        test="equivalence",
        primary=False,
        unit="",
        factor=1.0,
        sentence="Without scale-invariant weights the two train alike: the loss differs by less than 0.01.",
    )
    norm = claim(
        "slower-norm",
        mean=math.log(1.6),
        sd=0.06,
        margin=math.log(1.1),
        outcome="reproduced",
        scale="log",
        primary=False,
        unit="",
        factor=1.0,
        sentence="The weight norm of AdamP is 1.6 times smaller (99 % interval 1.5 to 1.7): better.",
    )
    document: Doc = {
        "format": 1,
        "slug": slug,
        "question": "Does projecting out the radial part of the step keep the effective step size alive?",
        "scale": "desk",
        "protocol": 2,
        "tested_on": "digits with 20k parameters",
        "paper_setup": "ImageNet, ResNet-50",
        "scope_sentence": "tested on digits with 20k parameters; the paper: ImageNet, ResNet-50",
        "published": True,
        "seeds_note": "Seeds derive from the slug, the protocol and the look.",
        "protocols": [
            {"protocol": 1, "changed_because": ""},
            {"protocol": 2, "changed_because": "the learning-rate grid was too coarse for every arm"},
        ],
        "verdict": {
            "outcome": "reproduced",
            "control": "survives",
            "sentence": "AdamP beats Adam by 1.1 points on digits, and the gain survives its control.",
        },
        "claims": [gain, exact("norm-growth"), ordered, same, norm, cost()],
        "metrics": [
            {
                "name": "accuracy",
                "label": "test accuracy",
                "higher": True,
                "worst": 0.1,
                "unit": "%",
                "scale_factor": 100,
            },
            {"name": "loss", "label": "", "higher": False, "worst": 2.3, "unit": "", "scale_factor": 1},
        ],
        "conditions": [{"name": "lr scale", "values": [0.25, 1, 4]}],
        "arms": [
            {
                "name": "Adam",
                "label": "torch.optim.Adam",
                "role": "baseline",
                "settings": {"betas": "(0.9, 0.999)"},
            },
            {"name": "AdamP", "label": "the paper's optimizer", "role": "method", "settings": {"delta": 0.1}},
            {
                "name": "AdamP, no projection",
                "label": "same code, projection off",
                "role": "ablation",
                "settings": {},
            },
            {"name": "scaled Adam", "label": "Adam with a constant scale", "role": "control", "settings": {}},
        ],
        "cells": cells(arms, conditions=conditions),
        "failures": [],
        "series": series(arms, conditions=conditions[:2]),
        "tuning": [
            {
                "arm": arm,
                "condition": {},
                "trials": [
                    {
                        "hyper": {"lr": lr},
                        "scores": [0.9 + 0.01 * i - 0.002 * k for k in range(3)],
                        "mean": 0.898 + 0.01 * i - 0.02 * (lr > 0.2),
                        "winner": lr == 0.1,
                    }
                    for i, lr in enumerate([0.01, 0.03, 0.1, 0.3])
                ],
                "edge": [],
                "widened": False,
            }
            for arm in arms
        ],
        "figures": [
            {
                "title": "Accuracy by arm",
                "caption": "",
                "x": None,
                "y": "accuracy",
                "arms": None,
                "log_x": False,
                "log_y": False,
            },
            {
                "title": "Accuracy over the learning-rate sweep",
                "caption": "AdamP keeps its lead at every learning rate.",
                "x": "lr scale",
                "y": "accuracy",
                "arms": None,
                "log_x": True,
                "log_y": False,
            },
            {
                "title": "Training loss",
                "caption": "Thin lines are seeds.",
                "x": "step",
                "y": "loss",
                "arms": ["Adam", "AdamP"],
                "log_x": False,
                "log_y": True,
            },
        ],
        "looks": [
            {"n": 10, "alpha": 0.005, "seeds": [100 + i for i in range(10)]},
            {"n": 20, "alpha": 0.02, "seeds": []},
        ],
        "cost": {
            "cells": 168,
            "reused": 12,
            "cpu_seconds": 412.7,
            "stage_seconds": 0,
            "wall_seconds": 221.3,
            "peak_memory": 212 * 2**20,
        },
        "provenance": {
            "trueup": "0.1.0",
            "torch": "2.13.0",
            "numpy": "2.4.0",
            "scipy": "1.17.0",
            "python": "3.11.9",
            "cpu": "2 cores",
            "threads": 1,
            "device": "cpu",
            "os": "Linux",
            "date": "2026-11-24",
            "fingerprint": "5d41402abc4b2a76b9719d911017c592",
            "data": [
                {
                    "name": "digits",
                    "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
                    "licence": "CC BY 4.0",
                }
            ],
        },
    }
    return copy.deepcopy(document) | changes


def partly() -> Doc:
    """A study with one claim reproduced, one contradicted, and a gain that its control explains."""
    doc = study("ghost-batch-norm")
    good = claim(
        "ghost-closes-gap",
        mean=0.02,
        sd=0.006,
        margin=0.005,
        outcome="reproduced",
        survives="explained",
        sentence="Ghost statistics win back 2.0 points of the gap (99 % interval 1.4 to 2.6): better.",
        control_sentence="But the large batch with as many updates does as well: its control explains it.",
    )
    good["controls"] = [control("large, longer", good, mean=-0.001, sd=0.002, outcome="contradicted")]
    bad = claim(
        "log-distance",
        mean=-0.004,
        sd=0.002,
        margin=0.005,
        outcome="contradicted",
        note="opposite",
        sentence="Contradicted at desk scale: the distance from the start grows with the root of time.",
    )
    doc["claims"] = [good, bad]
    doc["verdict"] = {
        "outcome": "partly",
        "control": "explained",
        "sentence": "The gap closes, but training longer does as well; a law is contradicted at desk scale.",
    }
    return doc


def contradicted() -> Doc:
    """A study in which the paper's claim does not hold."""
    doc = study("mtard")
    bad = claim(
        "clean-accuracy",
        mean=-0.012,
        sd=0.004,
        margin=0.005,
        outcome="contradicted",
        note="opposite",
        sentence="Contradicted at desk scale: two teachers lose 1.2 points (99 % interval -1.6 to -0.8).",
    )
    verdict = {
        "outcome": "contradicted",
        "control": None,
        "sentence": "Contradicted at desk scale: two teachers lose against one.",
    }
    return doc | {"claims": [bad], "verdict": verdict}


def smaller() -> Doc:
    """A study whose gains are below the minimum effect: a difference and a ratio, where lower is better."""
    doc = study("layer-norm")
    gain = claim("lower-loss", mean=0.011, sd=0.004, margin=0.03, outcome="smaller", unit="", factor=1.0)
    gain |= {"arms": ["AdamP", "Adam"], "contrast": "AdamP - Adam, loss", "metric": "loss", "higher": False}
    gain |= {"measure": "loss", "survives": "survives", "skew": -1.4, "missable_divergence": 0.259}
    gain["controls"] = [
        control("scaled Adam", gain, mean=0.009, sd=0.004, outcome="reproduced") | {"margin": 0.0}
    ]
    norm = claim(
        "slower-norm",
        mean=math.log(2.486 / 1.996),
        sd=0.02,
        margin=math.log(1.4),
        outcome="smaller",
        scale="log",
        unit="",
        factor=1.0,
        arms=["AdamP", "Adam"],
        contrast="AdamP / Adam, norm",
        metric="norm",
        measure="weight norm",
        higher=False,
    )
    doc["claims"] = [norm, gain]
    for each in doc["claims"]:
        each["sentence"] = sentences.claim_sentence(each, "desk")
        each["control_sentence"] = sentences.control_sentence(each)
        each["details"] = sentences.claim_details(each)
    scope = sentences.scope_sentence(doc["tested_on"], doc["paper_setup"])
    doc["verdict"] = {
        "outcome": "smaller",
        "control": "survives",
        "sentence": sentences.paper_sentence("smaller", doc["claims"], "desk"),
        "details": sentences.paper_details("smaller", "survives", doc["claims"], "desk", scope),
    }
    return doc | {"scope_sentence": scope}


def inconclusive() -> Doc:
    """A study in which the problem did not arise and a rival sits at its grid's edge."""
    doc = study("power-norm")
    illness = claim(
        "text-statistics-fluctuate",
        mean=0.001,
        sd=0.01,
        margin=0.01,
        outcome="inconclusive",
        n=20,
        primary=False,
        sentence="Batch statistics of text do not fluctuate measurably more here.",
        more_seeds=14,
    )
    gain = claim(
        "lower-perplexity",
        mean=0.3,
        sd=0.8,
        margin=0.1,
        outcome="inconclusive",
        n=20,
        unit="",
        factor=1.0,
        requires=["text-statistics-fluctuate"],
        note="the problem did not arise here (text-statistics-fluctuate)",
        sentence="Nothing can be said of perplexity: the problem did not arise here.",
    )
    doc["claims"] = [illness, gain]
    doc["tuning"][0] |= {"edge": ["lr"], "widened": True}
    doc["verdict"] = {
        "outcome": "inconclusive",
        "control": None,
        "sentence": "Inconclusive: the problem did not arise here.",
    }
    return doc


def incomplete() -> Doc:
    """A study with failed and diverged cells."""
    doc = study("stable-spam")
    trace = (
        'Traceback (most recent call last):\n  File "study.py", line 3\nRuntimeError: <b>4-bit</b> overflow'
    )
    for cell in doc["cells"][:3]:
        cell |= {"status": "failed", "numbers": {}, "error": trace}
    doc["cells"][0]["numbers"] = {"accuracy": 0.5}  # what a cell returned before it failed is no result
    for cell in doc["cells"][40:45]:
        cell["status"] = "diverged"
        cell["numbers"]["accuracy"] = 0.1
    broken = claim(
        "stabler-than-16-bit", mean=0, sd=0.01, margin=0.01, outcome="incomplete", diverged={"AdamP": 5}
    )
    broken |= {
        "mean": None,
        "low": None,
        "high": None,
        "d": [],
        "pvalue": None,
        "n": 7,
        "sentence": "3 cells failed: incomplete.",
    }
    doc["failures"] = [{"name": "tuning trial AdamP lr 0.3", "error": trace}]
    verdict = {"outcome": "incomplete", "control": None, "sentence": "Incomplete: 3 cells failed."}
    return doc | {"claims": [broken], "verdict": verdict, "published": False}


def smoke() -> Doc:
    """A study at smoke scale, which has no verdict."""
    return study(
        "evonorm",
        scale="smoke",
        published=False,
        claims=[],
        tuning=[],
        looks=[],
        verdict={
            "outcome": "none",
            "control": None,
            "sentence": "Smoke scale: the parts run; nothing is claimed.",
        },
    )


def own() -> Doc:
    """A user's own study, which is in no catalogue."""
    return study(
        "my-two-optimizers", question="Is my optimizer better on my model?", paper_setup="", published=False
    )


def nasty() -> Doc:
    """A study in which every text is hostile."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k in KEPT else poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return f"{value}{NASTY}" if isinstance(value, str) else value

    doc: Doc = poison(incomplete() | {"claims": [*study()["claims"], *incomplete()["claims"]]})
    doc["cells"][0]["error"] += "\ud800 lone surrogate"
    return doc | {"slug": "nasty"}


KEPT = ("slug", "scale", "outcome", "control", "kind", "test", "role", "status", "origin", "survives")

PAPERS: list[Doc] = [
    {
        "slug": slug,
        "title": title,
        "authors": authors,
        "year": 2015 + i % 10,
        "arxiv": f"20{i:02d}.0{i:04d}",
        "venue": "",
        "area": area,
        "problem": problem,
        "state": state,
        "fidelity": "reconstructed" if slug == "power-norm" else "official",
        "reconstructed": slug == "power-norm",
        "reference": "the authors' code",
        "names": ["trueup.optim.AdamP", "trueup.quantization.fake_quantize_int4_symmetric"]
        if state == "available"
        else [],
        "usage": "opt = trueup.optim.AdamP(model.parameters(), 1e-3)\nloss.backward()\nopt.step()"
        if state == "available"
        else "",
    }
    for i, (slug, title, authors, area, problem, state) in enumerate(
        [
            (
                "layer-norm",
                "Layer Normalization",
                "Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton",
                "nn",
                "training depends on the mini-batch: recurrent nets and tiny batches suffer",
                "available",
            ),
            (
                "adamp",
                "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
                "Byeongho Heo, Sanghyuk Chun",
                "optim",
                "momentum makes the effective step size of scale-invariant weights decay too fast",
                "available",
            ),
            (
                "power-norm",
                "PowerNorm: Rethinking Batch Normalization in Transformers",
                "Sheng Shen",
                "nn",
                "batch statistics of text fluctuate, so batch normalisation fails in transformers",
                "available",
            ),
            (
                "mtard",
                "Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation",
                "Shiji Zhao, Xizhe Wang",
                "distillation",
                "adversarial training costs clean accuracy",
                "available",
            ),
            (
                "ghost-batch-norm",
                "Train longer, generalize better: closing the gap in large batch training",
                "Elad Hoffer, Itay Hubara, Daniel Soudry",
                "nn",
                "large batches generalise worse",
                "available",
            ),
            (
                "stable-spam",
                "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam",
                "Tianjin Huang",
                "optim",
                "4-bit training diverges: spikes and unstable gradient norms",
                "available",
            ),
            (
                "evonorm",
                "Evolving Normalization-Activation Layers",
                "Hanxiao Liu",
                "nn",
                "normalisation and activation are designed apart; batch-free normalisation lags behind",
                "available",
            ),
            (
                "partial-correlation",
                "Partial Correlations in Compositional Data Analysis",
                "Ionas Erb",
                "estimators",
                "correlations between parts of a whole are spurious",
                "available",
            ),
            *[
                (
                    f"planned-{k}",
                    f"A Paper That Is Still to Come, Number {k}",
                    "Ada Lovelace, Charles Babbage",
                    area,
                    "a problem that waits for its remedy",
                    "planned",
                )
                for k, area in enumerate(
                    ["audio", "text", "vision", "context", "coreset", "federated"] * 7, 9
                )
            ],
        ]
    )
]


def event(name: str, **more: Any) -> Doc:
    """An event of a published verdict's history."""
    return {"event": name, "date": "2026-11-24", "protocol": 1, "verdict": "reproduced", **more}


LEDGER: dict[str, Doc] = {
    "adamp": {**study(), "cells": [], "series": [], "standing": "stale"},
    "partial-correlation": {
        **study("partial-correlation"),
        "cells": [],
        "series": [],
        "claims": [exact("reference-free")],
        "protocol": 1,
        "standing": "certified",
        "history": [
            event("published", commit="c0ffee", reason="first published"),
            event("published", commit="beef", reason="a bug mended"),
            event("certified", commit="f00d", cells=24, equal_to_evidence=24),
            event("replicated", attempt=1, agrees=True, effects=[]),
        ],
        "figures": [],
    },
}


def outcomes() -> list[Doc]:
    """One of each."""
    return [study(), partly(), contradicted(), inconclusive(), incomplete(), smoke(), own()]
