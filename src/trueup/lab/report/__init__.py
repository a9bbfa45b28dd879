"""The report: a folder of static HTML that opens from disk without a network, and the same as JSON and CSV.

>>> from trueup.lab.report import write_report
>>> index = write_report("report", outcomes, papers, ledger)  # doctest: +SKIP
"""

from trueup.lab.report._site import ReportError, write_calibration, write_comparison, write_report

__all__ = ["ReportError", "write_calibration", "write_comparison", "write_report"]
