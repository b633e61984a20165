"""The frame of report.html: a string, so that it travels with the code in every install."""

from string import Template

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #c2410c; }
  * { box-sizing: border-box; }
  body { margin: 0; background: #f6f5f2; color: var(--ink);
         font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
  main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
  h1 { font-size: 28px; margin: 0 0 16px; letter-spacing: -0.01em; }
  h2 { font-size: 19px; margin: 0 0 4px; }
  .verdict { background: #fff; border-left: 4px solid var(--accent); border-radius: 4px;
             padding: 16px 20px; margin: 0 0 24px; font-size: 17px; }
  .verdict p { margin: 0 0 8px; }
  .verdict p:last-child { margin: 0; }
  section { background: #fff; border-radius: 8px; padding: 22px 24px; margin: 0 0 20px;
            border: 1px solid var(--line); }
  section > p { color: var(--soft); margin: 0 0 14px; font-size: 14.5px; }
  figure { margin: 0; text-align: center; }
  figure svg { width: 100%; height: auto; }
  figure.narrow svg { max-width: 460px; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; font-size: 12.8px;
          font-variant-numeric: tabular-nums; }
  th, td { padding: 7px 6px; text-align: right; border-bottom: 1px solid var(--line);
           white-space: nowrap; }
  th:first-child { text-align: left; }
  tr:first-child th { color: var(--soft); font-weight: 600; }
  tr:last-child > * { border-bottom: none; }
  small { display: block; color: var(--soft); font-weight: 400; font-size: 12px; }
  .dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
  .how th { color: var(--soft); font-weight: 600; width: 160px; }
  .how tr:first-child th { color: var(--soft); }
  .how td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<div class="verdict">$verdict</div>
<section><h2>Side by side</h2>
<p>Mean ± standard deviation over the seeds, on the test split.</p>
<div class="scroll">$table</div>
<p style="margin-top: 18px">Differences with their 95 % intervals over users, paired.</p>
<div class="scroll">$differences</div></section>
$body
<section class="how"><h2>How it was run</h2><table>$how</table></section>
</main>
</body>
</html>
""")
