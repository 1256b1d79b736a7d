"""Ledgers are read back as they were written, and judged in words."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from ledgers import rows_of
from zemosaic_ledger import AS_SUGGESTED, FrameColumns, frames_to_drop, judge, read_ledger
from zemosaic_outputs import COLOURED, LedgerRow, ledger_text
from zemosaic_types import PlanError


def written(tmp_path, rows, channels=1):
    path = tmp_path / "ledger.csv"
    path.write_text(ledger_text(rows, channels), encoding="utf-8")
    return path


def names(judgement, frames):
    return [judgement.rows[k].frame_id[-8:-4] for k in frames]


# ---- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_ledger_is_read_as_it_was_written(tmp_path, channels):
    rows = rows_of(4, channels, f2=dict(used=False, reason='no "WCS", at all;\nnone', sky=(), outline=""))
    rows += [LedgerRow("/elsewhere/été.fit", 7, reason="file not found")]
    path = written(tmp_path, rows, channels)
    back, n_channels = read_ledger(path)
    assert n_channels == channels
    assert ledger_text(back, channels) == path.read_text(encoding="utf-8")
    assert back[2] == replace(back[2], used=False, sky=(), outline="", fwhm_px=back[2].fwhm_px)
    assert back[4] == rows[4]
    for name in COLOURED:
        np.testing.assert_allclose(getattr(back[0], name), getattr(rows[0], name), rtol=1e-6)


def test_who_reads_beside_a_window_lets_it_go_on_every_few_rows(tmp_path):
    path, calls = written(tmp_path, rows_of(64, 1)), []
    rows, _ = read_ledger(path, between=lambda: calls.append(None))
    assert len(calls) >= len(rows) // 8
    assert rows == read_ledger(path)[0]


def test_the_new_columns_stand_behind_the_weight():
    header = ledger_text(rows_of(1, 3), 3).splitlines()[0].split(",")
    first = header.index("weight_b") + 1
    colours = [f"{name}_{c}" for name in ("gradient_x", "gradient_y") for c in "rgb"]
    colours += ["transparency", *(f"match_residual_{c}" for c in "rgb"), "align_residual_px", "outline"]
    assert header[first : first + len(colours)] == colours


def test_a_ledger_without_the_new_columns_can_be_read(tmp_path):
    path = tmp_path / "ledger.csv"
    path.write_text("path,used,frame_id,noise,gain,weight\n/a/b.fit,yes,b.fit,30,1,0.001\n", encoding="utf-8")
    rows, n_channels = read_ledger(path)
    assert (n_channels, rows[0].noise, rows[0].outline, rows[0].transparency) == (1, (30.0,), "", None)
    judgement = judge(rows, n_channels)
    assert (judgement.suggested, judgement.placed) == ([], 0)


BROKEN = {
    "not there": (None, "cannot be read"),
    "empty": (b"", "no rows"),
    "header only": (b"path,used\n", "no rows"),
    "another table": (b"a,b\n1,2\n", "'path' and 'used'"),
    "not text": (b"path,used\n\xff\xfe,yes\n", "UTF-8"),
    "no number": (b"path,used,fwhm_px\na.fit,yes,3.1\nb.fit,yes,wide\n", "row 3, fwhm_px: .*wide"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_ledger_is_refused_with_a_reason(case, tmp_path):
    content, reason = BROKEN[case]
    if content is not None:
        (tmp_path / "ledger.csv").write_bytes(content)
    with pytest.raises(PlanError, match=reason):
        read_ledger(tmp_path / "ledger.csv")


# ---- judging ---------------------------------------------------------------------------------------------

CULPRITS = dict(
    f4=dict(fwhm_px=6.4),
    f11=dict(match_residual=(40.0,), transparency=0.6, gain=(1.6,), weight=(0.0004,)),
    f20=dict(match_residual=(15.0,), gradient_x=(0.8,), n_rejected_high=9000),
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_clean_survey_has_no_culprit_and_nothing_unusual(channels, seed):
    judgement = judge(rows_of(40, channels, seed), channels)
    assert judgement.suggested == []
    assert judgement.prediction is None
    assert set(judgement.remarks) == {""}
    assert (judgement.harm.total < 0).all()


def test_planted_culprits_are_named_with_their_reasons():
    judgement = judge(rows_of(**CULPRITS), 1)
    assert sorted(names(judgement, judgement.suggested)) == ["0004", "0011", "0020"]
    reasons = {names(judgement, [k])[0]: judgement.remarks[k] for k in judgement.suggested}
    assert reasons["0004"] == "its stars are 2.0 times as wide as usual"
    assert "clouds: 40 % of the light lost" in reasons["0011"]
    assert re.search(r"what is left after the match is \d\d times the usual", reasons["0011"])
    assert "18 % of its pixels were rejected" in reasons["0020"]
    assert "its sky gradient is" in reasons["0020"]
    before, after = judgement.prediction.here
    assert after.noise > before.noise
    assert after.error < before.error
    assert after.seam < 0.5 * before.seam
    assert after.fwhm_px < before.fwhm_px


WORDS = {
    "stars elsewhere": (dict(align_residual_px=None), "none of its 80 stars is where its neighbours see them"),
    "elongation": (dict(elongation=1.9), "its stars are drawn out, 1.9 : 1"),
    "align_residual_px": (dict(align_residual_px=2.5), "it lies 2.5 px beside its neighbours"),
    "noise": (dict(noise=(75.0,)), "its noise is 2.5 times the usual"),
    "transparency": (dict(transparency=0.0), "clouds: 100 % of the light lost"),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_is_unusual_is_said_in_words(case):
    change, words = WORDS[case]
    judgement = judge(rows_of(f7=change), 1)
    assert judgement.remarks[7] == words
    assert [text for k, text in enumerate(judgement.remarks) if k != 7] == [""] * 29


def test_frames_are_compared_with_those_of_their_camera():
    coarse = dict(camera="another", fwhm_px=3.2, area_ratio=0.25, noise=(90.0,), weight=(1 / 9e4,), elongation=1.5)
    others = {f"f{k}": coarse for k in range(0, 10)}
    judgement = judge(rows_of(40, **others), 1)
    assert judgement.remarks == [""] * 40
    others["f3"] = coarse | dict(fwhm_px=6.4)
    judgement = judge(rows_of(40, **others), 1)
    assert judgement.remarks[3] == "its stars are 2.0 times as wide as usual"
    assert judgement.remarks[:3] + judgement.remarks[4:] == [""] * 39


def test_a_camera_of_few_frames_is_compared_with_all():
    judgement = judge(rows_of(40, f3=dict(camera="another", fwhm_px=6.4)), 1)
    assert judgement.remarks[3] == "its stars are 2.0 times as wide as usual"


def test_the_noise_of_large_pixels_counts_for_the_patch_that_shares_it():
    quality = FrameColumns(rows_of(4, f1=dict(area_ratio=0.25), f2=dict(area_ratio=4.0)), 1).quality()
    rows = rows_of(4)
    plain = np.array([row.noise[0] for row in rows])
    np.testing.assert_allclose(quality.noise[:, 0] / plain, [1.0, 2.0, 1.0, 1.0])


def test_frames_without_common_stars_are_not_remarked_upon_where_most_have_none():
    nobody = {f"f{k}": dict(align_residual_px=None) for k in range(25)}
    assert judge(rows_of(**nobody), 1).remarks == [""] * 30
    assert judge(rows_of(f7=dict(align_residual_px=None, n_stars=4)), 1).remarks == [""] * 30


def test_a_frame_that_still_helps_is_remarked_upon_but_not_suggested():
    # Clouds alone harm nothing: the weight says already how little the frame is worth.
    judgement = judge(rows_of(f7=dict(transparency=0.5, gain=(2.0,), weight=(1 / 3600.0,))), 1)
    assert "clouds" in judgement.remarks[7]
    assert judgement.harm.total[7] < 0
    assert judgement.suggested == []


def test_a_frame_of_finer_pixels_is_measured_in_pixels_of_the_mosaic():
    judgement = judge(rows_of(f7=dict(fwhm_px=6.4, area_ratio=4.0)), 1)
    assert judgement.remarks[7] == ""


def test_the_order_of_the_rows_does_not_matter():
    rows = rows_of(**CULPRITS)
    expected = judge(rows, 1)
    for seed in range(3):
        shuffled = rows.copy()
        random.Random(seed).shuffle(shuffled)
        judgement = judge(shuffled, 1)
        assert names(judgement, judgement.suggested) == names(expected, expected.suggested)
        np.testing.assert_array_equal(judgement.harm.total, expected.harm.total)
        assert judgement.prediction == expected.prediction
        assert judgement.to_drop() == expected.to_drop()


def test_at_most_a_tenth_of_the_frames_is_ever_suggested():
    bad = {f"f{k}": dict(match_residual=(20.0 + k,)) for k in range(0, 12)}
    rows = rows_of(40, **bad)
    judgement = judge(rows, 1)
    assert len(judgement.suggested) == 4
    assert set(judgement.suggested) < set(range(12))
    for k in judgement.suggested:
        rows[k].used, rows[k].reason = False, f"{AS_SUGGESTED}bad"
    again = judge(rows, 1)
    assert again.suggested == []
    assert len(again.to_drop()) == 4


def test_what_was_left_out_as_suggested_is_remembered(tmp_path):
    rows = rows_of(40, **CULPRITS)
    rows[11].used, rows[11].reason = False, f"{AS_SUGGESTED}clouds"
    rows[12].used, rows[12].reason = False, "no WCS"
    drop = frames_to_drop(written(tmp_path, rows))
    assert drop["night1/Light_0011.fit"] == "clouds"
    assert set(drop) == {f"night1/Light_00{k}.fit" for k in ("04", "11", "20")}


def test_strange_values_are_no_reason_to_stop():
    strange = dict(noise=(float("nan"),), weight=(float("inf"),), outline="1 2 three 4 5 6 7 8", fwhm_px=None)
    judgement = judge(rows_of(f3=strange, f5=dict(outline="1 2 3"), f6=dict(n_samples=0, n_rejected_high=0)), 1)
    assert judgement.placed == 28
    assert np.isnan(judgement.harm.total[[3, 5]]).all()
    assert np.isfinite(np.delete(judgement.harm.total, [3, 5])).all()


def test_a_ledger_in_which_no_frame_was_used_can_be_judged():
    rows = [replace(row, used=False, reason="no WCS") for row in rows_of(3)]
    judgement = judge(rows, 1)
    assert judgement.rows == []
    assert judgement.to_drop() == {}
