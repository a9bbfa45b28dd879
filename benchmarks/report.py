"""The report: fifty studies of fifty cells written to disk, and its pages opened in a headless browser.

The peer column holds no library: the figures are seconds and megabytes, each against its bound. The pages are
opened in fresh browser contexts, so that no code cache helps; without a Chromium only the writing is timed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured
from trueup.lab.report import write_report

STUDIES, CELLS, ROUNDS = 50, 50, 5
NO_PEER = "none"


def fifty() -> list[dict[str, Any]]:
    """Fifty studies of fifty report cells: five arms of ten seeds, claims, figures, a tuning grid."""
    # the outcome documents are those of the report's own tests
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "lab" / "report"))
    import outcomes

    arms = ["Adam", "AdamP", "AdamP, no projection", "scaled Adam", "SGD"]
    made = []
    for i in range(STUDIES):
        document = outcomes.study(f"study-{i}")
        document["arms"].append(
            {"name": "SGD", "label": "torch.optim.SGD", "role": "baseline", "settings": {}}
        )
        document |= {
            "cells": outcomes.cells(arms, CELLS // len(arms), seed=i),
            "series": outcomes.series(arms, CELLS // len(arms)),
            "conditions": [],
        }
        assert len(document["cells"]) == CELLS
        made.append(document)
    return made


def rows() -> Iterator[Measured]:
    """Seconds to write the report, seconds to open its heaviest pages, megabytes that a page loads."""
    documents = fifty()
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            index = write_report(folder, documents, [], {})
            seconds.append(time.perf_counter() - start)
        what = f"report of {STUDIES} studies x {CELLS} cells, written"
        yield Measured(what, NO_PEER, statistics.median(seconds), "s", 5.0)

        chromium = (
            os.environ.get("TRUEUP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        )
        if chromium is None:
            return
        for name, path in (("ledger", index), ("study page", index.with_name("study-0.html"))):
            opened, megabytes = _open(chromium, path)
            yield Measured(f"{name}, opened", NO_PEER, opened, "s", 1.0)
            yield Measured(f"{name}, all that it loads", NO_PEER, megabytes, "MB", 6.0)


def _open(chromium: str, path: Path) -> tuple[float, float]:
    """Median seconds until the page's load event with every script run, and megabytes read."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(ROUNDS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            read: set[str] = set()
            page.on("request", lambda request, read=read: read.add(request.url))
            page.goto(path.as_uri())
            seconds.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1e3)
            context.close()
        browser.close()
    files = [url.removeprefix("file://") for url in read if url.startswith("file://")]
    return statistics.median(seconds), sum(Path(file).stat().st_size for file in files) / 1e6
