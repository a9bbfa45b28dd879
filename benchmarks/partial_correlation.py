"""Speed and memory of CompositionalPartialCorrelation against the pseudo-inverse routes that it replaces.

Both sides go from raw parts to the matrix of partial correlations, log-ratios and covariance included. Five
sixths of our time are BLAS's symmetric product, Cholesky factor and inverse, so the ratios mostly compare its
rates with those of a decomposition and differ by machine. Measured on AMD EPYC: 0.13 to 0.16 of the time of
the singular value decomposition, 0.20 to 0.25 of that of the eigenvalues. The bounds are just above.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from benchmarks.harness import Measured, Row
from trueup.estimators import CompositionalPartialCorrelation, clr

# RSS of a fresh process, sampled every millisecond: it includes torch's allocations, but no earlier row's.
_PEAK = """
import sys, threading, time, numpy as np, torch
from trueup.estimators import CompositionalPartialCorrelation
torch.set_num_threads(1)
parts, samples = int(sys.argv[1]), int(sys.argv[2])
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
rng = np.random.default_rng(0)
CompositionalPartialCorrelation().fit(np.exp(rng.standard_normal((300, 200)))).partial_correlation_
X = rng.standard_normal((samples, parts))
np.exp(X, out=X)
before = peak = resident()
over = threading.Event()
def watch():
    global peak
    while not over.wait(0.001):
        peak = max(peak, resident())
watcher = threading.Thread(target=watch)
watcher.start()
model = CompositionalPartialCorrelation().fit(X)
correlation = model.partial_correlation_
over.set()
watcher.join()
print((max(peak, resident()) - before) / (parts * parts * 8))
"""


def rows() -> Iterator[Row | Measured]:
    parts, samples = 1000, 1200
    X = np.exp(np.random.default_rng(0).standard_normal((samples, parts)))
    values = torch.from_numpy(X)

    scipys = (
        ThreadpoolController()
    )  # torch's thread setting does not reach scipy's BLAS; built once, since it takes 2 ms

    def ours() -> object:
        with scipys.limit(limits=1):
            return CompositionalPartialCorrelation().fit(X).partial_correlation_

    def by_pinv(hermitian: bool) -> object:
        precision = torch.linalg.pinv(torch.cov(clr(values).mT), hermitian=hermitian)
        scale = precision.diagonal().rsqrt()
        return -precision * scale[:, None] * scale

    what = f"CompositionalPartialCorrelation, float64, {samples} x {parts}"
    yield Row(what, "pseudo-inverse by SVD (torch.linalg.pinv)", 0.17, ours, lambda: by_pinv(False))
    yield Row(what, "pseudo-inverse by eigenvalues (hermitian)", 0.27, ours, lambda: by_pinv(True))

    parts, samples = 5000, 6000
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(parts), str(samples)], capture_output=True, text=True, check=True
    )
    yield Measured(
        f"peak memory beyond the input, {samples} x {parts}, fitted matrices included",
        "parts^2 x 8 bytes",
        float(done.stdout),
        "x",
        3.0,
    )
