"""The page of `make fashion`: one self-contained table a protocol, figures beside references."""

from __future__ import annotations

import html
from typing import Any

REFERENCES = {
    "fashion-cold": {"random": 0.0128, "content_knn_raw_text": 0.1437},
    "fashion-all": {
        "popularity": 0.0451,
        "content_knn_raw_text": 0.1302,
        "item_knn": 0.1452,
        "ease": 0.2136,
    },
}
"""Recall@20 as PROTOCOL.md beside the data gives it (EASE with λ 200)."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td.bar { width: 30%; text-align: left; }
td.bar div { background: #9bb8d3; height: .8rem; }
tr.ours { font-weight: 600; } tr.ours td.bar div { background: #d9822b; }
"""


def page(results: dict[str, Any]) -> str:
    """Lay `metrics.json` out as HTML."""
    protocols = [name for name in results if name != "about"]
    body = "\n".join(
        _section(name, results[name], about=results["about"][name]) for name in protocols
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Triptych: fashion</title>'
        f"<style>{STYLE}</style><h1>Fashion: whole-catalogue ranking</h1>\n{body}</html>\n"
    )


def _section(name: str, systems: dict[str, dict[str, float]], *, about: dict[str, Any]) -> str:
    metrics = [metric for metric in next(iter(systems.values())) if "@" in metric]
    recall = metrics[0]
    best = max(values[recall] for values in systems.values()) or 1.0
    rows = []
    for system, values in sorted(systems.items(), key=lambda entry: entry[1][recall]):
        reference = REFERENCES.get(name, {}).get(system)
        cells = [
            html.escape(system),
            f"{values[recall]:.4f} ± {values['se']:.4f}",
            *(f"{values[metric]:.4f}" for metric in metrics[1:]),
            f"{reference:.4f}" if reference else "",
        ]
        bar = f'<td class="bar"><div style="width:{100 * values[recall] / best:.1f}%"></div></td>'
        rows.append(
            f'<tr class="{html.escape(system)}">'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"{bar}</tr>"
        )
    heads = "".join(f"<th>{head}</th>" for head in ("system", *metrics, f"reference {recall}", ""))
    return (
        f"<h2>{html.escape(name)}</h2>"
        f"<p>{about['n_cases']:,} users, {about['n_candidates']:,} candidates, all ranked; the "
        "history is masked, ties are broken against the system; ± is one standard error over "
        f"users. {html.escape(about['note'])}</p>"
        f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
    )
