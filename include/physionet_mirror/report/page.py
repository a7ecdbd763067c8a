"""Renders a report for people: ``report.html`` and the table in the log, both from ``report.json`` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from physionet_mirror.records import ReportedTransfer, RunReport
from physionet_mirror.s3.prices import PRICES_AS_OF
from physionet_mirror.words import UNDER_WAY, duration, money, share, size

LEVEL_MEANS: Mapping[str, str] = {
    "count": "each one is listed in the bucket with a size above zero; its bytes were not compared",
    "checksum": "each one is in the bucket and the SHA-256 that S3 holds for it equals PhysioNet's",
    "content": "each one was read back from the bucket and its bytes hash to PhysioNet's SHA-256",
}


def summary_table(report: RunReport) -> str:
    """The report as a narrow text table for the log; the last line has the counts in one sentence."""
    result, transfer, verification, requests = report.result, report.transfer, report.verification, report.requests
    lines = [
        ("selected", f"{result.selected:,}", ""),
        ("present", f"{result.present:,}", ""),
        ("verified", f"{result.verified:,}", f"{result.level}, {size(result.bytes)}"),
        ("missing", f"{result.missing:,}", ""),
        ("wrong", f"{result.wrong:,}", ""),
        ("empty", f"{result.empty:,}", ""),
        (
            "stored",
            f"{transfer.images:,}",
            _speed(transfer, report.noun) if transfer.images else "nothing had to be fetched",
        ),
        *([("out", money(transfer.out_usd), f"from us-east-1 to {transfer.out_to}")] if transfer.out_to else []),
        ("remembered", f"{verification.remembered:,}", "verified before, unchanged since"),
        ("S3 requests", f"{sum(requests.by_kind.values()):,}", f"${requests.cost_usd:.4f}"),
        ("index rows", f"{report.files.index_rows:,}", ""),
    ]
    if verification.read_back:
        lines.insert(-2, ("read back", f"{verification.read_back:,}", ""))
    rule = "-" * 64
    table = [rule, *(f"{name:<12}{count:>11}  {what}".rstrip() for name, count, what in lines), rule]
    table += [f"{failure.count:>11,}  {failure.reason}" for failure in report.failures]
    if report.failures:
        table += [f"Which ones: {report.destination.uri}/{report.files.failed_images}"]
    table += [f"Report: {report.destination.uri}/{report.files.report_html}"]
    table += [
        f"{result.verified:,} of {result.selected:,} selected {report.noun}s verified ({result.level}): "
        f"{result.missing:,} missing, {result.wrong:,} wrong, {result.empty:,} empty"
    ]
    return "\n".join(table)


def html(report: RunReport) -> str:
    """``report.html``: one self-contained page, without scripts and without any image of a patient."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from physionet_mirror.report import plots  # imports matplotlib

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": _unbroken(size),
        "duration": _unbroken(duration),
        "share": _unbroken(share),
        "money": money,
    }
    environment.filters["number"] = "{:,}".format
    many = UNDER_WAY[report.mode][1]
    return environment.get_template("report.html.j2").render(
        **vars(report),
        many=many,
        prices_as_of=PRICES_AS_OF,
        means=LEVEL_MEANS[report.result.level],
        throughput=[Markup(svg) for svg in plots.throughput(report.transfer.series, many, report.noun)],  # noqa: S704
        size_plot=[Markup(svg) for svg in plots.sizes(report.sizes, report.noun)],  # noqa: S704
    )


def _speed(transfer: ReportedTransfer, noun: str) -> str:
    return (
        f"{size(transfer.bytes)} in {duration(transfer.seconds)}, "
        f"{transfer.images_per_second:.1f} {noun}s/s, {size(transfer.bytes_per_second)}/s"
    )


def _unbroken(words: Callable[..., str]) -> Callable[..., str]:
    """Formats with no-break spaces, so that a line of the page does not end between 15 and s."""
    return lambda *args: words(*args).replace(" ", "\u00a0")
