"""How a report looks, in light and in dark."""

STYLE = """
:root { --paper: #fcfcfb; --ink: #1d2126; --soft: #66707a; --rule: #dfe2e5; --card: #ffffff;
  --light: 42%; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181b; --ink: #e6e8ea; --soft: #98a2ab; --rule: #2e343a; --card: #1b1f23;
    --light: 64%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 10px; border-bottom: 1px solid var(--rule); }
p { margin: 8px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 10px;
  margin: 0; }
.tiles div, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 6px;
  padding: 8px 12px; }
dt, figcaption { color: var(--soft); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  gap: 14px; }
figure { margin: 0; }
.grids { display: flex; flex-wrap: wrap; gap: 14px; }
.grids img { max-width: 100%; display: block; margin-top: 6px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--rule); }
.mark { stroke: var(--soft); stroke-dasharray: 3 4; }
polyline { fill: none; stroke: hsl(var(--hue) 70% var(--light)); stroke-linejoin: round; }
.line { stroke-width: 1.8; }
.raw { stroke-width: 1; opacity: 0.35; }
.dot { fill: hsl(var(--hue) 70% var(--light)); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 6px;
  vertical-align: middle; background: hsl(var(--hue) 70% var(--light)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 8px 0; }
th { text-align: left; color: var(--soft); font-weight: normal; }
th, td { padding: 3px 16px 3px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; }
.config td { font-family: ui-monospace, monospace; font-size: 13px; }
pre { overflow-x: auto; font-size: 13px; }
"""
