"""The page of a report: what was read and judged, as one HTML file that needs nothing else.

The page is well-formed XML as well, every text from outside is escaped, and nothing is loaded from anywhere:
styles, pictures and the few lines of script that sort the table are inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from zemosaic_drawings import number, scatter, seconds_of, time_axis
from zemosaic_harm import CELLS_ACROSS, MAX_SHARE, MIN_GAIN, PATCH_PX, Levels
from zemosaic_ledger import Judgement, root_mean_square

MAX_TABLE_ROWS = 200
_MAX_OUTLINES = 200
_MAX_LISTED = 200
_BAR_ARCMIN = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
# What XML cannot hold: control characters, halves of surrogate pairs, two non-characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class MapFigure:
    """A picture of the whole canvas.

    `box` is where the picture lies, (x, y, width, height) in mosaic pixels from the upper left corner; `colours`
    the CSS background of its scale, empty without one, from `low` to `high`.
    """

    title: str
    note: str
    picture: str
    box: tuple[float, float, float, float]
    colours: str = ""
    low: str = ""
    high: str = ""
    pixelated: bool = False


@dataclass(frozen=True)
class PageContent:
    """All that a page shows; `names` are those of the judgement's rows, without their folders."""

    title: str
    maker: str
    facts: list[tuple[str, str]]
    maps: list[MapFigure]
    shape: tuple[int, int]
    scale_arcsec: float
    judgement: Judgement
    names: list[str]
    left_out: list[tuple[str, str]]
    failed_tiles: list[tuple[str, str]]
    settings: list[tuple[str, str]]


def page(content: PageContent) -> str:
    """Return the HTML of a report."""
    body = [
        f"<header><h1>{text(content.title)}</h1>{_facts(content.facts)}</header>",
        _suggestion(content),
        _maps(content),
        _plots(content),
        _table(content),
        _listing("Left out, whole or in part", ("frame", "reason"), content.left_out),
        _listing("Missing tiles", ("tile", "reason"), content.failed_tiles),
        _notes(content),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\"/>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{text(content.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return a text from outside as part of the page."""
    return escape(_UNPRINTABLE.sub("\ufffd", str(value)))


def suggestion_lines(judgement: Judgement, names: Sequence[str]) -> list[str]:
    """Return what is suggested, as sentences: the first says how much, the others why, a frame each."""
    n = len(judgement.rows)
    if not judgement.suggested:
        return [_no_suggestion(judgement)]
    before, after = judgement.prediction.here
    gains = ", ".join(
        f"{name} {_change(a, b)}"
        for name, a, b in (
            ("noise", before.noise, after.noise),
            ("seams", before.seam, after.seam),
            ("FWHM", before.fwhm_px, after.fwhm_px),
        )
        if a > 0
    )
    chosen = len(judgement.suggested)
    what, where = ("this frame", "it lies") if chosen == 1 else (f"these {chosen} frames", "they lie")
    first = f"leave {what} of {n} out; where {where}: {gains}"
    return [first, *(f"{names[k]}: {judgement.remarks[k]}" for k in judgement.suggested)]


def _no_suggestion(judgement: Judgement) -> str:
    if not judgement.placed:
        return "none: this ledger does not say where the frames lie; make the mosaic again for a suggestion"
    return "none: no frame costs the mosaic more than it gives"


# ---- parts of the page -----------------------------------------------------------------------------------


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    cards = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{cards}</dl>'


def _suggestion(content: PageContent) -> str:
    judgement, chosen = content.judgement, content.judgement.suggested
    if not chosen:
        known = _no_suggestion(judgement).removeprefix("none: ")
        known = f"<p>{text(known[0].upper() + known[1:])}.</p>"
        return f'<section class="verdict"><h2>Nothing to leave out</h2>{known}{_unusual(content)}</section>'
    what = "this frame" if len(chosen) == 1 else f"these {len(chosen)} frames"
    return (
        f'<section class="verdict some"><h2>Leave {what} of {len(judgement.rows):,} out</h2><div class="columns">'
        f"<div><ol>{_named(content, chosen)}</ol></div><div>{_prediction(judgement)}</div></div>"
        "<p>To act on it: <code>zemosaic grid INPUT OUTPUT --drop-suggested --overwrite</code></p>"
        f"{_unusual(content)}</section>"
    )


def _named(content: PageContent, frames: list[int]) -> str:
    """Return frames with what is said of them, as items of a list."""
    shown = frames[:_MAX_LISTED]
    items = [f"<li><b>{text(content.names[k])}</b> {text(content.judgement.remarks[k])}</li>" for k in shown]
    if len(frames) > _MAX_LISTED:
        items.append(f"<li>and {len(frames) - _MAX_LISTED:,} more: see ledger.csv</li>")
    return "".join(items)


def _unusual(content: PageContent) -> str:
    frames = content.judgement.unusual()
    if not frames:
        return ""
    count = f"{len(frames):,} {'frame' if len(frames) == 1 else 'frames'}"
    return (
        f"<details><summary>Unusual, but not worth leaving out: {count}</summary><p>They weigh too little to do "
        "harm, still help where they lie, alone cover some of the sky, or are beyond the limit of the suggestion."
        f"</p><ol>{_named(content, frames)}</ol></details>"
    )


def _prediction(judgement: Judgement) -> str:
    prediction = judgement.prediction
    lie = "it lies" if len(judgement.suggested) == 1 else "they lie"
    where = f"where {lie}, {100 * prediction.area:.0f} % of the mosaic"
    lost = f" {100 * prediction.lost:.1f} % of it, at the rim, would be lost." if prediction.lost else ""
    groups = _levels(where, *prediction.here) + _levels("whole mosaic", *prediction.all)
    return (
        '<table class="levels"><thead><tr><th>Predicted</th><th class="n">now</th><th class="n">without</th>'
        f'<th class="n">change</th></tr></thead>{groups}</table>'
        f'<p class="small">Root mean squares.{lost}</p>'
    )


def _levels(where: str, now: Levels, without: Levels) -> str:
    rows = [f'<tr><th colspan="4" class="group">{text(where)}</th></tr>']
    for name, unit, a, b in (
        ("noise of a pixel", "ADU", now.noise, without.noise),
        ("seams", "ADU", now.seam, without.seam),
        (f"error of {PATCH_PX} × {PATCH_PX} px", "ADU", now.error, without.error),
        ("FWHM", "px", now.fwhm_px, without.fwhm_px),
    ):
        cells = f'<td class="n">{number(a)} {unit}</td><td class="n">{number(b)} {unit}</td>'
        rows.append(f'<tr><td>{name}</td>{cells}<td class="n">{_change(a, b)}</td></tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _change(before: float, after: float) -> str:
    if not (np.isfinite(before) and np.isfinite(after) and before > 0):
        return "–"
    change = round(100 * (after / before - 1), 1) + 0.0  # which makes -0.0 a plain zero
    return f"{change:+.1f} %".replace("-", "−")


def _maps(content: PageContent) -> str:
    outlines = _outlines(content)
    figures = []
    for k, figure in enumerate(content.maps):
        ny, nx = content.shape
        x, y, width, height = figure.box
        style = ' style="image-rendering:pixelated"' if figure.pixelated else ""
        bar = _scale_bar(content) if k == 0 else ""
        picture = (
            f'<image href="{figure.picture}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'preserveAspectRatio="none"{style}/>'
        )
        scale = ""
        if figure.colours:
            bar_box = f'<i style="background:{figure.colours}"></i>'
            scale = f'<span class="scale">{text(figure.low)}{bar_box}{text(figure.high)}</span>'
        figures.append(
            f"<figure><figcaption><b>{text(figure.title)}</b>{scale}</figcaption>"
            f'<svg class="map" viewBox="0 0 {nx} {ny}" role="img" aria-label="{text(figure.title)}">'
            f'{picture}{outlines}{bar}</svg><p class="small">{text(figure.note)}</p></figure>'
        )
    return f'<section class="maps">{"".join(figures)}</section>'


def _outlines(content: PageContent) -> str:
    """Return the outlines of the suggested frames, in mosaic pixels from the upper left corner."""
    corners = content.judgement.columns.outlines()
    ny = content.shape[0]
    shapes = []
    for k in content.judgement.suggested[:_MAX_OUTLINES]:
        points = " ".join(f"{x + 0.5:.1f},{ny - 0.5 - y:.1f}" for x, y in corners[k])
        shapes.append(
            f'<polygon class="outline" points="{points}"><title>{text(content.names[k])}</title></polygon>'
        )
    return "".join(shapes)


def _scale_bar(content: PageContent) -> str:
    ny, nx = content.shape
    per_arcmin = 60.0 / content.scale_arcsec
    length = max((m for m in _BAR_ARCMIN if m * per_arcmin <= 0.25 * nx), default=_BAR_ARCMIN[0])
    label = f"{length / 60:g}°" if length >= 60 else f"{length:g}′"
    size = max(nx, ny) / 60.0
    x0, y0 = 0.02 * nx, ny - 0.02 * nx
    return (
        f'<g class="bar"><path d="M{x0:.1f} {y0:.1f}h{length * per_arcmin:.1f}" stroke-width="{size / 6:.1f}"/>'
        f'<text x="{x0:.1f}" y="{y0 - size / 2:.1f}" font-size="{size:.1f}">{label}</text></g>'
    )


@dataclass(frozen=True)
class _Quantity:
    """A value of every frame, as it is shown: with so many decimals, or three significant digits if None."""

    name: str
    unit: str
    values: np.ndarray
    decimals: int | None = None

    @property
    def label(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def shown(self, value: float) -> str:
        if self.decimals is None or not np.isfinite(value):
            return number(float(value))
        return f"{round(float(value), self.decimals) + 0.0:.{self.decimals}f}".replace("-", "−")  # no -0.0


def _quantities(judgement: Judgement) -> list[_Quantity]:
    """Return what is shown of every frame, in plots and table."""
    columns = judgement.columns
    slope = np.hypot(
        root_mean_square(columns.coloured("gradient_x")), root_mean_square(columns.coloured("gradient_y"))
    )
    return [
        _Quantity("sky", "ADU", _mean(columns.coloured("sky") * np.abs(columns.coloured("gain")))),
        _Quantity("noise", "ADU", root_mean_square(columns.noise())),
        _Quantity("FWHM", "px", columns.width(), 2),
        _Quantity("elongation", "", columns.single("elongation"), 2),
        _Quantity("stars", "", columns.single("n_stars"), 0),
        _Quantity("transparency", "", columns.single("transparency"), 2),
        _Quantity("left after match", "ADU", root_mean_square(columns.coloured("match_residual"))),
        _Quantity("rejected", "%", 100.0 * columns.single("rejected_fraction"), 1),
        _Quantity("misaligned", "px", columns.single("align_residual_px"), 2),
        _Quantity("gradient", "ADU / 1000 px", 1000.0 * slope),
    ]


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def _plots(content: PageContent) -> str:
    judgement = content.judgement
    axis = time_axis(np.array([seconds_of(row.date_obs) for row in judgement.rows]))
    undated = int((~np.isfinite(axis.x)).sum())
    figures = []

    def name_of(k: int) -> str:
        return _UNPRINTABLE.sub("\ufffd", content.names[k])

    for quantity in _quantities(judgement):
        if not np.isfinite(quantity.values[np.isfinite(axis.x)]).any():
            continue
        drawing = scatter(axis, quantity.values, judgement.suggested, name_of, f"{quantity.label}, over time")
        median = quantity.shown(float(np.nanmedian(quantity.values)))
        caption = f'<b>{text(quantity.label)}</b><span class="small">median {median}</span>'
        figures.append(f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>")
    if not figures:
        return ""
    note = "A dot a frame, in order of time (UTC); days between nights take no room."
    if judgement.suggested:
        note += ' <span class="key">●</span> suggested to be left out.'
    if undated:
        note += f" {undated:,} frames have no date and are not shown."
    return f'<section><h2>Quality over time</h2><p>{note}</p><div class="plots">{"".join(figures)}</div></section>'


def _table(content: PageContent) -> str:
    judgement, harm = content.judgement, content.judgement.harm
    shares = [("harm", harm.total), ("by noise", harm.noise), ("by seams", harm.seam), ("by blur", harm.blur)]
    columns = [_Quantity(name, "%", 100.0 * values, 1) for name, values in shares] + _quantities(judgement)
    columns = [column for column in columns if np.isfinite(column.values).any()]
    order = np.argsort(-np.nan_to_num(harm.total, nan=-np.inf), kind="stable")[:MAX_TABLE_ROWS]
    rows = [_frame_row(content, k, columns) for k in order.tolist()]
    heads = "".join(
        f'<th class="n" data-sort="n">{column.name}<small>{column.unit or "&#160;"}</small></th>'
        for column in columns
    )
    n = len(judgement.rows)
    shown = f"The worst {MAX_TABLE_ROWS} of {n:,} frames; ledger.csv has all." if n > MAX_TABLE_ROWS else ""
    return (
        "<section><h2>Frames by harm</h2><p>Harm is what a faint star’s signal to noise would gain, where the "
        f"frame lies, if that frame alone were left out; a frame that helps has a negative one. {shown}</p>"
        '<div class="scroll"><table class="frames"><thead><tr><th data-sort="t">frame</th>'
        f'{heads}<th data-sort="t">date (UTC)</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _frame_row(content: PageContent, k: int, columns: list[_Quantity]) -> str:
    judgement = content.judgement
    cells = "".join(
        f'<td class="n" data-v="{column.values[k]:.6g}">{column.shown(column.values[k])}</td>'
        for column in columns
    )
    mark = ' class="suggested"' if k in judgement.suggested else ""
    remark = f"<small>{text(judgement.remarks[k])}</small>" if judgement.remarks[k] else ""
    when = text(judgement.rows[k].date_obs[:19].replace("T", " "))
    return f"<tr{mark}><th>{text(content.names[k])}{remark}</th>{cells}<td>{when}</td></tr>"


def _listing(title: str, heads: tuple[str, str], items: list[tuple[str, str]]) -> str:
    if not items:
        return ""
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(why)}</td></tr>" for name, why in items[:_MAX_LISTED])
    more = f"<p>The first {_MAX_LISTED} of {len(items):,}.</p>" if len(items) > _MAX_LISTED else ""
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<section><h2>{title}: {len(items):,}</h2>{more}<div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _notes(content: PageContent) -> str:
    settings = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in content.settings)
    return (
        '<section class="small"><h2>How this is computed</h2>'
        "<p>Each place of the mosaic is the weighted mean of its frames. With weights w, pixel noise s, residual "
        "r after the match and FWHM f (elongation and misalignment included), its noise variance is Σ(ws)² / "
        "(Σw)², its seam variance Σ(wr)² / (Σw)², its FWHM² Σwf² / Σw. Noise averages out over pixels, seams do "
        f"not: harm compares the error of a patch of {PATCH_PX} × {PATCH_PX} pixels, and the FWHM, with and "
        f"without the frame, on a grid of {CELLS_ACROSS} cells along a frame’s short side. The suggestion takes "
        "the worst frame out, judges its neighbours again, and goes on while that gains "
        f"{100 * MIN_GAIN:.0f} % or more; it never takes more than {100 * MAX_SHARE:.0f} % of the frames (at "
        "least one), none that nothing unusual can be said of, and none that would leave a hole. What the ledger "
        "does not tell is taken as usual.</p>"
        f'<details><summary>Settings of the run</summary><dl class="facts">{settings}</dl></details>'
        f"<p>Made by {text(content.maker)}.</p></section>"
    )


_STYLE = """
:root{color-scheme:light dark;
--paper:#f7f7f5;--card:#fff;--ink:#1d2024;--soft:#62676e;--rule:#dedfdb;--dot:#3c6fa8;
--culprit:#c8430a;--tint:#fdeee4}
@media (prefers-color-scheme:dark){:root{
--paper:#121418;--card:#1b1e24;--ink:#e4e6e9;--soft:#9aa1ab;--rule:#31363f;
--dot:#79b0ea;--culprit:#ff8d4e;--tint:#38241a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1440px;padding:24px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:26px;margin:0 0 12px}h2{font-size:19px;margin:0 0 8px}p{margin:6px 0}
section{margin:28px 0}b{font-weight:600}
.small,small{font-size:12.5px;color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:10px;margin:0}
.facts div{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:8px 12px}
dt{font-size:12.5px;color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.verdict{background:var(--card);border:1px solid var(--rule);border-left:5px solid var(--dot);border-radius:8px;
padding:16px 20px}
.verdict.some{border-left-color:var(--culprit)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:24px}
ol{margin:0;padding-left:24px;max-height:420px;overflow:auto}li{margin:0 0 8px;overflow-wrap:anywhere}
li b{display:block}li::marker{color:var(--culprit);font-weight:600}
code{background:var(--paper);border:1px solid var(--rule);border-radius:4px;padding:2px 6px;font-size:13px}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 10px;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600}tbody th{font-weight:500}.n{text-align:right;white-space:nowrap}
tr.suggested small{color:var(--ink)}
th.group{color:var(--soft);padding-top:12px}.levels{width:100%}
.scroll{overflow:auto;max-height:720px;background:var(--card);border:1px solid var(--rule);border-radius:8px}
.scroll table{width:100%}.scroll thead th{position:sticky;top:0;background:var(--card);vertical-align:bottom}
.scroll tbody tr:last-child>*{border-bottom:0}
th[data-sort]{cursor:pointer}th small{display:block;font-weight:400}
th[aria-sort=ascending]::before{content:"↑ "}th[aria-sort=descending]::before{content:"↓ "}
.frames td{white-space:nowrap}.frames tbody th{min-width:200px;max-width:320px;overflow-wrap:anywhere}
.frames th,.frames td{padding:4px 8px}.frames th:first-child{position:sticky;left:0;background:var(--card)}
.frames thead th:first-child{z-index:1}tr.suggested th:first-child{background:var(--tint)}
tr.suggested{background:var(--tint)}tr.suggested th{color:var(--culprit);font-weight:600}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px}
figcaption{display:flex;justify-content:space-between;align-items:baseline;gap:12px;margin-bottom:6px}
.maps{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}
.maps figure:first-child{grid-column:1/-1}
@media (max-width:760px){.maps{grid-template-columns:1fr}body{padding:12px}}
.map{display:block;width:100%;max-height:86vh}
.outline{fill:none;stroke:#ff8d4e;stroke-width:2;vector-effect:non-scaling-stroke}
.outline:hover{fill:var(--culprit);fill-opacity:.15}
.bar path{stroke:#fff}.bar text{fill:#fff}
.scale{display:flex;align-items:center;gap:8px;font-size:12.5px;color:var(--soft)}
.scale i{display:inline-block;width:140px;height:10px;border-radius:5px}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));gap:16px;margin-top:12px}
.plot{display:block;width:100%}
.axis{fill:var(--soft);font-size:11px}.line{stroke:var(--rule);fill:none}.night{stroke-dasharray:3 3}
.dots{stroke:var(--dot);stroke-width:5;stroke-linecap:round;stroke-opacity:.7;fill:none}
.many{stroke-width:2.5;stroke-opacity:.45}
.culprit{fill:var(--culprit);stroke:var(--card)}.key{color:var(--culprit)}
details summary{cursor:pointer;margin:8px 0}
@media print{.scroll,ol{max-height:none}}
"""

_SCRIPT = """
document.querySelectorAll("th[data-sort]").forEach(function (head) {
  head.addEventListener("click", function () {
    var column = head.cellIndex, body = head.closest("table").tBodies[0];
    var numeric = head.dataset.sort === "n";
    var up = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    function key(row) {
      var cell = row.cells[column];
      if (!numeric) { return cell.textContent; }
      var value = parseFloat(cell.dataset.v);
      return isNaN(value) ? -up * Infinity : value;
    }
    var rows = Array.from(body.rows);
    rows.sort(function (a, b) { var p = key(a), q = key(b); return p === q ? 0 : p > q ? up : -up; });
    rows.forEach(function (row) { body.appendChild(row); });
    head.parentNode.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up === 1 ? "ascending" : "descending");
  });
});
"""
