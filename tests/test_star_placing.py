"""Frames without a WCS get their places from the stars that they share with others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sep
from astropy.io import fits
from scipy.spatial import KDTree

import zemosaic_star_placing
from grid_mode import GridSettings, run_grid
from solvers import records_in, without_wcs
from surveys import Run, shuffled_copy, survey_in
from zemosaic_astrometry import SolveOptions, cards_of
from zemosaic_events import CancelToken, FrameLeftOut, Message
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import read_product_wcs
from zemosaic_ledger import read_ledger
from zemosaic_plan import NO_WCS
from zemosaic_reproject import frame_to_icrs
from zemosaic_star_patterns import match_patterns, star_pattern
from zemosaic_star_placing import place_by_stars
from zemosaic_synthetic import small_spec
from zemosaic_types import PlanError, RunCancelled

#: Two panels of three frames with some fifty stars each, a dozen of them in both panels; any rotation.
SPEC = small_spec(frame_shape=(240, 320), overlap_fraction=0.4, rotation_deg=180.0, seed=5)
NO_SOLVER = SolveOptions(method="none")
SETTINGS = GridSettings(workers=1, overwrite=True, solve=NO_SOLVER)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return survey_in(tmp_path_factory.mktemp("survey") / "frames", SPEC)


@pytest.fixture(scope="module")
def frames(survey):
    return survey.frames[0].path.parent


@pytest.fixture(scope="module")
def truths(frames):
    return records_in(frames)


def hidden(record):
    """A record whose WCS nobody knows."""
    header = replace(record.header, wcs_text="", wcs_path="")
    return replace(record, header=header, unplaced=NO_WCS)


def most_off_px(record, truth):
    """The largest distance of a record's WCS from its true one over the frame, in its pixels."""
    ny, nx = truth.header.shape
    y, x = (grid.ravel() for grid in np.mgrid[0 : ny - 1 : 9j, 0 : nx - 1 : 9j])
    sky = frame_wcs(truth.header).all_pix2world(x, y, 0)
    return np.hypot(*(np.array(frame_wcs(record.header).all_world2pix(*sky, 0)) - [x, y])).max()


def placed_of(truths, keep, **more):
    """Place frames of which only those kept show their WCS; return what is said of the others, by frame id."""
    lost = [hidden(truth) for k, truth in enumerate(truths) if k not in keep]
    placing = place_by_stars(lost, [truths[k] for k in keep], **more)
    assert [verdict.record.path for verdict in placing.verdicts] == [record.path for record in lost]
    return {verdict.record.frame_id: verdict for verdict in placing.verdicts}, placing.caveat


# ---- where the frames are put ----------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [[0], [3], [0, 1, 2, 3]])
def test_frames_are_placed_by_those_that_have_a_wcs(truths, keep):
    verdicts, caveat = placed_of(truths, keep)
    assert caveat == ""
    assert len(verdicts) == len(truths) - len(keep)
    for truth in truths:
        verdict = verdicts.get(truth.frame_id)
        if verdict is not None:
            assert verdict.reason == verdict.record.unplaced == ""
            assert "stars of Light_" in verdict.record.placed_by
            assert most_off_px(verdict.record, truth) < 0.3


@pytest.mark.parametrize("more", [{"color": True}, {"sip": True}, {"mirrored": True}], ids=str)
def test_colour_distortion_and_parity_are_no_matter(more, tmp_path):
    """Distorted frames get a TAN, which cannot follow 0.3 % at the corners."""
    spec = replace(SPEC, frame_shape=(320, 400), star_density=900.0, **more)
    truths = records_in(survey_in(tmp_path / "frames", spec).frames[0].path.parent)
    verdicts, _ = placed_of(truths, [0])
    for truth in truths[1:]:
        assert verdicts[truth.frame_id].reason == ""
        assert most_off_px(verdicts[truth.frame_id].record, truth) < (1.0 if "sip" in more else 0.3)


def test_a_panel_is_reached_over_another(tmp_path):
    """Three panels in a row, of which only the first has a WCS: the third shows no star of it."""
    spec = replace(SPEC, panels=(1, 3), overlap_fraction=0.4, rotation_deg=5.0)
    truths = records_in(survey_in(tmp_path / "frames", spec).frames[0].path.parent)
    verdicts, _ = placed_of(truths, [0])
    for truth in truths[1:]:
        assert verdicts[truth.frame_id].reason == ""
        assert most_off_px(verdicts[truth.frame_id].record, truth) < 0.3


def test_one_wrong_wcs_among_others_misleads_nobody(truths):
    """A frame of the same pointing is 20 px off; the others that the lost frame shares stars with outvote it."""
    wrong = truths[1]
    cards = frame_wcs(wrong.header).deepcopy()
    cards.wcs.crpix = cards.wcs.crpix + 20.0
    header = replace(wrong.header, wcs_text=cards_of(cards, 1, wrong.header.shape))
    others = [replace(wrong, header=header), *truths[2:]]
    (verdict,) = place_by_stars([hidden(truths[0])], others).verdicts
    assert "and those of " in verdict.record.placed_by
    assert most_off_px(verdict.record, truths[0]) < 0.3


def test_without_any_wcs_the_frames_keep_their_places_to_each_other(truths):
    """The provisional places differ from the true ones by one similarity of the sky."""
    verdicts, caveat = placed_of(truths, [])
    assert all(verdict.reason == "" for verdict in verdicts.values())
    assert "provisional" in caveat
    (root,) = [v.record for v in verdicts.values() if v.record.placed_by == "a provisional place"]
    assert root.frame_id in caveat
    (truth,) = [truth for truth in truths if truth.frame_id == root.frame_id]
    y, x = (grid.ravel() for grid in np.mgrid[0:239:9j, 0:319:9j])
    for other in truths:
        # Where the root's pixels see the pixels of the other frame, provisionally and truly.
        sky = frame_to_icrs(frame_wcs(verdicts[other.frame_id].record.header), x, y)
        here = frame_wcs(root.header).all_world2pix(*sky, 0)
        there = frame_wcs(truth.header).all_world2pix(*frame_to_icrs(frame_wcs(other.header), x, y), 0)
        assert np.hypot(*(np.array(here) - there)).max() < 0.3


def test_a_provisional_place_is_as_good_as_the_header_allows(truths):
    bare = [replace(t, header=replace(t.header, ra_deg=None, scale_arcsec=None)) for t in truths]
    for records, words, scale in (
        (truths, "where its header points, north up, 2.4 arcsec a pixel by its header", 2.4),
        (bare, "at right ascension 0, declination 0, north up, 1 arcsec a pixel arbitrarily", 1.0),
    ):
        verdicts, caveat = placed_of(records, [])
        (root,) = [v.record for v in verdicts.values() if v.record.placed_by == "a provisional place"]
        assert words in caveat
        matrix = frame_wcs(root.header).pixel_scale_matrix
        np.testing.assert_allclose(matrix, np.diag([-scale, scale]) / 3600, atol=1e-7)


def test_the_order_of_the_frames_leaves_no_trace(truths):
    for keep in ([0], []):
        forwards, _ = placed_of(truths, keep)
        kept = [truths[k] for k in keep]
        shuffled = [hidden(truths[k]) for k in (4, 2, 5, 1, 3, 0) if k not in keep]
        placing = place_by_stars(shuffled, kept)
        assert {v.record.frame_id: v for v in placing.verdicts} == forwards


def test_of_many_placed_frames_a_few_of_each_pointing_and_those_near_by_are_looked_at(truths):
    """One of eight hundred is lost; no more than some tens are read, whatever the order of the others."""
    many = [replace(t, frame_id=f"{n:03d}/{t.frame_id}") for n in range(160) for t in truths if t is not truths[4]]
    lost = hidden(replace(truths[4], frame_id="080/Light_01_0001.fit"))
    chosen = zemosaic_star_placing._references([lost], many)
    assert len(chosen) < 40
    assert {record.frame_id[4:] for record in chosen} == {truth.frame_id for truth in truths} - {
        truths[4].frame_id
    }
    assert {"080/Light_01_0000.fit", "080/Light_01_0002.fit"} <= {record.frame_id for record in chosen}
    assert zemosaic_star_placing._references([lost], many[::-1]) == chosen


def test_a_pointing_of_many_frames_is_soon_known_well_enough(truths):
    """So the cost grows with the sky that is covered and not with the square of the frames."""
    spots = zemosaic_star_placing._Spots()
    taken = [truth.frame_id for truth in truths * 20 if spots.take(truth)]
    assert len(taken) == 6


# ---- frames that cannot be placed ------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path):
    """A frame of another sky."""
    spec = replace(SPEC, seed=6, panels=(1, 1), frames_per_panel=1)
    (record,) = records_in(survey_in(tmp_path / "elsewhere", spec).frames[0].path.parent)
    return replace(record, frame_id="elsewhere.fit")


def test_a_frame_of_another_sky_is_named_with_what_to_do(truths, elsewhere):
    placing = place_by_stars([hidden(truths[1]), hidden(elsewhere)], [truths[0], truths[5]])
    near, far = placing.verdicts
    assert near.reason == ""
    assert far.record == hidden(elsewhere)
    words = r"its \d+ stars are those of none of the 3 frames that have a place; add frames that overlap it, or"
    assert re.match(words, far.reason)


def test_a_mirrored_frame_is_told(truths, tmp_path):
    data, header = fits.getdata(truths[1].path), fits.getheader(truths[1].path)
    fits.writeto(tmp_path / "flipped.fit", data[::-1], header)
    flipped = replace(truths[1], path=str(tmp_path / "flipped.fit"), frame_id="flipped.fit")
    (verdict,) = place_by_stars([hidden(flipped)], truths[:1]).verdicts
    whose = f"its stars are those of {truths[0].frame_id} mirrored"
    assert verdict.reason == f"{whose}; save it in the same order of rows"


def test_frames_without_stars_or_pixels_say_so(truths, tmp_path):
    blank, broken = (replace(truths[k], path=str(tmp_path / f"{k}.fit")) for k in (1, 2))
    noise = np.random.default_rng(1).normal(1000, 20, (240, 320)).astype(np.uint16)
    fits.writeto(blank.path, noise, fits.getheader(truths[1].path))
    Path(broken.path).write_bytes(Path(truths[2].path).read_bytes()[:9000])
    first, second = place_by_stars([hidden(blank), hidden(broken)], truths[:1]).verdicts
    assert first.reason.startswith("only ")
    assert first.reason.endswith("stars are found in it, too few to align it by; plate-solve it beforehand")
    assert "truncated" in second.reason


def test_frames_that_share_no_star_are_not_made_into_a_mosaic(truths, elsewhere):
    placing = place_by_stars([hidden(truths[1]), hidden(elsewhere)], [])
    assert placing.caveat == ""
    for verdict in placing.verdicts:
        assert "stars are those of no other frame; add frames that overlap it" in verdict.reason


def test_the_larger_family_of_frames_is_the_mosaic(truths, elsewhere):
    """A lone frame with the most stars of all is not the root."""
    placing = place_by_stars([hidden(elsewhere), *(hidden(truth) for truth in truths)], [])
    assert [bool(verdict.reason) for verdict in placing.verdicts] == [True] + [False] * 6


def test_one_frame_alone_is_put_where_its_header_points(truths):
    placing = place_by_stars([hidden(truths[0])], [])
    assert "provisional" in placing.caveat
    assert placing.verdicts[0].reason == ""


def test_a_frame_is_compared_with_some_tens_of_others_at_most(truths, monkeypatch):
    calls = []
    monkeypatch.setattr(zemosaic_star_placing, "match_patterns", lambda *pair: calls.append(pair))
    monkeypatch.setattr(zemosaic_star_placing, "MOST_TRIES", 3)
    placed_of(truths, [0, 1, 2, 3, 4])
    assert 1 <= len(calls) <= 3 + 3  # plain, and mirrored


def test_a_cancelled_run_stops(truths):
    cancel = CancelToken()
    with pytest.raises(RunCancelled):
        placed_of(truths, [0], on_progress=lambda done, total: cancel.cancel(), cancel=cancel)


# ---- a run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(frames, tmp_path_factory):
    return Run(frames, tmp_path_factory.mktemp("whole"), SETTINGS)


@pytest.fixture(scope="module")
def stripped(frames, truths, tmp_path_factory):
    """Two of six frames, one a panel, have lost their WCS."""
    folder = tmp_path_factory.mktemp("stripped")
    raw = without_wcs(frames, folder / "raw", [truths[k].frame_id for k in (1, 4)])
    return Run(raw, folder / "out", SETTINGS)


@pytest.fixture(scope="module")
def nowhere(frames, truths, tmp_path_factory):
    """No frame has a WCS."""
    folder = tmp_path_factory.mktemp("nowhere")
    raw = without_wcs(frames, folder / "raw", [truth.frame_id for truth in truths])
    return Run(raw, folder / "out", SETTINGS)


def stars_of(run):
    """Windowed centroids and fluxes of the bright stars of a mosaic."""
    plane = run.mosaic.astype(np.float32)
    mask = ~np.isfinite(plane)
    plane = np.where(mask, 0.0, plane - np.nanmedian(plane)).astype(np.float32)
    noise = 1.4826 * np.median(np.abs(plane[~mask]))
    found = sep.extract(plane, 20.0, err=noise, mask=mask)
    x, y, flag = sep.winpos(plane, found["x"], found["y"], 1.3)
    flux, _, broken = sep.sum_circle(plane, x, y, 5.0, mask=mask)
    good = (flag == 0) & (broken == 0)
    return x[good], y[good], flux[good]


def same_stars(run, other):
    """The common stars of two mosaics (x, y, flux), found by their places on the sky."""
    x, y, flux = stars_of(run)
    ox, oy, oflux = stars_of(other)
    sky = read_product_wcs(run.paths.mosaic).celestial.all_pix2world(x, y, 0)
    there = np.column_stack(read_product_wcs(other.paths.mosaic).celestial.all_world2pix(*sky, 0))
    distance, k = KDTree(np.column_stack([ox, oy])).query(there, distance_upper_bound=1.0)
    both = np.isfinite(distance)
    assert both.sum() > 30
    return there[both] - np.column_stack([ox, oy])[k[both]], flux[both] / oflux[k[both]]


def test_frames_placed_by_stars_are_worth_as_much_as_any(stripped, whole):
    assert stripped.result.complete
    assert stripped.result.n_used == 6
    away, ratio = same_stars(stripped, whole)
    assert np.sqrt((away**2).mean()) < 0.02
    assert np.sqrt(((ratio - 1.0) ** 2).mean()) < 0.005


def test_the_ledger_says_by_which_stars_a_frame_is_placed(stripped, truths):
    rows, _ = read_ledger(stripped.paths.ledger)
    for k, row in enumerate(rows):
        assert row.used
        assert ("stars of Light_" in row.placed_by) == (k in (1, 4))
    told = [event.text for event in stripped.events if isinstance(event, Message)]
    assert "stars: 2 of 2 frame(s) without a WCS are placed by the stars they share with others" in told
    assert not any("plate solver" in text for text in told)
    assert json.loads(stripped.paths.report.read_text(encoding="utf-8"))["caveats"] == []


def test_a_mosaic_without_a_place_has_the_right_shape(nowhere, whole):
    """Its stars are those of the true mosaic after one similarity."""
    assert nowhere.result.n_used == 6
    x, y, flux = stars_of(nowhere)
    ox, oy, oflux = stars_of(whole)
    brightest, theirs = np.argsort(-flux), np.argsort(-oflux)
    shape = nowhere.mosaic.shape[-2:]
    first = star_pattern(x[brightest], y[brightest], shape)
    second = star_pattern(ox[theirs], oy[theirs], whole.mosaic.shape[-2:])
    match = match_patterns(first, second)
    assert match.first.size > 30
    off = np.abs(match.turn * first.z[match.first] + match.shift - second.z[match.second])
    assert np.sqrt((off**2).mean()) < 0.05
    assert abs(match.turn) == pytest.approx(1.0, abs=0.002)


def test_the_user_is_told_wherever_he_looks_that_the_place_is_provisional(nowhere):
    warnings = [e.text for e in nowhere.events if isinstance(e, Message) and e.level == "WARNING"]
    (caveat,) = [text for text in warnings if text.startswith("The place of this mosaic")]
    comment = "".join(str(card) for card in nowhere.header["COMMENT"])
    assert comment.replace(" ", "") == caveat.replace(" ", "")
    assert json.loads(nowhere.paths.report.read_text(encoding="utf-8"))["caveats"] == [caveat]
    assert [row["placed_by"] for row in nowhere.ledger].count("a provisional place") == 1
    assert caveat in nowhere.log


def test_the_order_of_the_plan_leaves_no_trace_in_the_mosaic(stripped, tmp_path):
    raw = shuffled_copy(stripped.paths.folder.parent / "raw", tmp_path / "raw")
    run = Run(raw, tmp_path / "out", SETTINGS)
    np.testing.assert_array_equal(run.mosaic, stripped.mosaic)


def test_a_frame_of_another_sky_is_left_out_of_the_run(frames, truths, elsewhere, whole, tmp_path):
    raw = without_wcs(frames, tmp_path / "raw", [truths[1].frame_id])
    data, header = fits.getdata(elsewhere.path), fits.getheader(elsewhere.path)
    del header["CTYPE1"], header["CTYPE2"]
    fits.writeto(raw / "elsewhere.fit", data, header)
    run = Run(raw, tmp_path / "out", SETTINGS)
    assert run.result.n_used == 6
    (item,) = [event.left_out for event in run.events if isinstance(event, FrameLeftOut)]
    assert Path(item.path).name == "elsewhere.fit"
    assert item.reason.startswith(f"{NO_WCS}; plate solving is turned off; its ")
    assert "none of the 6 frames that have a place" in item.reason


def test_stars_are_left_alone_where_the_user_wants(frames, truths, tmp_path):
    raw = without_wcs(frames, tmp_path / "raw", [truth.frame_id for truth in truths])
    settings = replace(SETTINGS, solve=replace(NO_SOLVER, align_by_stars=False))
    with pytest.raises(PlanError, match=r"no frame has a place on the sky: .*plate solving is turned off"):
        run_grid(raw, tmp_path / "out", settings)


# ---- real frames -----------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("keep", [0, 16])
def test_real_frames_of_three_nights_are_placed_by_one(real_data, keep):
    """Plate solutions of single frames differ among each other by up to 0.54 px rms."""
    truths = records_in(real_data / "m94")
    verdicts, _ = placed_of(truths, [keep])
    for truth in truths:
        if truth is not truths[keep]:
            assert verdicts[truth.frame_id].reason == ""
            assert most_off_px(verdicts[truth.frame_id].record, truth) < 1.5
