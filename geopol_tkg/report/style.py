"""The page's style sheet. Text and data colours have a contrast of 4.5 or more in both schemes."""

from geopol_tkg.report.chart import COLOURS

LIGHT = {
    "page": "#fbfaf7",
    "panel": "#ffffff",
    "text": "#1d2126",
    "soft": "#565d66",
    "rule": "#dcd9d1",
    "c0": "#1f5fa8",
    "c1": "#b0440f",
    "c2": "#1c6e43",
    "c3": "#7a3c9e",
    "c4": "#0b6b75",
    "c5": "#7a5a00",
    "c6": "#a02c5a",
}
DARK = {
    "page": "#14171b",
    "panel": "#1b1f24",
    "text": "#e8e6e1",
    "soft": "#a7adb5",
    "rule": "#363c44",
    "c0": "#7fb4f2",
    "c1": "#f2996a",
    "c2": "#74cf9b",
    "c3": "#caa2f0",
    "c4": "#62cbd6",
    "c5": "#dcb851",
    "c6": "#f08cb4",
}


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


_SERIES = "".join(f".s{i}{{--own:var(--c{i})}}" for i in range(COLOURS))

STYLE = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
{_SERIES}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--text);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums lining-nums}}
main{{max-width:868px;margin:0 auto;padding:40px 24px 72px}}
h1{{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em;overflow-wrap:anywhere}}
h2{{font-size:20px;line-height:1.3;margin:52px 0 6px;padding-top:14px;border-top:1px solid var(--rule)}}
h3{{font-size:15px;margin:22px 0 2px}}
p{{margin:6px 0 12px;max-width:68ch}}
.soft,caption,summary,dt,th{{color:var(--soft)}}
.lead{{font-size:18px;max-width:62ch}}
a{{color:var(--c0)}}
dl.facts{{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:18px 0;font-size:15px}}
dd{{margin:0;overflow-wrap:anywhere}}
.tiles{{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:22px 0}}
.tile{{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 16px}}
.tile b{{display:block;font-size:26px;font-weight:600;line-height:1.25}}
.tile span{{color:var(--soft);font-size:14px}}
figure{{margin:8px 0 18px}}
.wide{{overflow-x:auto}}
svg{{display:block;width:100%;min-width:600px;height:auto}}
svg text{{font-size:13px;fill:var(--text)}}
svg .tick,svg .label{{fill:var(--soft)}}
svg .end{{text-anchor:end}}
svg .middle{{text-anchor:middle}}
svg .grid,svg .rule{{stroke:var(--rule);stroke-width:1}}
svg .axis{{stroke:var(--soft);stroke-width:1}}
svg .diagonal{{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:2 4}}
svg polyline{{fill:none;stroke:var(--own);stroke-width:1.8;stroke-linejoin:round}}
svg .dashed polyline{{stroke-dasharray:6 4}}
.marker{{fill:var(--own);stroke:var(--page);stroke-width:1}}
ul.legend{{display:flex;flex-wrap:wrap;gap:2px 22px;list-style:none;margin:8px 0 4px;padding:0;font-size:14px}}
ul.legend svg{{display:inline-block;width:30px;min-width:0;height:12px;margin-right:7px;vertical-align:-1px}}
table{{border-collapse:collapse;width:100%;font-size:14px;line-height:1.4;margin:8px 0}}
th,td{{text-align:right;padding:6px 9px;border-bottom:1px solid var(--rule);vertical-align:baseline;white-space:nowrap}}
th{{font-weight:500}}
th:first-child,td:first-child{{text-align:left;padding-left:0;white-space:normal;min-width:9em}}
td small{{display:block;color:var(--soft);font-size:12.5px}}
tbody tr:first-child td{{font-weight:600}}
tbody tr:first-child td small{{font-weight:400}}
details{{margin:4px 0 16px;font-size:14px}}
details tbody tr:first-child td{{font-weight:400}}
summary{{cursor:pointer}}
.examples{{list-style:none;margin:12px 0;padding:0;display:grid;gap:12px}}
.examples p{{max-width:none}}
.examples>li{{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 18px}}
.examples .asked{{font-weight:600;margin:0 0 4px}}
.examples ol{{margin:0;padding:0;list-style:none;max-width:520px}}
.examples ol li{{display:flex;justify-content:space-between;gap:16px;padding:2px 0}}
.examples .true{{color:var(--c2);font-weight:600}}
.examples .outcome{{margin:6px 0 0;font-size:15px}}
pre{{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 16px;font-size:13px;
line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere}}
li{{margin:3px 0}}
@media(max-width:600px){{.tiles{{grid-template-columns:1fr 1fr}}}}
@media print{{h2{{break-after:avoid}}figure,.examples>li{{break-inside:avoid}}}}
""".strip()
