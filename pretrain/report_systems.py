"""The systems of `report` side by side: sentences, tables and figures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import fmean, stdev

from data_prep.figures import BLUE, GREY, RUST, house_style, new_figure, svg
from data_prep.html_page import Html, figure, join, section, table
from pretrain.system_figures import Protocol, System
from pretrain.system_names import BLENDED, OURS, Kind, whole

_COLOURS: dict[Kind, str] = {"ours": RUST, "knock_out": BLUE, "other": GREY}
_SHOWN = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR"}


def verdict(protocol: Protocol) -> str | None:
    """The release and its blend against the best of the others, in a sentence each.

    None where there is nothing of ours or no other.
    """
    others = [system for system in protocol.systems if system.kind == "other"]
    said = [
        _verdict(protocol, ours, others)
        for name in (OURS, BLENDED)
        if others and (ours := [system for system in protocol.systems if system.name == name])
    ]
    return " ".join(said) or None


def system_sections(protocols: Sequence[Protocol]) -> list[Html]:
    """A section a protocol."""
    return [_section(protocol) for protocol in protocols]


def shown_name(metric: str) -> str:
    """recall@20 → Recall@20."""
    name, at, k = metric.partition("@")
    return f"{_SHOWN.get(name, name)}{at}{k}"


def _verdict(protocol: Protocol, ours: Sequence[System], others: Sequence[System]) -> str:
    best = max(others, key=lambda system: system.recall)
    mean = _recall(ours)
    runs = f" (mean of {len(ours)} files)" if len(ours) > 1 else ""
    against = (
        f"{mean / best.recall:.2f} times the best other system here"
        if best.recall
        else "where no other system finds anything; the first of them is"
    )
    sentence = (
        f"{protocol.name}: {ours[0].name} finds {shown_name(protocol.metric)} {mean:.4f}{runs}, "
        f"{against} ({best.label}: {best.recall:.4f})"
    )
    bounds = [one for system in (*ours, best) for one in (system.low, system.high)]
    if None not in bounds and best.high is not None and best.low is not None:
        apart = all(
            (system.low or 0) > best.high or (system.high or 0) < best.low for system in ours
        )
        sentence += f"; their 95 % intervals {'do not overlap' if apart else 'overlap'}"
    for name in list(best.metrics)[1:]:
        leader = max(others, key=lambda system: system.metrics.get(name, 0.0))
        own = fmean(system.metrics.get(name, 0.0) for system in ours)
        if own < leader.metrics[name]:
            sentence += (
                f"; by {shown_name(name)} {leader.label} is ahead, {leader.metrics[name]:.4f} to "
                f"{own:.4f}"
            )
    return sentence + "."


def _section(protocol: Protocol) -> Html:
    counts = [
        f"{count:,} {what}"
        for count, what in (
            (protocol.num_cases, "cases"),
            (protocol.num_candidates, "candidates each"),
        )
        if count is not None
    ]
    text = (
        f"{', '.join(counts)}{'. ' if counts else ''}Every candidate is ranked, what is masked "
        "left out. Bars and brackets are 95 % intervals of "
        f"{shown_name(protocol.metric)} over users, by drawing users again where the file has "
        "them, else 1.96 standard errors each way. They say nothing of other seeds."
    )
    notes = [Html(f"<p><b>To know:</b> {html.escape(note)}</p>") for note in protocol.notes]
    compared = [system for system in protocol.systems if system.kind != "knock_out"]
    content = [figure(_figure(protocol.metric, compared)), _table(compared)] if compared else []
    content += [*notes, *_knock_outs(protocol)]
    if protocol.slices:
        content += [Html("<h3>By slice of the targets</h3>"), _slices(protocol)]
    return section(f"Systems: {protocol.name}", text, *content)


def _knock_outs(protocol: Protocol) -> list[Html]:
    """Our systems above what they are where items lack a modality, each the mean of its files."""
    found: dict[str, list[System]] = {}
    for system in protocol.systems:
        found.setdefault(system.name, []).append(system)
    metrics = list(protocol.systems[0].metrics)
    rows = []
    for ours in (OURS, BLENDED):
        lacking = [name for name in found if whole(name) == ours != name]
        recall_of_all = _recall(found[ours]) if lacking and ours in found else 0.0
        for name in [ours, *lacking] if recall_of_all else lacking:
            kept = f"{_recall(found[name]) / recall_of_all:.0%}" if recall_of_all else "-"
            cells = [_mean(found[name], metric) for metric in metrics]
            rows.append([_name(found[name][0], label=name), *cells, kept])
    if not rows:
        return []
    heading = ["system", *map(shown_name, metrics), f"{shown_name(metrics[0])} kept"]
    text = (
        "<h3>Knock-outs</h3><p>The same release where items lack a modality, but for those that "
        "have nothing else: what the other modalities carry. Means over the files.</p>"
    )
    return [Html(text), table(heading, rows)]


def _recall(files: Sequence[System]) -> float:
    return fmean(system.recall for system in files)


def _ordered(systems: Sequence[System]) -> list[System]:
    return sorted(systems, key=lambda system: -system.recall)


def _table(systems: Sequence[System]) -> Html:
    names = list(dict.fromkeys(name for system in systems for name in system.metrics))
    best = {n: max(system.metrics.get(n, 0.0) for system in systems) for n in names}
    rows = []
    for system in _ordered(systems):
        cells = [_value(system.metrics.get(name), best[name]) for name in names]
        users = "-" if system.num_users is None else f"{system.num_users:,}"
        rows.append([_name(system), *cells, _interval(system), users])
    for own in (OURS, BLENDED):
        files = [system for system in systems if system.name == own]
        if len(files) > 1:
            spread = [_mean(files, name) for name in names]
            rows.append(
                [f"{own}: mean ± standard deviation of {len(files)} files", *spread, "", ""]
            )
    heading = [shown_name(name) for name in names]
    return table(["system", *heading, f"95 % of {heading[0]}", "users"], rows)


def _slices(protocol: Protocol) -> Html:
    """Recall of every system within every slice, and for how many users it is counted."""
    found = {
        part: {system.label: system for system in systems}
        for part, systems in protocol.slices.items()
    }
    heading = ["system"]
    for part, systems in found.items():
        users = max((system.num_users or 0 for system in systems.values()), default=0)
        name = part.replace("_", " ")
        heading.append(Html(f"{html.escape(name)}<small>{users:,} users</small>"))
    best = {p: max(system.recall for system in systems.values()) for p, systems in found.items()}
    rows = []
    for system in _ordered(protocol.systems):
        # A slice's figures may be the same in all files where those of all targets are not.
        own = {part: s.get(system.label) or s.get(system.name) for part, s in found.items()}
        cells = [_value(None if one is None else one.recall, best[p]) for p, one in own.items()]
        rows.append([_name(system), *cells])
    return table(heading, rows)


def _name(system: System, *, label: str | None = None) -> Html:
    dot = f'<span class="dot" style="background:{_COLOURS[system.kind]}"></span>'
    return join([Html(dot), label or system.label])


def _value(value: float | None, best: float) -> Html:
    if value is None:
        return Html("-")
    return Html(f"<b>{value:.4f}</b>" if value == best and best > 0 else f"{value:.4f}")


def _interval(system: System) -> str:
    if system.low is None or system.high is None:
        return "-"
    return f"{system.low:.4f} to {system.high:.4f}"


def _mean(systems: Sequence[System], name: str) -> str:
    values = [system.metrics[name] for system in systems if name in system.metrics]
    if len(values) > 1:
        return f"{fmean(values):.4f} ± {stdev(values):.4f}"
    return f"{values[0]:.4f}" if values else "-"


def _figure(metric: str, compared: Sequence[System]) -> str:
    systems = _ordered(compared)[::-1]
    with house_style():
        drawing, (axes,) = new_figure(9, 0.8 + 0.27 * len(systems))
        for place, system in enumerate(systems):
            colour = _COLOURS[system.kind]
            error = None
            if system.low is not None and system.high is not None:
                value = system.recall
                error = [[max(value - system.low, 0)], [max(system.high - value, 0)]]
            axes.errorbar(system.recall, place, xerr=error, fmt="o", color=colour, ms=6, capsize=3)
        axes.set_yticks(range(len(systems)), [system.label for system in systems])
        axes.set_ylim(-0.6, len(systems) - 0.4)
        axes.set_xlim(left=0)
        axes.set_xlabel(shown_name(metric))
        axes.grid(axis="y", visible=False)
        return svg(drawing)
