"""The groups of a run: from frames, to a file that a user edits, and back."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import zemosaic_config
from zemosaic_groups import (
    GROUPS_NAME,
    NOT_IN_FILE,
    Group,
    GroupPlan,
    GroupSettings,
    find_groups,
    read_groups,
    write_groups,
)
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_types import FrameHeader, FrameRecord, LeftOut, OutputError, PlanError

SCALE = 2.375 / 3600


def record(name, ra, dec, *, angle=0.0, mirrored=False, scale=SCALE, shape=(1080, 1920), **header):
    """A frame at a place; `angle` is the position angle of its x axis."""
    c, s = scale * np.cos(np.deg2rad(angle)), scale * np.sin(np.deg2rad(angle))
    parity = 1 if mirrored else -1
    cards = {
        "CTYPE1": "'RA---TAN'",
        "CTYPE2": "'DEC--TAN'",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": (shape[1] + 1) / 2,
        "CRPIX2": (shape[0] + 1) / 2,
        "CD1_1": s,
        "CD1_2": parity * c,
        "CD2_1": c,
        "CD2_2": -parity * s,
        "RADESYS": "'ICRS'",
    }
    text = "".join(f"{key:<8}= {value}".ljust(80) for key, value in cards.items())
    return FrameRecord(name, f"/frames/{name}", FrameHeader(0, "bayer", shape, "GRBG", text, **header), 10.0, 7)


def without_wcs(name):
    return FrameRecord(name, f"/frames/{name}", FrameHeader(0, "mono", (1080, 1920)), 10.0, 3)


@pytest.fixture
def survey():
    """Two panels of two frames, and one frame without a WCS."""
    return [
        record("b/2.fit", 0.02, 41.0),
        record("a/1.fit", 359.99, 41.0),
        record("c/3.fit", 0.0, 41.7),
        record("d/4.fit", 0.01, 41.71),
        without_wcs("e/5.fit"),
    ]


@pytest.fixture
def file(tmp_path):
    return tmp_path / GROUPS_NAME


def members(plan):
    return [group.frame_ids for group in plan.groups]


# ---- finding groups -------------------------------------------------------------------------------------


def test_panels_become_groups_numbered_by_their_first_frame(survey):
    plan = find_groups(survey, GroupSettings())
    assert members(plan) == [("a/1.fit", "b/2.fit"), ("c/3.fit", "d/4.fit")]
    assert [group.name for group in plan.groups] == ["group_001", "group_002"]
    assert plan.groups[0].centre_deg == pytest.approx((0.005, 41.0), abs=1e-5)
    assert plan.groups[0].reason == "pointings within 0.011 deg of the centre"
    assert plan.parameters["used_threshold_deg"] == pytest.approx(0.35625)
    assert plan.notes == ()
    assert find_groups(survey[::-1], GroupSettings()) == plan


def test_a_frame_without_a_wcs_is_in_no_group_and_named(survey):
    plan = find_groups(survey, GroupSettings())
    assert plan.ungrouped == {"e/5.fit": "no celestial WCS"}
    assert plan.left_out(survey) == [LeftOut("/frames/e/5.fit", "no celestial WCS", 3)]


def test_no_frame_with_a_wcs_is_an_error_that_says_why(survey):
    with pytest.raises(PlanError, match=r"by its pointing: e/5.fit: no celestial WCS"):
        find_groups(survey[4:], GroupSettings())


def test_one_frame_alone_is_a_group(survey):
    plan = find_groups(survey[:1], GroupSettings(target_groups=1, orientation_split_deg=5))
    assert members(plan) == [("b/2.fit",)]
    assert plan.groups[0].reason == "one pointing"
    assert plan.notes == ()


def test_the_threshold_of_the_user_holds(survey):
    assert len(find_groups(survey, GroupSettings(threshold_deg=0.001)).groups) == 4
    assert len(find_groups(survey, GroupSettings(threshold_deg=0.75)).groups) == 1


def test_the_automatic_threshold_follows_the_size_of_the_frames():
    close = [record("1", 10, 20, scale=SCALE / 10), record("2", 10, 20.1, scale=SCALE / 10)]
    assert len(find_groups(close, GroupSettings()).groups) == 2
    assert len(find_groups([record("1", 10, 20), record("2", 10, 20.1)], GroupSettings()).groups) == 1


def test_a_chain_is_cut_and_the_reason_and_a_note_say_so():
    chain = [record(f"{k:03d}", 100 + 0.05 * k, 0) for k in range(60)]
    plan = find_groups(chain, GroupSettings())
    assert len(plan.groups) > 3
    assert all("part of a wider chain" in group.reason for group in plan.groups)
    assert f"{len(plan.groups)} groups are parts of chains" in plan.notes[0]
    assert sum(members(plan), ()) == tuple(f"{k:03d}" for k in range(60))


def test_a_target_is_met_or_the_plan_says_what_instead(survey):
    met = find_groups(survey, GroupSettings(target_groups=2))
    assert len(met.groups) == 2
    assert met.notes == ()
    frames = [record(str(k), k, 0) for k in range(3)] + [record("9", 0, 0)]
    missed = find_groups(frames, GroupSettings(target_groups=9))
    assert len(missed.groups) == 3
    assert missed.notes[0] == (
        "cluster_target_groups = 9 cannot be met: the distances between the pointings allow 3 as the nearest "
        "number of groups"
    )
    assert "2 groups are of one frame only" in missed.notes[1]


def test_a_target_overrules_the_extent_and_a_note_says_so():
    plan = find_groups([record(str(k), k, 0) for k in range(4)], GroupSettings(target_groups=1))
    assert len(plan.groups) == 1
    assert plan.notes == ("1 group is so wide that not every frame covers the group's centre",)


@pytest.mark.parametrize("mirrored", [True, False])
def test_turned_frames_are_split_and_half_a_turn_is_none(mirrored):
    angles = {"1": 359, "2": 1, "3": 181, "4": 70, "5": -109}
    frames = [record(name, 10, 41, angle=angle, mirrored=mirrored) for name, angle in angles.items()]
    plan = find_groups(frames, GroupSettings(orientation_split_deg=5))
    assert members(plan) == [("1", "2", "3"), ("4", "5")]
    assert plan.groups[0].reason == "one pointing, position angle near 0.0 deg"
    assert plan.groups[1].reason == "one pointing, position angle near 70.5 deg"
    assert len(find_groups(frames, GroupSettings()).groups) == 1


def test_filters_and_instruments_are_kept_apart_only_if_asked():
    frames = [
        record("1", 10, 41, filter="LP", instrument="S50"),
        record("2", 10, 41, filter="lp ", instrument="s50"),
        record("3", 10, 41, filter="IRCUT", telescope="S30"),
        record("4", 10, 41, instrument="S50"),
    ]
    assert members(find_groups(frames, GroupSettings())) == [("1", "2", "3", "4")]
    by_filter = find_groups(frames, GroupSettings(by_filter=True))
    assert members(by_filter) == [("1", "2"), ("3",), ("4",)]
    assert [group.reason for group in by_filter.groups] == [
        "one pointing, filter lp",
        "one pointing, filter ircut",
        "one pointing, filter not named",
    ]
    assert members(find_groups(frames, GroupSettings(by_instrument=True))) == [("1", "2", "4"), ("3",)]


def test_the_settings_are_those_of_the_configuration():
    assert GroupSettings.from_config(zemosaic_config.resolve()) == GroupSettings()
    values = {
        "cluster_panel_threshold": 0.05,
        "cluster_target_groups": 4,
        "cluster_orientation_split_deg": 7.5,
        "cluster_by_filter": True,
        "cluster_by_instrument": True,
    }
    config = zemosaic_config.resolve(values)
    assert GroupSettings.from_config(config) == GroupSettings(0.05, 4, 7.5, True, True)


@pytest.mark.real
def test_the_four_panels_of_m94_are_four_groups(real_data):
    folder = real_data / "panels_m94"
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    plan = find_groups(records, GroupSettings())
    assert members(plan) == [tuple(f"panel{panel}_{k}.fit" for k in (1, 2, 3)) for panel in "ABCD"]


@pytest.mark.real
def test_the_sessions_of_m94_are_one_group_and_two_by_orientation(real_data):
    folder = real_data / "m94"
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    assert len(find_groups(records, GroupSettings()).groups) == 1
    turned = find_groups(records, GroupSettings(orientation_split_deg=10))
    assert [len(group.frame_ids) for group in turned.groups] == [12, 5]


# ---- the file -------------------------------------------------------------------------------------------


def test_a_plan_reads_back_as_it_was_written(survey, file):
    plan = find_groups(survey, GroupSettings(target_groups=9, by_filter=True))
    write_groups(file, plan)
    back = read_groups(file, survey)
    assert (members(back), back.ungrouped, back.notes) == (members(plan), plan.ungrouped, plan.notes)
    assert back.parameters == plan.parameters
    for ours, theirs in zip(plan.groups, back.groups, strict=True):
        assert (ours.name, ours.reason) == (theirs.name, theirs.reason)
        assert ours.centre_deg == pytest.approx(theirs.centre_deg, abs=1e-9)
    write_groups(file.with_name("again.json"), back)
    assert file.with_name("again.json").read_bytes() == file.read_bytes()


def test_names_of_any_alphabet_and_of_none_survive(file):
    odd = [record(name, 10, 41) for name in ("M 31 été/星.fit", 'a"b\\c.fit', "bad\udcff.fit")]
    write_groups(file, find_groups(odd[:2], GroupSettings()))
    assert "M 31 été/星.fit" in file.read_text(encoding="utf-8")
    write_groups(file, find_groups(odd, GroupSettings()))
    assert set(members(read_groups(file, odd))[0]) == {frame.frame_id for frame in odd}


def test_a_plan_that_cannot_be_written_leaves_the_old_one(survey, file, monkeypatch):
    plan = find_groups(survey, GroupSettings())
    write_groups(file, plan)
    before = file.read_bytes()
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match=GROUPS_NAME):
        write_groups(file, GroupPlan(plan.groups[:1]))
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.fixture
def content(survey, file):
    write_groups(file, find_groups(survey, GroupSettings()))
    return json.loads(file.read_text(encoding="utf-8"))


def read_edited(file, content, survey):
    file.write_text(json.dumps(content), encoding="utf-8-sig")  # as Windows' editor writes it
    return read_groups(file, survey)


def test_a_user_may_move_frames_rename_and_reorder_groups(content, file, survey):
    first, second = content["groups"]
    second["frames"].append(first["frames"].pop())
    second["name"] = "the halo"
    content["groups"].reverse()
    plan = read_edited(file, content, survey)
    assert members(plan) == [("b/2.fit", "c/3.fit", "d/4.fit"), ("a/1.fit",)]
    assert plan.groups[0].name == "the halo"
    # The centre follows the frames, whatever the file says.
    assert plan.groups[0].centre_deg == pytest.approx((0.01, (41 + 41.7 + 41.71) / 3), abs=1e-3)


def test_a_frame_without_a_wcs_may_be_given_to_a_group(content, file, survey):
    content["groups"].append({"name": "by hand", "frames": ["e/5.fit"]})
    content["ungrouped"] = []
    plan = read_edited(file, content, survey)
    assert plan.groups[2] == Group("by hand", ("e/5.fit",), None, "")
    assert plan.ungrouped == {}


def test_frames_that_the_file_does_not_name_are_left_out_by_name(content, file, survey):
    content["groups"][0]["frames"].remove("a/1.fit")
    del content["ungrouped"], content["parameters"], content["notes"]
    plan = read_edited(file, content, survey)
    assert plan.ungrouped == {"a/1.fit": NOT_IN_FILE, "e/5.fit": NOT_IN_FILE}
    assert [item.path for item in plan.left_out(survey)] == ["/frames/a/1.fit", "/frames/e/5.fit"]


def test_a_frame_that_the_user_ungrouped_keeps_the_reason_given(content, file, survey):
    content["groups"][0]["frames"].remove("a/1.fit")
    content["ungrouped"].append({"frame": "a/1.fit", "reason": "clouds"})
    content["ungrouped"][0]["reason"] = ""
    plan = read_edited(file, content, survey)
    assert plan.ungrouped == {"a/1.fit": "clouds", "e/5.fit": "ungrouped in groups.json"}


def first_frames(content):
    return content["groups"][0]["frames"]


FAULTS = [
    ("unknown frame", lambda c: first_frames(c).append("b/22.fit"),
     r"groups\[0\].frames\[2\]: the run has no frame 'b/22.fit', did you mean 'b/2.fit'\?"),
    ("unknown frame like none", lambda c: first_frames(c).append("zzz"), r"the run has no frame 'zzz'$"),
    ("unknown ungrouped", lambda c: c["ungrouped"].append({"frame": "zzz"}),
     r"ungrouped\[1\].frame: the run has no frame 'zzz'"),
    ("frame twice in a group", lambda c: first_frames(c).append("a/1.fit"),
     r"groups\[0\].frames\[2\]: 'a/1.fit' stands in groups\[0\].frames\[0\] already"),
    ("frame in two groups", lambda c: c["groups"][1]["frames"].append("a/1.fit"),
     r"groups\[1\].frames\[2\]: 'a/1.fit' stands in groups\[0\].frames\[0\] already"),
    ("grouped and ungrouped", lambda c: first_frames(c).append("e/5.fit"),
     r"ungrouped\[0\].frame: 'e/5.fit' stands in groups\[0\].frames\[2\] already"),
    ("empty group", lambda c: first_frames(c).clear(), r"groups\[0\].frames: 'group_001' is empty"),
    ("no group", lambda c: c["groups"].clear(), "groups: there is no group"),
    ("one name for two", lambda c: c["groups"][1].update(name="group_001"), "'group_001' is used more than once"),
    ("no name", lambda c: c["groups"][1].update(name=" "), r"groups\[1\].name: ' ' cannot be read in a log"),
    ("a name of two lines", lambda c: c["groups"][1].update(name="a\nb"), r"groups\[1\].name: 'a\\nb'"),
    ("newer version", lambda c: c.update(version=2), "version: is 2; this ZeMosaic reads 1"),
    ("version true", lambda c: c.update(version=True), "version: is True; this ZeMosaic reads 1"),
    ("version as text", lambda c: c.update(version="1"), "version: is '1'; this ZeMosaic reads 1"),
    ("no version", lambda c: c.pop("version"), "'version' is missing"),
    ("no groups", lambda c: c.pop("groups"), "'groups' is missing"),
    ("no frames", lambda c: c["groups"][1].pop("frames"), r"groups\[1\]: 'frames' is missing"),
    ("misspelt key", lambda c: c["groups"][1].update(reasons=""), r"groups\[1\]: unknown key 'reasons'; known"),
    ("groups no list", lambda c: c.update(groups={}), r"groups: must be a list, \[...\], not {}"),
    ("group no object", lambda c: c["groups"].append(7), r"groups\[2\]: must be an object, {...}, not 7"),
    ("frames no list", lambda c: c["groups"][0].update(frames="a/1.fit"), r"groups\[0\].frames: must be a list"),
    ("frame no text", lambda c: first_frames(c).append(None), r"groups\[0\].frames\[2\]: must be text, not null"),
    ("reason no text", lambda c: c["groups"][0].update(reason=3), r"groups\[0\].reason: must be text, not 3"),
    ("notes no texts", lambda c: c.update(notes=[1]), r"notes\[0\]: must be text, not 1"),
    ("parameters no object", lambda c: c.update(parameters=[]), "parameters: must be an object"),
    ("ungrouped no objects", lambda c: c.update(ungrouped=["e/5.fit"]), r"ungrouped\[0\]: must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_what_is_wrong_in_the_file_is_told_with_its_place(change, reason, content, file, survey):
    change(content)
    with pytest.raises(PlanError, match=reason) as caught:
        read_edited(file, content, survey)
    assert str(caught.value).startswith(f"{file}: ")


def test_several_faults_are_told_together(content, file, survey):
    first_frames(content).extend(["x1", "x2", "x3", "x4"])
    with pytest.raises(PlanError, match=r"\[2\].*\[3\].*\[4\]: the run has no frame 'x3'; and 1 more$"):
        read_edited(file, content, survey)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r", line 1, column 1: not JSON: Expecting value"),
        (b'{"version": 1,\n "groups": [}', r", line 2, column 13: not JSON"),
        (b"\xff\xfe{", "cannot be understood: .*codec"),
        (b"[" * 100_000, "cannot be understood"),
        (b"[]", r": the file: must be an object, {...}, not \[\]"),
        (b'{"version": 1, "version": 1, "groups": []}', "the key 'version' stands twice in one object"),
        (b'{"version": NaN, "groups": []}', "NaN is no number of JSON"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(data, reason, file, survey):
    file.write_bytes(data)
    with pytest.raises(PlanError, match=reason) as caught:
        read_groups(file, survey)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_named(file, survey):
    with pytest.raises(PlanError, match=r"groups.json cannot be read: No such file"):
        read_groups(file, survey)
    file.mkdir()
    with pytest.raises(PlanError, match=r"groups.json cannot be read"):
        read_groups(file, survey)


def test_a_moved_project_reads_its_plan_since_ids_are_relative(tmp_path, survey):
    (tmp_path / "here").mkdir()
    write_groups(tmp_path / "here" / GROUPS_NAME, find_groups(survey, GroupSettings()))
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = [replace(frame, path=f"/elsewhere/{frame.frame_id}") for frame in survey]
    assert len(read_groups(tmp_path / "there" / GROUPS_NAME, moved).groups) == 2
