"""The command line: `trueup list`, `show`, `run`, `compare`, `calibrate`, `report`, `ledger`, `data`.

Exit codes: 0 it ran, 1 cells failed, 2 the command cannot be carried out as given, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys

try:
    import rich  # noqa: F401
    import typer
except ModuleNotFoundError as error:  # pragma: no cover
    sys.exit(f"the command line needs the cli extra ({error.name} is missing): pip install 'trueup[cli]'")

from trueup.cli import _calibrate, _compare, _data, _ledger, _papers, _report, _run
from trueup.cli._console import errors, escape

app = typer.Typer(
    name="trueup",
    help="Methods that keep training on track, and the lab that tests their claims.\n\n"
    "Start with `trueup list`, then `trueup show adamp`, then `trueup run ghost-batch-norm`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("list")(_papers.list_papers)
app.command()(_papers.show)
app.command()(_run.run)
app.command()(_report.report)
app.command()(_compare.compare)
app.command()(_calibrate.calibrate)

ledger_app = typer.Typer(help="Published verdicts: show, publish, replicate, certify.", no_args_is_help=False)
ledger_app.callback(invoke_without_command=True)(_ledger.show)
ledger_app.command()(_ledger.publish)
ledger_app.command()(_ledger.rejudge)
ledger_app.command()(_ledger.evidence)
ledger_app.command()(_ledger.replicate)
ledger_app.command()(_ledger.certify)
app.add_typer(ledger_app, name="ledger")

data_app = typer.Typer(
    help="Real data sets: list them, and fetch the larger ones once.", no_args_is_help=False
)
data_app.callback(invoke_without_command=True)(_data.show)
data_app.command()(_data.fetch)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; an error that a user can fix is one message and exit code 2, not a traceback."""
    from trueup.data import FetchError
    from trueup.lab._engine import EngineError
    from trueup.lab._store import StoreError
    from trueup.lab.report import ReportError

    try:
        app()
    except (EngineError, FetchError, FileNotFoundError, ReportError, StoreError, ValueError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
