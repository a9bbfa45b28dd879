"""`python -m trueup.cli` is `trueup`."""

from trueup.cli import main

main()
