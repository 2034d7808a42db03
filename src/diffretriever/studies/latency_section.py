"""The latency of encoding and searching as a section: curves, points and ratios."""

from __future__ import annotations

from diffretriever.machine import Machine
from diffretriever.studies.document import Block, Cell, Paragraph, Section, Table, cells
from diffretriever.studies.figures.curves import Curve, CurvePanel, curves_figure
from diffretriever.studies.figures.style import Figure
from diffretriever.studies.latency_results import LatencyResults


def latency_section(measured: LatencyResults, number: int) -> Section:
    """Return the section of one run of the latency study.

    Args:
        measured: the run.
        number: which run of the report, for the names of its figures.
    """
    where = machine_text(measured.machine, measured.device)
    kinds = sorted({f"{s.weights} weights in {s.dtype}" for s in measured.systems})
    blocks: list[Block] = [
        Paragraph(
            f"Measured on {where}, {', '.join(kinds)}, after a warm-up, all systems taking turns. A text goes in as "
            "a string; tokenising, prompt, vectors and term weights are part of the time. Searches are exact, over "
            f"random unit vectors in memory.{_busy(measured.machine)}"
        )
    ]
    if measured.encoding or measured.search:
        blocks.append(_figure(measured, where, number))
    if measured.encoding:  # where every length was longer than the systems take, there is none
        blocks.append(_encoding_table(measured))
    if measured.checks:
        blocks.append(_ratio_table(measured))
    if measured.search:
        blocks.append(_search_table(measured))
    if measured.skipped:
        blocks.append(Paragraph("Left out: " + "; ".join(measured.skipped) + "."))
    return Section(f"Latency: {measured.machine.accelerator or measured.device}", tuple(blocks))


def machine_text(machine: Machine, device: str) -> str:
    """Return the machine that counts for a device, in words."""
    if device.startswith("cuda") and machine.accelerator:
        return machine.accelerator
    return f"{machine.processor}, {machine.threads} of {machine.cores} threads"


def _busy(machine: Machine) -> str:
    """Return a warning where other work shared the machine, so that times are longer than they would be alone."""
    if machine.load is None or machine.load <= machine.cores:
        return ""
    return (
        f" Other work shared the machine (load average {machine.load:.1f} on {machine.cores} cores): times are longer "
        "than alone, ratios within a round less so."
    )


def _figure(measured: LatencyResults, where: str, number: int) -> Figure:
    encoding = []
    for system in measured.systems:
        own = [p for p in measured.encoding if p.key == system.key]
        if own:
            encoding.append(
                Curve(
                    system.key,
                    tuple(float(p.length) for p in own),
                    tuple(p.one.median_ms for p in own),
                    tuple(p.one.p95_ms for p in own),
                )
            )
    panels = []
    if encoding:
        panels.append(CurvePanel("Encoding one text", "tokens of the text", "median ms, log scale", tuple(encoding)))
    search = []
    widths = sorted({p.dim for p in measured.search})
    for dim in widths:
        for pair in dict.fromkeys((p.query_slots, p.passage_slots) for p in measured.search):
            own_search = [p for p in measured.search if (p.query_slots, p.passage_slots) == pair and p.dim == dim]
            name = "single" if pair == (1, 1) else f"multi ({pair[0]}, {pair[1]})"
            search.append(
                Curve(
                    name + (f", D={dim}" if len(widths) > 1 else ""),
                    tuple(float(p.passages) for p in own_search),
                    tuple(p.one.median_ms for p in own_search),
                    tuple(p.one.p95_ms for p in own_search),
                )
            )
    if search:
        title = "Searching, one query" + (f", D={widths[0]}" if len(widths) == 1 else "")
        panels.append(CurvePanel(title, "passages, log scale", "median ms, log scale", tuple(search), log_x=True))
    return curves_figure(
        f"latency-{number}",
        "Latency against the length of a text and the size of an index",
        f"Medians; bands reach to the 95th percentile. Batch 1, {where}.",
        panels,
    )


def _encoding_table(measured: LatencyResults) -> Table:
    lengths = sorted({p.length for p in measured.encoding})
    rows = []
    for system in measured.systems:
        row = [Cell(system.key), Cell(f"{system.parameters / 1e6:,.1f}M")]
        for length in lengths:
            own = [p for p in measured.encoding if p.key == system.key and p.length == length]
            row.append(Cell(f"{own[0].one.median_ms:.1f} / {own[0].one.p95_ms:.1f}" if own else "–"))
        for length in (lengths[0], lengths[-1]):
            own = [p for p in measured.encoding if p.key == system.key and p.length == length]
            row.append(Cell(f"{own[0].texts_per_second:,.1f}" if own else "–"))
        rows.append(tuple(row))
    batch = measured.encoding[0].batch
    head = ("system", "weights", *(f"{n} tokens" for n in lengths))
    throughput = tuple(f"texts/s, {n} tokens" for n in (lengths[0], lengths[-1]))
    note = f"Milliseconds, median / 95th percentile, one text at a time; texts per second in batches of {batch}."
    return Table("Encoding", head + throughput, tuple(rows), note=note)


def _ratio_table(measured: LatencyResults) -> Table:
    rows = []
    for check in measured.checks:
        holds = "" if check.passed is None else "yes" if check.passed else "no"
        rows.append(cells(check.name, check.expected, str(check.length), f"{check.value:.2f}", holds))
    head = ("ratio", "expected", "tokens", "measured", "holds")
    note = "Median over the rounds of the ratio within a round. Ranges are the paper's, on one H100 with 7B models."
    return Table("Ratios of encoding latencies", head, tuple(rows), words=2, note=note)


def _search_table(measured: LatencyResults) -> Table:
    rows = []
    for p in measured.search:
        sizes = (f"{p.passages:,}", f"{p.dim:,}", f"{p.vector_bytes / 1e6:,.0f}")
        times = (f"{p.one.median_ms:.2f}", f"{p.one.p95_ms:.2f}", f"{p.queries_per_second:,.0f}")
        rows.append(cells(f"{p.variant} ({p.query_slots}, {p.passage_slots})", *sizes, *times))
    batch = measured.search[0].batch
    head = ("vectors", "passages", "D", "MB", "median ms", "p95 ms", f"queries/s, batches of {batch}")
    return Table("Exact search", head, tuple(rows))
