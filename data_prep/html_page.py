"""The frame of our HTML reports: one file, no script, nothing from elsewhere.

Text is escaped where it enters the page, unless it is `Html` already.
"""

import html
from collections.abc import Iterable, Sequence

_STYLE = """\
  :root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #c2410c; }
  * { box-sizing: border-box; }
  body { margin: 0; background: #f6f5f2; color: var(--ink);
         font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
  h1 { font-size: 28px; margin: 0 0 16px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
  h2 { font-size: 19px; margin: 0 0 4px; }
  h3 { font-size: 14.5px; margin: 20px 0 6px; }
  .lead { background: #fff; border-left: 4px solid var(--accent); border-radius: 4px;
          padding: 16px 20px; margin: 0 0 24px; font-size: 17px; overflow-wrap: anywhere; }
  .lead p { margin: 0 0 8px; }
  .lead p:last-child { margin: 0; }
  section { background: #fff; border-radius: 8px; padding: 22px 24px; margin: 0 0 20px;
            border: 1px solid var(--line); }
  section > p { color: var(--soft); margin: 0 0 14px; font-size: 14.5px; }
  section > * + p { margin-top: 18px; }
  section > h2 + p { margin-top: 0; }
  figure { margin: 0; text-align: center; }
  figure svg { width: 100%; height: auto; }
  figure.narrow svg { max-width: 560px; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; font-size: 12.8px;
          font-variant-numeric: tabular-nums; }
  th, td { padding: 7px 6px; text-align: right; border-bottom: 1px solid var(--line);
           white-space: nowrap; }
  th:first-child { text-align: left; }
  tr:first-child th { color: var(--soft); font-weight: 600; }
  tr:last-child > * { border-bottom: none; }
  small { display: block; color: var(--soft); font-weight: 400; font-size: 12px; }
  th small { white-space: normal; min-width: 180px; max-width: 300px; }
  .dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
  .how th { color: var(--soft); font-weight: 600; width: 160px; }
  .how tr:first-child th { color: var(--soft); }
  .how td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
  .bar { display: block; width: 220px; height: 12px; border-radius: 2px;
         margin-left: 8px; overflow: hidden; }
  .bar i { display: block; height: 100%; }
  .columns { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; align-items: start; }
  td .bar { width: 100%; min-width: 90px; max-width: 220px; margin: 3px 0 0 auto; }
  .text th, .text td { text-align: left; white-space: normal; overflow-wrap: anywhere;
                       unicode-bidi: isolate; max-width: 320px; }
  details > summary { cursor: pointer; font-size: 14.5px; padding: 5px 0; }
  .cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
  .groups { display: flex; flex-wrap: wrap; gap: 4px 32px; }
  .cards.small { display: flex; flex-wrap: wrap; gap: 10px; }
  .small .card { width: 104px; }
  .card { font-size: 12px; line-height: 1.35; overflow-wrap: anywhere; unicode-bidi: isolate; }
  .card img, .card .none { display: block; width: 100%; height: 150px; object-fit: contain;
                           background: #f3f0ec; border-radius: 4px; margin-bottom: 6px; }
  .small .card img, .small .card .none { height: 100px; }
  .card .none { color: var(--soft); padding: 40% 8px 0; text-align: center; }
  .small .card .none { padding-top: 30px; }
  .card b { display: block; }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> Html:
    """The value as text that shows as itself; `Html` stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other, escaped where they are not `Html`."""
    return Html("".join(map(escape, parts)))


def page(*, title: str, lead: Iterable[str], sections: Iterable[Html]) -> str:
    """A whole page: title, the sentences that sum it up, and what they rest on."""
    sentences = join(Html(f"<p>{escape(sentence)}</p>") for sentence in lead)
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<div class="lead">{sentences}</div>\n{body}\n'
        "</main>\n</body>\n</html>\n"
    )


def section(title: str, text: str, *content: Html) -> Html:
    """A card of the page: heading, what to look for, and what there is to see."""
    return Html(f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{join(content)}</section>")


def figure(drawing: str, *, kind: str = "wide") -> Html:
    """An SVG element in its place; `narrow` for one that needs no full width."""
    return Html(f'<figure class="{kind}">{drawing}</figure>')


def table(heading: Sequence[str], rows: Iterable[Sequence[object]], *, kind: str = "") -> Html:
    """Rows of cells under a heading, the first cell of each naming the row.

    Args:
        heading: Names of the columns; without any, the table has no heading.
        rows: As many cells each.
        kind: `text` for cells of free text, `how` for pairs of a name and a value.
    """
    lines = [_row("th", heading)] if heading else []
    lines += [f"<tr><th>{escape(row[0])}</th>{_cells('td', row[1:])}</tr>" for row in rows]
    return Html(f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>')


def bar(share: float, *, colour: str, rest: str = "#f3f0ec") -> Html:
    """A share of 0 to 1 as a bar; `rest` colours what is left to 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    return Html(
        f'<span class="bar" style="background:{rest}">'
        f'<i style="width:{width:.2f}%;background:{colour}"></i></span>'
    )


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{_cells(tag, cells)}</tr>"


def _cells(tag: str, cells: Sequence[object]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
