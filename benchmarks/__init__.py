"""Speed and memory against peers: `python -m benchmarks [NAME...]`. Figures, not tests.

`benchmarks/results/` keeps whole runs; `--against FILE` prints one of them beside a new one.
"""
