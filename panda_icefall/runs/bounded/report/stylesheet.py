"""The styles of the HTML report: light and dark screens, and paper."""

__all__ = ["STYLESHEET"]

STYLESHEET = """
:root {
  color-scheme: light dark;
  --ink: #1f2328; --muted: #59636e; --line: #d6dbe1; --paper: #ffffff; --soft: #f4f6f8;
  --good: #1d6fa5; --bad: #a3195b; --open: #59636e; --partial: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --muted: #a0a8b1; --line: #3a4149; --paper: #16191d; --soft: #20252b;
    --good: #6db4e4; --bad: #f07ab0; --open: #a0a8b1; --partial: #e3b341;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-top: .9rem;
  border-top: 1px solid var(--line);
}
p { margin: .5rem 0; overflow-wrap: anywhere; }
.kind { color: var(--muted); font-size: .85rem; margin: 0 0 .2rem; }
.state {
  display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; margin: 0 0 1rem;
  padding: .6rem .9rem; border-left: .4rem solid var(--tone); background: var(--soft);
}
.state strong { color: var(--tone); font-size: 1.15rem; letter-spacing: .03em; }
.good { --tone: var(--good); } .bad { --tone: var(--bad); }
.open { --tone: var(--open); } .partial { --tone: var(--partial); }
.alert { border-left: .25rem solid var(--bad); padding-left: .7rem; font-weight: 600; }
.verdicts { list-style: none; margin: 0 0 1.2rem; padding: 0; }
.verdicts li {
  display: flex; gap: .7rem; padding: .35rem 0; border-bottom: 1px solid var(--line);
  break-inside: avoid;
}
.verdicts div { flex: 1; min-width: 0; }
.verdicts .sign { color: var(--tone); font-weight: 700; width: 1.2em; text-align: center; }
.verdicts em { color: var(--tone); font-style: normal; font-weight: 600; margin-left: .3em; }
.verdicts p { margin: 0; color: var(--muted); font-size: .9rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; vertical-align: top; }
th:first-child, .words th, .words td { text-align: left; }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 9rem; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td { white-space: nowrap; }
.words td { white-space: normal; overflow-wrap: anywhere; }
.headline { font-size: 1rem; width: 100%; }
.headline td { font-weight: 600; }
figure { margin: 1rem 0 1.4rem; }
figure.table { overflow-x: auto; }
figcaption { color: var(--muted); font-size: .85rem; margin-top: .45rem; max-width: 50rem; }
img {
  display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px;
  padding: .5rem; border: 1px solid var(--line);
}
dl {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .3rem 1.6rem;
  margin: 1.2rem 0; font-size: .88rem;
}
dl div { min-width: 0; }
dt { color: var(--muted); display: inline; margin-right: .4em; }
dt::after { content: ":"; }
dd { display: inline; margin: 0; overflow-wrap: anywhere; }
pre {
  background: var(--soft); border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  padding: .6rem .8rem; font: .82rem/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; white-space: pre-wrap; overflow-wrap: anywhere;
}
@media print {
  :root {
    color-scheme: light;
    --ink: #000; --muted: #444; --line: #bbb; --paper: #fff; --soft: #fff;
    --good: #1d6fa5; --bad: #a3195b; --open: #444; --partial: #8a5a00;
  }
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  figcaption { break-before: avoid; }
  figure:not(.table), tr, pre { break-inside: avoid; }
  img { border: 0; padding: 0; }
}
""".strip()
