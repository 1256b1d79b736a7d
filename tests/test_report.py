"""The report of a run, as a page; and a run that acts on it."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter

import zemosaic_outputs
from ledgers import CANVAS, add_outlines, rows_of, summary_of
from surveys import TWO_WORKERS, Run, survey_in
from test_cli import command
from zemosaic_drawings import VIRIDIS, coloured, number, scatter, seconds_of, ticks, time_axis
from zemosaic_fits_products import write_hdus
from zemosaic_ledger import AS_SUGGESTED
from zemosaic_outputs import ProductPaths, product_header, shrunk_image, write_ledger, write_report
from zemosaic_report import names_of, without_folders, write_page
from zemosaic_report_page import MAX_TABLE_ROWS
from zemosaic_synthetic import small_spec
from zemosaic_types import LeftOut, OutputError, PlanError, RunResult, TileFailure

CULPRITS = dict(
    f4=dict(fwhm_px=6.4),
    f11=dict(match_residual=(40.0,), transparency=0.6),
    f20=dict(match_residual=(15.0,), gradient_x=(0.8,), n_rejected_high=9000),
)


def finished(folder, rows, *, channels=1, stem="mosaic_grid", left_out=(), failed=(), residual=True):
    """Write the products of a run that never was."""
    paths, summary = ProductPaths(folder, stem), summary_of(rows, channels)
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    image = rng.normal(900.0, 10.0, (channels, *CANVAS.shape)).astype(np.float32)
    image[:, :, :40] = np.nan
    coverage = np.where(np.isfinite(image), 7, 0).astype(np.int32)
    for path, planes in ((paths.mosaic, image), (paths.coverage, coverage)):
        header = product_header(summary, unit="", what="made up")
        write_hdus(path, fits.HDUList([fits.PrimaryHDU(planes[0] if channels == 1 else planes, header)]))
    if residual:
        cells = rng.uniform(0, 0.3, (13, 20)).astype(np.float32)
        cells[0, :2] = np.nan
        fits.writeto(paths.residual, cells, overwrite=True)
    write_ledger(paths, summary)
    result = RunResult(
        paths.mosaic, paths.preview, len(summary.used), len(rows), left_out, failed, {"stack": 200.0}
    )
    write_report(paths, summary, result, peak_memory_bytes={"main": 2 * 1024**2, "worker": 1024**2}, n_tiles=4)
    return paths


def page_of(paths):
    write_page(paths.folder)
    return paths.page.read_text(encoding="utf-8")


def tree_of(html):
    return ElementTree.fromstring(html.split("\n", 1)[1])


def words_of(element):
    return " ".join(" ".join(element.itertext()).split())


def find(tree, tag, **attributes):
    return [e for e in tree.iter(tag) if all(value in e.get(key, "").split() for key, value in attributes.items())]


@pytest.fixture
def spoiled(tmp_path):
    return finished(tmp_path / "out", rows_of(**CULPRITS))


# ---- the page --------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Everything that a browser might load, and tags that are not closed."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.found += [
            value for key, value in attrs if key in ("src", "href", "action", "data", "poster", "srcset")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(spoiled):
    html = page_of(spoiled)
    assert html.startswith("<!DOCTYPE html>\n")
    assert tree_of(html).tag == "html"
    links = Links(html)
    assert links.open == []
    assert len(links.found) == 3
    assert all(re.match(r"data:image/(png|jpeg);base64,", link) for link in links.found)
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_the_page_follows_the_theme_of_its_reader(spoiled):
    html = page_of(spoiled)
    assert "prefers-color-scheme:dark" in html
    plots = find(tree_of(html), "svg", **{"class": "plot"})
    assert plots
    assert not [e for plot in plots for e in plot.iter() if e.get("fill") or e.get("stroke")]


def test_the_culprits_are_named_with_reasons_and_what_leaving_them_out_gains(spoiled):
    tree = tree_of(page_of(spoiled))
    verdict = find(tree, "section", **{"class": "verdict"})[0]
    assert words_of(verdict.find("h2")) == "Leave these 3 frames of 30 out"
    items = [words_of(item) for item in verdict.iter("li")]
    assert [item.split()[0] for item in items] == ["Light_0011.fit", "Light_0020.fit", "Light_0004.fit"]
    assert "clouds: 40 % of the light lost" in items[0]
    assert "its stars are 2.0 times as wide as usual" in items[2]
    predicted = [words_of(row) for row in verdict.iter("tr")]
    assert any(re.fullmatch(r"seams [\d.]+ ADU [\d.]+ ADU −\d\d\.\d %", row) for row in predicted)
    assert any(re.fullmatch(r"FWHM 3\.\d\d px 3\.\d\d px −\d\.\d %", row) for row in predicted)
    assert "--drop-suggested --overwrite" in words_of(verdict)


def test_the_culprits_are_marked_alike_in_maps_plots_and_table(spoiled):
    tree = tree_of(page_of(spoiled))
    maps = find(tree, "svg", **{"class": "map"})
    assert [m.get("aria-label") for m in maps] == ["Mosaic", "Coverage", "Residual background"]
    for picture in maps:
        assert len(find(picture, "polygon", **{"class": "outline"})) == 3
        assert picture.get("viewBox") == "0 0 600 400"
    plots = find(tree, "svg", **{"class": "plot"})
    assert len(plots) == 10
    assert {len(find(plot, "circle", **{"class": "culprit"})) for plot in plots} == {3}
    rows = find(tree, "table", **{"class": "frames"})[0].find("tbody").findall("tr")
    assert len(rows) == 30
    assert {words_of(row).split()[0] for row in rows if row.get("class") == "suggested"} == {
        "Light_0004.fit",
        "Light_0011.fit",
        "Light_0020.fit",
    }


def test_the_table_is_sorted_by_harm(spoiled):
    rows = find(tree_of(page_of(spoiled)), "table", **{"class": "frames"})[0].find("tbody").findall("tr")
    harm = [float(row.find("td").get("data-v")) for row in rows]
    assert harm == sorted(harm, reverse=True)
    assert harm[0] > 10 > 0 > harm[-1]


def test_every_quantity_over_time_has_its_unit(spoiled):
    labels = [p.get("aria-label") for p in find(tree_of(page_of(spoiled)), "svg", **{"class": "plot"})]
    for label in ("sky, ADU", "noise, ADU", "FWHM, px", "elongation", "stars", "transparency", "rejected, %"):
        assert f"{label}, over time" in labels
    assert {"left after match, ADU, over time", "misaligned, px, over time"} < set(labels)


def test_a_clean_run_has_nothing_to_leave_out(tmp_path):
    paths = finished(tmp_path / "out", rows_of())
    told = write_page(paths.folder)
    assert told == [f"report:     {paths.page}", "suggestion: none: no frame costs the mosaic more than it gives"]
    html = paths.page.read_text(encoding="utf-8")
    assert "Nothing to leave out" in html
    assert 'class="culprit"' not in html


def test_frames_that_are_unusual_but_do_no_harm_are_named_apart(tmp_path):
    cloudy = dict(transparency=0.5, gain=(2.0,), weight=(1 / 3600.0,))
    paths = finished(tmp_path / "out", rows_of(f7=cloudy))
    assert write_page(paths.folder)[-1] == "unusual, but not worth leaving out: 1, named in the report"
    apart = find(tree_of(paths.page.read_text(encoding="utf-8")), "details")[0]
    assert words_of(apart.find("summary")) == "Unusual, but not worth leaving out: 1 frame"
    assert words_of(apart.find("ol")).startswith("Light_0007.fit clouds: 50 % of the light lost")


def test_a_run_without_the_newer_columns_and_maps_is_reported(tmp_path):
    nothing = dict(
        outline="", match_residual=(), transparency=None, align_residual_px=None, gradient_x=(), date_obs=""
    )
    rows = [replace(row, **nothing, gradient_y=()) for row in rows_of(channels=3)]
    paths = finished(tmp_path / "out", rows, channels=3, residual=False)
    tree = tree_of(page_of(paths))
    assert len(find(tree, "svg", **{"class": "map"})) == 2
    assert find(tree, "svg", **{"class": "plot"}) == []
    assert "does not say where the frames lie" in words_of(tree)
    head = words_of(find(tree, "table", **{"class": "frames"})[0].find("thead"))
    assert "transparency" not in head
    assert "harm" not in head


def test_frames_left_out_and_missing_tiles_stand_with_their_reasons(tmp_path):
    rows = rows_of(f3=dict(used=False, reason="no celestial WCS in the file or beside it"))
    rows[5].reason = "missing from tile 2: /home/someone/my frames/M94/night1/Light_0005.fit: damaged"
    failed = (TileFailure(4, "the disk /mnt/secret place/out/tiles is full"),)
    html = page_of(finished(tmp_path / "out", rows, failed=failed))
    words = words_of(tree_of(html))
    assert "Left out, whole or in part: 2" in words
    assert "no celestial WCS in the file or beside it" in words
    assert "missing from tile 2: Light_0005.fit: damaged" in words
    assert "Missing tiles: 1" in words
    assert "the disk tiles is full" in words


def test_nothing_private_is_told(tmp_path):
    rows = rows_of(f3=dict(used=False, reason="/home/someone/my frames/M94/night1/Light_0003.fit cannot be read"))
    html = page_of(finished(tmp_path / "out", rows, left_out=(LeftOut(rows[3].path, rows[3].reason),)))
    assert "someone" not in html
    assert "M94" not in html
    assert str(tmp_path) not in html


HOSTILE = "<script>alert('x')</script>&amp;\"'\x00\x1b\udc80]]>.fit"


def test_hostile_names_and_reasons_are_only_text(tmp_path):
    rows = rows_of(f4=dict(fwhm_px=6.4), f9=dict(used=False, reason=HOSTILE))
    for k in (4, 9):
        rows[k].path = rows[k].path + HOSTILE.replace("\udc80", "")
        rows[k].date_obs = rows[k].filter = "<b>&"
    rows[9].reason = rows[9].reason.replace("\udc80", "")
    rows[4].date_obs = "2025-03-26T20:40:00"
    html = page_of(finished(tmp_path / "out", rows))
    tree = tree_of(html)
    assert len(find(tree, "script")) == 1
    assert html.count("<script>") == 1
    assert "<b>&" not in html
    assert "alert('x')" in words_of(tree)
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", html)


def test_twenty_thousand_frames_are_reported_and_the_worst_are_shown(tmp_path):
    bad = {f"f{k}": dict(match_residual=(60.0,)) for k in range(0, 20_000, 40)}
    rows = rows_of(20_000, **bad)
    for k, row in enumerate(rows):  # fields of 200 frames, side by side
        row.outline = " ".join(f"{float(v) + 400.0 * (k // 200):.1f}" for v in row.outline.split())
        row.date_obs = f"2025-{1 + k // 2000:02d}-{1 + k // 100 % 20:02d}T{k % 100 // 25:02d}:{k % 60:02d}:00"
    paths = finished(tmp_path / "out", rows)
    html = page_of(paths)
    tree = tree_of(html)
    table = find(tree, "table", **{"class": "frames"})[0]
    assert len(table.find("tbody").findall("tr")) == MAX_TABLE_ROWS
    assert f"The worst {MAX_TABLE_ROWS} of 20,000 frames; ledger.csv has all." in words_of(tree)
    verdict = find(tree, "section", **{"class": "verdict"})[0]
    assert words_of(verdict.find("h2")) == "Leave these 500 frames of 20,000 out"
    assert "and 300 more: see ledger.csv" in words_of(verdict)
    assert len(html) < 12_000_000


def test_a_mosaic_is_shrunk_band_by_band_as_in_one_piece(tmp_path, monkeypatch):
    image = np.random.default_rng(1).normal(size=(3, 301, 207)).astype(np.float32)
    image[:, 40:90, 50:] = np.nan
    path = tmp_path / "image.fits"
    fits.writeto(path, image)
    whole = shrunk_image(path, 50)
    asked = []
    read = zemosaic_outputs.read_rows
    monkeypatch.setattr(zemosaic_outputs, "_BAND_SAMPLES", 10_000)
    monkeypatch.setattr(zemosaic_outputs, "read_rows", lambda p, a, b: (asked.append(b - a), read(p, a, b))[1])
    np.testing.assert_array_equal(shrunk_image(path, 50), whole)
    assert whole.shape == (3, 43, 30)
    assert max(asked) * 207 * 3 <= 10_000
    np.testing.assert_allclose(whole[1, 0, 0], image[1, :7, :7].mean(), rtol=1e-5)


# ---- which run -------------------------------------------------------------------------------------------


def test_products_of_any_stem_are_found_and_the_one_of_the_report_is_taken(tmp_path):
    rows = rows_of()
    finished(tmp_path / "out", rows, stem="mosaic_classic")
    assert "Report of mosaic_classic" in page_of(ProductPaths(tmp_path / "out"))
    finished(tmp_path / "out", [replace(row, gain=(1.1,)) for row in rows])
    assert "Report of mosaic_grid" in page_of(ProductPaths(tmp_path / "out"))


def test_a_folder_without_a_run_is_refused_with_a_reason(tmp_path):
    with pytest.raises(PlanError, match=r"no finished run in .*report.json"):
        write_page(tmp_path)
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(PlanError, match="damaged"):
        write_page(tmp_path)
    (tmp_path / "report.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PlanError, match="lacks canvas"):
        write_page(tmp_path)
    paths = finished(tmp_path / "out", rows_of(4))
    paths.coverage.unlink()
    with pytest.raises(PlanError, match="no mosaic and coverage map"):
        write_page(paths.folder)


def test_a_page_that_cannot_be_written_says_so(spoiled):
    spoiled.page.mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        write_page(spoiled.folder)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/b/c/1.fit", "/a/b/d/2.fit"], ["c/1.fit", "d/2.fit"]),
        (["/a/b/1.fit"], ["1.fit"]),
        (["/1.fit", "/a/2.fit"], ["1.fit", "a/2.fit"]),
        ([r"D:\n\a\1.fit", r"D:\n\b\2.fit"], ["a/1.fit", "b/2.fit"]),
        (["/a/b/1.fit", "c/2.fit"], ["1.fit", "2.fit"]),
        (["stack_plan.csv line 3"], ["stack_plan.csv line 3"]),
    ],
)
def test_files_are_named_from_the_folder_they_share(paths, names):
    assert names_of(paths) == names


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("file not found: /home/me/my frames/a b.fit", "file not found: a b.fit"),
        (r"C:\Users\me\a.fit cannot be read: no such file", "a.fit cannot be read: no such file"),
        ("its pixel scale, 2.4 arcsec/px, and/or more", "its pixel scale, 2.4 arcsec/px, and/or more"),
    ],
)
def test_folders_are_cut_from_sentences(text, plain):
    assert without_folders(text) == plain


# ---- drawings --------------------------------------------------------------------------------------------


def test_nights_stand_side_by_side_and_time_runs_within_them():
    dates = [
        "2025-03-26T20:00:00",
        "2025-03-26T22:00:00",
        "2025-05-01T01:00:00Z",
        "2025-05-01T02:00:00.123",
        "?",
        "",
    ]
    axis = time_axis(np.array([seconds_of(date) for date in dates]))
    assert axis.x[0] == 0.0
    assert axis.x[3] == pytest.approx(1.0, abs=1e-3)
    assert axis.x[1] - axis.x[0] == pytest.approx(2 * (axis.x[3] - axis.x[2]), rel=1e-3)
    assert axis.x[1] < axis.nights[0] < axis.x[2]
    assert np.isnan(axis.x[4:]).all()
    assert [label for _, label in axis.labels] == ["2025-03-26", "2025-05-01"]


def test_a_single_night_has_hours_and_a_single_moment_does_no_harm():
    axis = time_axis(np.array([seconds_of(f"2025-03-26T{20 + k // 6}:{10 * (k % 6):02d}:00") for k in range(13)]))
    assert [label for _, label in axis.labels] == ["20:00", "20:30", "21:00", "21:30"]
    moment = time_axis(np.array([seconds_of("2025-03-26")]))
    assert moment.x.tolist() == [0.0]
    assert len(moment.labels) >= 1
    assert time_axis(np.array([np.nan])).labels == []


def test_a_plot_draws_every_known_value_inside_its_frame():
    values = np.array([1.0, 2.0, np.nan, 5.0, -3.0])
    axis = time_axis(np.arange(5) * 600.0)
    drawing = ElementTree.fromstring(scatter(axis, values, [3], lambda k: f"<{k}>", "a & b"))
    width, height = map(float, drawing.get("viewBox").split()[2:])
    dots = re.findall(r"M([\d.-]+) ([\d.-]+)h0", find(drawing, "path", **{"class": "dots"})[0].get("d"))
    assert len(dots) == 3
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in dots)
    assert words_of(find(drawing, "circle")[0]) == "<3>: 5.00"
    for flat in (np.full(5, 7.0), np.zeros(5), np.full(5, np.nan)):
        ElementTree.fromstring(scatter(axis, flat, [], str, ""))


@pytest.mark.parametrize("max_px", [640, 10])
def test_a_map_of_cells_lies_where_its_wcs_puts_it(tmp_path, monkeypatch, max_px):
    monkeypatch.setattr("zemosaic_report._MAP_PX", max_px)
    paths = finished(tmp_path / "out", rows_of())
    cells = fits.PrimaryHDU(np.ones((14, 20), np.float32))
    # Cells of 32 px whose centres are at multiples of 32, counted from 0.
    cells.header["CDELT2"], cells.header["CRPIX1"] = 32 * CANVAS.scale_deg, (CANVAS.crpix[0] - 1) / 32 + 1
    cells.header["CRPIX2"] = (CANVAS.crpix[1] - 1) / 32 + 1
    cells.writeto(paths.residual, overwrite=True)
    picture = find(tree_of(page_of(paths)), "svg", **{"class": "map"})[2].find("image")
    x, y, width, height = (float(picture.get(key)) for key in ("x", "y", "width", "height"))
    assert (x, width, height) == pytest.approx((-15.5, 640, 448))
    assert y + height == pytest.approx(400 + 15.5)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 8.1), (900.0, 1101.0), (1e-9, 3e-9), (0.0, 2e6)])
def test_ticks_are_few_and_round_and_within_the_range(low, high):
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 5
    assert low - 1e-9 * high <= marks[0] < marks[-1] <= high * (1 + 1e-9)
    assert all(len(f"{mark:g}") <= 7 for mark in marks)


def test_a_map_stands_on_its_feet_and_is_clear_where_nothing_is_known():
    values = np.array([[0.0, 5.0], [10.0, np.nan]])
    picture = coloured(values, (0.0, 10.0), VIRIDIS)
    assert picture[1, 0].tolist() == [*VIRIDIS[0], 255]
    assert picture[1, 1].tolist() == [*VIRIDIS[2], 255]
    assert picture[0, 0].tolist() == [*VIRIDIS[-1], 255]
    assert picture[0, 1, 3] == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1234"), (0.01234, "0.0123"), (-5.0, "-5.00"), (0.0, "0"), (np.nan, "–"), (3e7, "3e+07")],
)
def test_numbers_have_three_digits(value, shown):
    assert number(value) == shown


# ---- the command, and a run that acts on it --------------------------------------------------------------

DEEP = small_spec(frames_per_panel=8, seed=5, trail_fraction=0.0, fwhm_px=(2.8, 2.9))
BLURRED = "Light_01_0003.fit"


@pytest.fixture(scope="module")
def blurred_survey(tmp_path_factory):
    """A small survey with one frame out of focus, and its mosaic."""
    folder = tmp_path_factory.mktemp("blurred")
    survey_in(folder / "frames", DEEP)
    with fits.open(folder / "frames" / BLURRED, mode="update") as hdus:
        noise = np.random.default_rng(4).normal(0.0, 25.0, hdus[0].data.shape)
        soft = gaussian_filter(hdus[0].data.astype(float), 3.0) + noise
        hdus[0].data = np.rint(soft).astype(hdus[0].data.dtype)
    run = Run(folder / "frames", folder / "out")
    add_outlines(run.paths)
    return folder, run


def ledger_of(out):
    with (out / "ledger.csv").open(newline="", encoding="utf-8") as file:
        return {row["frame_id"]: row for row in csv.DictReader(file)}


def test_the_command_reports_and_tells_the_suggestion(blurred_survey):
    folder, _ = blurred_survey
    done = command("report", folder / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"report:     {folder / 'out' / 'report.html'}"
    assert re.match(r"suggestion: leave this frame of 16 out; where it lies: noise \+\d+\.\d %, ", lines[1])
    assert lines[2].startswith(f"  {BLURRED}: ")
    assert re.search(r"its stars are \d\.\d times as wide as usual", lines[2])
    assert tree_of((folder / "out" / "report.html").read_text(encoding="utf-8")).tag == "html"


def test_the_command_ends_with_status_2_where_there_is_no_run(tmp_path):
    done = command("report", tmp_path)
    assert done.returncode == 2
    assert "no finished run" in done.stderr
    assert "Traceback" not in done.stderr


def test_dropping_needs_an_earlier_run_and_leave_to_overwrite(blurred_survey, tmp_path):
    folder, run = blurred_survey
    done = command("grid", folder / "frames", tmp_path / "new", "--drop-suggested")
    assert done.returncode == 2
    assert "no earlier run" in done.stderr
    assert not (tmp_path / "new").exists()
    before = run.paths.mosaic.read_bytes()
    done = command("grid", folder / "frames", folder / "out", "--drop-suggested")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert run.paths.mosaic.read_bytes() == before


def test_suggested_frames_are_left_out_with_their_reasons_and_stay_out(blurred_survey, tmp_path):
    folder, _ = blurred_survey
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    for _ in range(2):
        done = command("grid", folder / "frames", out, "--drop-suggested", "--overwrite", "--quiet")
        assert done.returncode == 0, done.stderr
        assert "frames:  15 of 16 used" in done.stdout
        row = ledger_of(out)[BLURRED]
        assert row["used"] == "no"
        assert row["reason"].startswith(AS_SUGGESTED)
        assert "its stars are " in row["reason"]
        assert row["reason"].count(AS_SUGGESTED) == 1
    assert "1 left out as suggested" in page_of(ProductPaths(out))
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["settings"]["drop_suggested"] is True


def test_without_a_frame_the_mosaic_is_that_of_the_other_frames(blurred_survey, tmp_path):
    folder, _ = blurred_survey
    shutil.copytree(folder / "out", tmp_path / "out")
    dropped = Run(folder / "frames", tmp_path / "out", replace(TWO_WORKERS, drop_suggested=True))
    assert dropped.result.complete
    others = tmp_path / "others"
    shutil.copytree(folder / "frames", others)
    (others / BLURRED).unlink()
    reference = Run(others, tmp_path / "reference")
    np.testing.assert_array_equal(dropped.mosaic, reference.mosaic)


def test_suggested_frames_that_are_not_planned_any_more_are_ignored(blurred_survey, tmp_path):
    folder, _ = blurred_survey
    shutil.copytree(folder / "out", tmp_path / "out")
    others = tmp_path / "others"
    shutil.copytree(folder / "frames", others)
    (others / BLURRED).unlink()
    run = Run(others, tmp_path / "out", replace(TWO_WORKERS, drop_suggested=True))
    assert (run.result.n_used, run.result.n_planned) == (15, 15)
    assert run.result.complete


def test_a_ledger_that_suggests_nothing_says_so(tmp_path):
    survey_in(tmp_path / "frames", small_spec(seed=3))
    run = Run(tmp_path / "frames", tmp_path / "out")
    again = Run(tmp_path / "frames", tmp_path / "out", replace(TWO_WORKERS, drop_suggested=True))
    assert again.result.n_used == 6
    assert "suggests no frame to leave out" in again.log
    assert write_page(run.paths.folder)[1].startswith("suggestion: none")


def test_frames_of_an_earlier_run_are_back_without_the_option(blurred_survey, tmp_path):
    folder, _ = blurred_survey
    shutil.copytree(folder / "out", tmp_path / "out")
    Run(folder / "frames", tmp_path / "out", replace(TWO_WORKERS, drop_suggested=True))
    assert Run(folder / "frames", tmp_path / "out").result.n_used == 16


def test_the_report_needs_no_library_of_plots():
    code = "import sys, zemosaic_report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_page_names_cameras_and_groups_where_there_are_several(tmp_path):
    survey = survey_in(tmp_path / "frames", small_spec(seed=3))
    run = Run(tmp_path / "frames", tmp_path / "out")
    write_page(run.paths.folder)
    plain = page_of(run.paths)
    assert "cameras</dt>" not in plain
    assert "share no sky</dt>" not in plain
    for frame in survey.frames[:2]:
        with fits.open(frame.path, mode="update") as hdus:
            hdus[0].header["INSTRUME"] = "A second one"
            hdus[0].header["CRVAL2"] += 0.3
    run = Run(tmp_path / "frames", tmp_path / "apart")
    write_page(run.paths.folder)
    page = page_of(run.paths)
    assert "A second one" in page
    assert "groups that share no sky</dt><dd>2, the largest of 4 frames" in page
