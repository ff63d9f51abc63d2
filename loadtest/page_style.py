"""The style sheet of a report, light and dark. Eight colours that the colour-blind can part."""

from __future__ import annotations

_LIGHT = ("#0b62a3", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#4b5563")
_DARK = ("#6db3f2", "#fb923c", "#4ade80", "#c084fc", "#facc15", "#22d3ee", "#f472b6", "#9ca3af")
_DASHES = ("none", "6 3", "2 2", "8 3 2 3", "none", "6 3", "2 2", "8 3 2 3")


def _colours(colours: tuple[str, ...]) -> str:
    rules = []
    for place, colour in enumerate(colours):
        rules.append(f".l{place}{{stroke:{colour};stroke-dasharray:{_DASHES[place]}}}")
        rules.append(f".d{place},.f{place}{{fill:{colour}}}.k{place}{{background:{colour}}}")
    return "".join(rules)


STYLE = (
    """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5c5f66;--line:#d9dbe0;--paper:#fff}
body{margin:0;background:var(--paper);color:var(--ink);
 font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1660px;margin:0 auto;padding:24px 16px}
h1{font-size:22px;margin:0 0 16px}h2{font-size:17px;margin:28px 0 8px}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:8px;margin:12px 0}
dl div{border:1px solid var(--line);border-radius:6px;padding:8px 10px}
dt{color:var(--soft);font-size:12px}dd{margin:0;font-size:18px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:16px}
figure{margin:0}figcaption{font-weight:600;font-size:13px;margin-bottom:4px}
figure ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 14px;margin:4px 0 0;padding:0;
 font-size:12px;color:var(--soft)}
figure i{display:inline-block;width:10px;height:10px;margin-right:5px;border-radius:2px}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font-size:11px}svg .t{font-size:12px}
.g{stroke:var(--line);stroke-width:1}polyline{fill:none;stroke-width:1.8}
.complaints{border-left:4px solid #c2410c;padding:8px 8px 8px 26px;margin:12px 0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;
 font-size:13px;margin:12px 0 20px}th{font-weight:600;text-align:left}
td,tr:first-child th{text-align:right;white-space:nowrap}tr:first-child th{color:var(--soft)}
td,th{padding:5px 8px;border-bottom:1px solid var(--line)}
.definitions{color:var(--soft);font-size:13px;padding-left:20px}summary h2{display:inline}
pre{overflow-x:auto;font:12px/1.5 ui-monospace,monospace}summary{cursor:pointer;margin:14px 0}
"""
    + _colours(_LIGHT)
    + "@media (prefers-color-scheme:dark){:root{--ink:#e8e8ea;--soft:#a5a8b0;--line:#3a3c42;"
    + "--paper:#17181b}"
    + _colours(_DARK)
    + "}"
)
