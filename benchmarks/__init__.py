"""Speed and memory against peers: `python -m benchmarks [NAME...]`. Figures, not tests."""
