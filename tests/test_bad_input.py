"""Grid mode on bad input: what is bad is named and left out, all else goes on, nothing is half-written."""

import logging
import multiprocessing.resource_tracker
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits
from scipy.ndimage import binary_dilation, binary_erosion

from classic_mode import ClassicSettings, run_classic
from grid_mode import GridSettings, run_grid_mode
from surveys import GRID_PHASES, Run, survey_in
from zemosaic_events import (
    CancelToken,
    FinishReason,
    FrameLeftOut,
    PhaseProgress,
    RunFinished,
    TileDone,
    TileFailed,
    as_listener,
)
from zemosaic_fits_products import read_product_wcs
from zemosaic_outputs import ProductPaths
from zemosaic_plan_table import PLAN_NAME
from zemosaic_synthetic import frame_wcs, small_spec
from zemosaic_types import OutputError, PlanError, RunCancelled, StackParams, ZeMosaicError

ONE_WORKER = GridSettings(workers=1, overwrite=True)
# The reasons are those of the frames, whether a plate solver is there or not.
UNSOLVED = replace(ONE_WORKER, solve=None)
GOOD = "Light_00_0001.fit"
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


# ---- material --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The truth of two panels of four good frames each, 160 x 200 px; nobody spoils its files."""
    return survey_in(tmp_path_factory.mktemp("survey") / "frames", small_spec(frames_per_panel=4))


@pytest.fixture(scope="module")
def frames(survey):
    return survey.frames[0].path.parent


@pytest.fixture(scope="module")
def clean(frames, tmp_path_factory):
    """The run that nothing disturbs."""
    run = Attempt(frames, tmp_path_factory.mktemp("clean"))
    assert run.result.complete
    return run


@pytest.fixture
def raw(frames, tmp_path):
    """A copy of the good frames that a test may spoil."""
    return Path(shutil.copytree(frames, tmp_path / "raw"))


class Attempt(Run):
    """A run that may fail. It must finish exactly once, and leave its input as it was."""

    def __init__(self, folder, output, settings=ONE_WORKER, *, listener=None, cancel=None, spoils_input=False):
        self.events, self.paths = [], ProductPaths(output, self.stem)
        self.error = self.result = None
        before = fingerprint(folder)

        def hear(event):
            self.events.append(event)
            if listener is not None:
                listener(event)

        try:
            self.result = self.pipeline(folder, output, settings, listener=hear, cancel=cancel)
        except Exception as error:  # noqa: BLE001 - what a run may raise is the tests' business
            self.error = error
        assert spoils_input or fingerprint(folder) == before, "the run touched its input"
        assert [type(event) for event in self.events].count(RunFinished) == 1
        assert isinstance(self.events[-1], RunFinished)

    @property
    def finish(self):
        return self.events[-1].reason

    @cached_property
    def rows(self):
        return self.ledger

    def row(self, name):
        """The one row of the ledger for a file."""
        (row,) = [row for row in self.rows if Path(row["path"]).name == name]
        return row


class ClassicAttempt(Attempt):
    """The same by way of master tiles."""

    pipeline, stem = staticmethod(run_classic), "mosaic_classic"


def fingerprint(folder):
    """Name, content and time of everything below a folder; hidden files too."""
    things = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else path.is_symlink() or path.is_dir()
        things[path.relative_to(folder).as_posix()] = (content, path.lstat().st_mtime_ns)
    return things


def same_mosaic(run, other):
    for name in ("mosaic", "coverage", "weight"):
        np.testing.assert_array_equal(getattr(run, name), getattr(other, name), err_msg=name)


def half_written(folder):
    return [path for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]


def workers():
    """The processes that runs of this process have started and that still live."""
    tracker = multiprocessing.resource_tracker._resource_tracker._pid  # both live as long as this process
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in (tracker, server)]


def on_first(kind, act, **fields):
    """Return a listener that acts on the first event of a kind whose fields are as given."""
    done = []

    def hear(event):
        fits_in = isinstance(event, kind) and all(getattr(event, key) == v for key, v in fields.items())
        if fits_in and not done:
            done.append(event)
            act(event)

    return hear


def write_plan_of(folder, names, *, extra=()):
    lines = ["file_path,exposure", *(f"{name},10" for name in names), *extra]
    (folder / PLAN_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def good_names(folder):
    return sorted(path.name for path in folder.glob("Light_*.fit"))


# ---- bad frames ------------------------------------------------------------------------------------------


def bytes_of(change):
    def spoil(good, path):
        path.write_bytes(change(good.read_bytes()))

    return spoil


def pixels_of(change):
    def spoil(good, path):
        values, header = fits.getdata(good).astype(np.float32), fits.getheader(good)
        for key in ("BZERO", "BSCALE"):
            header.remove(key, ignore_missing=True)
        fits.writeto(path, change(values), header)

    return spoil


def cards_of(**cards):
    """Set cards of a frame; None removes one, a function gets the old value."""

    def spoil(good, path):
        shutil.copy(good, path)
        with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
            for key, value in cards.items():
                if value is None:
                    del hdus[0].header[key]
                else:
                    hdus[0].header[key] = value(hdus[0].header[key]) if callable(value) else value

    return spoil


def cd_of(change):
    return cards_of(**{f"CD{i}_{j}": change for i in "12" for j in "12"})


def saturated(values):
    """The sky at the upper limit of a 16-bit camera, with the noise that is left there."""
    noise = np.random.default_rng(1).normal(64000.0, 500.0, values.shape)
    return np.clip(np.rint(noise), 0, 65535).astype(np.uint16)


def table_only(_, path):
    column = fits.Column("X", "E", array=np.zeros(3))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column])]).writeto(path)


BAD_FRAMES = {
    "truncated data": (bytes_of(lambda data: data[:20000]), "truncated"),
    "truncated header": (bytes_of(lambda data: data[:1000]), "header is damaged or cut short"),
    "empty": (bytes_of(lambda data: b""), "empty"),
    "text": (bytes_of(lambda data: b"this is no picture\n" * 200), "not a FITS file"),
    "zeros": (bytes_of(lambda data: bytes(len(data))), "not a FITS file"),
    "no image": (table_only, "no image"),
    "one-dimensional": (pixels_of(lambda values: values[0]), "neither a picture nor a colour cube"),
    "all NaN": (pixels_of(lambda values: np.full_like(values, np.nan)), "no valid pixels"),
    "nearly all NaN": (pixels_of(lambda values: np.where(values > 5000, values, np.nan)), "no valid pixels"),
    "constant": (pixels_of(lambda values: np.full_like(values, 1000)), "constant"),
    "saturated": (pixels_of(saturated), "saturated"),
    "burnt out": (pixels_of(lambda values: np.full(values.shape, 65535, np.uint16)), "saturated|constant"),
    "no WCS": (cards_of(CTYPE1=None, CTYPE2=None), "no celestial WCS"),
    "singular CD": (cd_of(1e-3), "singular"),
    "CD of zeros": (cd_of(0.0), "singular"),
    "giant CD": (cd_of(lambda value: 1e4 * value), "nonsense"),
    "sheared CD": (cards_of(CD1_1=1e-3, CD1_2=1e-3, CD2_1=1e-3, CD2_2=1.0001e-3), "nonsense"),
    "text in the CD": (cards_of(CD1_1="abc"), "CD1_1 is not a number"),
    "impossible CRVAL": (cards_of(CRVAL2=141.0), "nonsense"),
    "unknown projection": (cards_of(CTYPE1="RA---XXX", CTYPE2="DEC--XXX"), "WCS cannot be used"),
    "other side of the sky": (cards_of(CRVAL1=12.72, CRVAL2=-41.12), "too far from the mosaic"),
    "a hemisphere away": (cards_of(CRPIX1=1e9), "too far from the mosaic"),
}


def file_of(case):
    return f"bad_{case.replace(' ', '_')}.fit"


def spoiled_copy(frames, folder):
    """Copy the good frames, and put one bad frame of every kind beside them."""
    shutil.copytree(frames, folder)
    for case, (spoil, _) in BAD_FRAMES.items():
        spoil(folder / GOOD, folder / file_of(case))
    return folder


@pytest.fixture(scope="module")
def scanned(frames, tmp_path_factory):
    """A run on a folder with every kind of bad frame and no plan."""
    folder = tmp_path_factory.mktemp("scanned")
    return Attempt(spoiled_copy(frames, folder / "raw"), folder / "out", replace(UNSOLVED, workers=2))


@pytest.fixture(scope="module")
def planned(frames, tmp_path_factory):
    """A run on a plan that names them all, a missing file, one row twice and an exposure that is no number."""
    folder = tmp_path_factory.mktemp("planned")
    raw = spoiled_copy(frames, folder / "raw")
    (raw / "folder.fit").mkdir()
    names = [*map(file_of, BAD_FRAMES), *good_names(raw)[1:]]
    extra = ["gone.fit,10", "folder.fit,10", ",10", f"{good_names(raw)[0]},abc", f"{GOOD},10"]
    write_plan_of(raw, names, extra=extra)
    return Attempt(raw, folder / "out", UNSOLVED)


@pytest.fixture(params=["scanned", "planned"])
def spoiled(request):
    return request.getfixturevalue(request.param)


def test_bad_frames_leave_no_trace_in_the_mosaic_of_classic(frames, tmp_path):
    settings = ClassicSettings(workers=2, solve=None)
    clean = ClassicAttempt(frames, tmp_path / "clean", settings)
    run = ClassicAttempt(spoiled_copy(frames, tmp_path / "raw"), tmp_path / "out", settings)
    assert (clean.finish, run.finish) == (FinishReason.COMPLETE, FinishReason.WITH_FAILURES)
    for case, (_, reason) in BAD_FRAMES.items():
        row = run.row(file_of(case))
        assert row["used"] == "no"
        assert re.search(reason, row["reason"])
    assert run.result.n_used == clean.result.n_used == 8
    same_mosaic(run, clean)
    assert half_written(run.paths.folder) == []


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_frame_is_in_the_ledger_with_its_reason(spoiled, case):
    row = spoiled.row(file_of(case))
    assert row["used"] == "no"
    assert re.search(BAD_FRAMES[case][1], row["reason"])
    told = [event.left_out for event in spoiled.events if isinstance(event, FrameLeftOut)]
    (item,) = [item for item in told if Path(item.path).name == file_of(case)]
    assert item.reason == row["reason"]
    assert item in spoiled.result.left_out


def test_bad_frames_leave_no_trace_in_the_mosaic(spoiled, clean):
    assert spoiled.finish is FinishReason.WITH_FAILURES
    assert not spoiled.result.complete
    assert spoiled.result.n_used == clean.result.n_used == 8
    assert not spoiled.result.failed_tiles
    same_mosaic(spoiled, clean)
    wcs, expected = (read_product_wcs(run.paths.mosaic) for run in (spoiled, clean))
    np.testing.assert_array_equal(wcs.wcs.crpix, expected.wcs.crpix)
    assert half_written(spoiled.paths.folder) == []


def test_the_ledger_has_a_row_for_every_planned_frame(scanned, planned):
    assert len(scanned.rows) == scanned.result.n_planned == 8 + len(BAD_FRAMES)
    # One row each for the missing file, the folder and the row without a path.
    names = {Path(row["path"]).name for row in planned.rows}
    assert {"gone.fit", "folder.fit", *good_names(planned.paths.folder.parent / "raw")} <= names
    assert len([row for row in planned.rows if row["used"] == "yes"]) == 8
    assert all(row["reason"] for row in planned.rows if row["used"] == "no")


def test_rows_without_a_file_are_named_with_their_line(planned):
    first = 2 + len(BAD_FRAMES) + 7
    by_line = {item.line: item for item in planned.result.left_out}
    assert by_line[first].path == "gone.fit"
    assert "file not found" in by_line[first].reason
    assert "file not found" in by_line[first + 1].reason
    assert "no file path" in by_line[first + 2].reason
    assert by_line[first + 4].harmless


def test_an_exposure_that_is_no_number_costs_nothing(planned):
    name = good_names(planned.paths.folder.parent / "raw")[0]
    row = planned.row(name)
    assert (row["used"], row["exptime_s"], row["reason"]) == ("yes", "10", "")
    assert re.search(r"line \d+ of the plan: exposure 'abc'", planned.log)


def test_a_folder_without_one_good_frame_says_why(frames, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for case in ("empty", "all NaN", "constant"):
        BAD_FRAMES[case][0](frames / GOOD, folder / file_of(case))
    run = Attempt(folder, tmp_path / "out")
    assert isinstance(run.error, PlanError)
    assert run.finish is FinishReason.ERROR
    for case in ("empty", "all NaN", "constant"):
        assert file_of(case) in str(run.error)
        assert BAD_FRAMES[case][1] in str(run.error)
    assert not run.paths.mosaic.exists()
    assert half_written(tmp_path) == []


def test_a_folder_whose_every_wcs_is_wild_says_why(frames, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in good_names(frames)[:3]:
        WILD_WCS["a distortion of a million pixels"](frames / name, folder / name)
    run = Attempt(folder, tmp_path / "out")
    assert isinstance(run.error, PlanError)
    assert "distortion" in str(run.error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_the_frames_does_not_hold_a_run_up(raw, tmp_path):
    os.mkfifo(raw / "pipe.fits")
    # In a process of its own, which can be ended if it waits for the pipe.
    command = [sys.executable, "-m", "zemosaic_cli", "plan", raw, "--output", tmp_path / "plan.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode in (0, 3)
    assert "8 frames" in done.stdout


class CanvasGuard(logging.Handler):
    """Cancels a run whose canvas has become far too big, before it fills the disk."""

    def __init__(self, limit_px):
        super().__init__()
        self.cancel, self.limit_px, self.shape = CancelToken(), limit_px, None

    def emit(self, record):
        if record.msg.startswith("[GRID] canvas"):
            self.shape = record.args[1], record.args[0]
            if max(self.shape) > self.limit_px:
                self.cancel.cancel()


SIP = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 3, "B_ORDER": 3}
WILD_WCS = {
    "a scale 100 times that of the others": cd_of(lambda value: 100 * value),
    "a distortion of a million pixels": cards_of(**SIP, A_3_0=1.0),
    "a distortion of ten frames": cards_of(**SIP, A_3_0=1e-3),
}


@pytest.mark.parametrize("case", WILD_WCS)
def test_a_wild_wcs_does_not_blow_the_canvas_up(raw, clean, tmp_path, case):
    WILD_WCS[case](raw / GOOD, raw / "wild.fit")
    guard = CanvasGuard(limit_px=1500)
    logger = logging.getLogger("ZeMosaicWorker.run")
    logger.addHandler(guard)
    try:
        run = Attempt(raw, tmp_path / "out", cancel=guard.cancel)
    finally:
        logger.removeHandler(guard)
    assert run.error is None, f"the canvas became {guard.shape}"
    assert run.row("wild.fit")["reason"]
    same_mosaic(run, clean)


ODD_TIMES = {
    "an exposure of 1e30 s": {"EXPTIME": 1e30, "EXPOSURE": 1e30},
    "a date far in the future": {"DATE-OBS": "2199-01-01T00:00:00"},
    "a date of zeros": {"DATE-OBS": "0000-00-00T00:00:00"},
}


@pytest.mark.parametrize("case", ODD_TIMES)
def test_a_nonsense_time_does_not_end_the_run(raw, clean, tmp_path, case):
    path = raw / "odd.fit"
    cards_of(**ODD_TIMES[case])(raw / GOOD, path)
    path.replace(raw / GOOD)
    run = Attempt(raw, tmp_path / "out")
    assert run.error is None
    assert run.result.complete
    same_mosaic(run, clean)


# ---- pixels without data ---------------------------------------------------------------------------------

PLAIN = replace(ONE_WORKER, normalise="none", weight="none", params=StackParams(reject="none"))
PATCH = (slice(40, 80), slice(60, 110))


@pytest.fixture(scope="module")
def patched_runs(frames, tmp_path_factory):
    """Runs without match, weights and rejection: floats as they are, with a patch of NaN, and of infinities."""
    runs = {}
    for name, values in {"whole": None, "nan": [np.nan], "infinite": [np.inf, -np.inf]}.items():
        folder = tmp_path_factory.mktemp(name)
        raw = Path(shutil.copytree(frames, folder / "raw"))

        def patch(pixels, values=values):
            if values is not None:
                pixels[PATCH] = np.resize(values, pixels[PATCH].shape)
            return pixels

        pixels_of(patch)(frames / GOOD, raw / "new.fit")
        (raw / "new.fit").replace(raw / GOOD)
        runs[name] = Attempt(raw, folder / "out", PLAIN)
    return runs


def patch_on_canvas(survey, run):
    """Which canvas pixels have their centre in the patch."""
    (frame,) = [frame for frame in survey.frames if frame.name == GOOD]
    ny, nx = run.mosaic.shape
    y, x = np.mgrid[:ny, :nx]
    sky = read_product_wcs(run.paths.mosaic).all_pix2world(x.ravel(), y.ravel(), 0)
    fx, fy = frame_wcs(frame).all_world2pix(*sky, 0)
    rows, columns = PATCH
    inside = (fy >= rows.start) & (fy < rows.stop) & (fx >= columns.start) & (fx < columns.stop)
    return inside.reshape(ny, nx)


@pytest.mark.parametrize("name", ["nan", "infinite"])
def test_patches_without_data_cost_their_own_pixels_only(survey, patched_runs, name):
    run, whole = patched_runs[name], patched_runs["whole"]
    assert run.result.complete
    patch = patch_on_canvas(survey, run)
    inside = binary_erosion(patch, iterations=4)
    outside = ~binary_dilation(patch, iterations=6)
    np.testing.assert_array_equal(run.coverage[inside], whole.coverage[inside] - 1)
    assert whole.coverage[inside].min() >= 2
    assert np.isfinite(run.mosaic[inside]).all()
    np.testing.assert_array_equal(run.coverage[outside], whole.coverage[outside])
    np.testing.assert_array_equal(run.mosaic[outside], whole.mosaic[outside])
    assert not np.isinf(run.mosaic).any()


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_patches_without_data_hardly_change_the_match(raw, clean, tmp_path, value, capfd):
    def patch(pixels):
        pixels[PATCH] = value
        return pixels

    pixels_of(patch)(raw / GOOD, raw / "new.fit")
    (raw / "new.fit").replace(raw / GOOD)
    run = Attempt(raw, tmp_path / "out")
    assert run.result.complete
    for column, tolerance in {"sky": 5.0, "noise": 2.0, "gain": 0.03}.items():
        assert float(run.row(GOOD)[column]) == pytest.approx(float(clean.row(GOOD)[column]), abs=tolerance)
    difference = run.mosaic - clean.mosaic
    assert abs(np.nanmedian(difference)) < 2.0
    # A worker's warnings go to the terminal, into the progress bar.
    assert "Warning" not in capfd.readouterr().err


# ---- rows that repeat ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(frames, tmp_path_factory):
    """A run on a plan that names its first frame five times, in several ways, and nothing bad."""
    folder = tmp_path_factory.mktemp("repeated")
    raw = Path(shutil.copytree(frames, folder / "raw"))
    names = good_names(raw)
    write_plan_of(raw, [*names, names[0], f"./{names[0]}", raw / names[0], names[0]])
    return Attempt(raw, folder / "out")


def test_repeated_rows_alone_are_no_failure(repeated, clean):
    assert repeated.finish is FinishReason.COMPLETE
    assert repeated.result.complete
    assert [item.harmless for item in repeated.result.left_out] == [True] * 4
    assert [item.line for item in repeated.result.left_out] == [10, 11, 12, 13]
    same_mosaic(repeated, clean)


def test_repeated_rows_count_once(repeated):
    assert repeated.result.n_used == 8
    assert repeated.result.n_planned == 8
    used = [row for row in repeated.rows if row["used"] == "yes"]
    assert len({Path(row["path"]).name for row in used}) == len(used) == 8


# ---- output that cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_folder_that_is_a_file_is_an_error(frames, tmp_path, place):
    (tmp_path / "file").write_bytes(b"mine")
    run = Attempt(frames, tmp_path / place)
    assert isinstance(run.error, OutputError)
    assert str(tmp_path / place) in str(run.error)
    assert run.finish is FinishReason.ERROR
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_an_error(frames, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    run = Attempt(frames, locked / "out")
    assert isinstance(run.error, OutputError)
    assert "no permission" in str(run.error)


@pytest.mark.parametrize("name", ["zemosaic.log", "tiles", PLAN_NAME])
def test_a_name_that_is_taken_in_the_output_folder_is_an_error_with_a_reason(frames, tmp_path, name):
    taken = tmp_path / "out" / name
    taken.parent.mkdir()
    if name == "tiles":
        taken.write_bytes(b"mine")
    else:
        taken.mkdir()
    run = Attempt(frames, tmp_path / "out")
    assert isinstance(run.error, OutputError)
    assert name in str(run.error)
    assert not run.paths.mosaic.exists()
    assert half_written(tmp_path) == []


def test_frames_that_lie_where_tiles_go_are_not_deleted(frames, tmp_path):
    folder = Path(shutil.copytree(frames, tmp_path / "m31" / "tiles"))
    for path in folder.glob("*.fit"):
        path.rename(folder / f"tile_{path.stem}.fits")
    write_plan_of(folder, sorted(path.name for path in folder.glob("*.fits")))
    Attempt(folder, tmp_path / "m31", spoils_input=True)
    assert len(list(folder.glob("tile_Light_*.fits"))) == 8


GRID = [sys.executable, "-m", "zemosaic_cli", "grid"]


def limited_to(n_bytes):
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@posix_only
@pytest.mark.usefixtures("clean")
def test_a_disk_that_takes_no_tile_ends_with_a_clear_error(frames, tmp_path):
    before = fingerprint(frames)
    done = subprocess.run(
        [*GRID, frames, tmp_path / "out", "--workers", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=limited_to(300_000),  # more than a product has, and less than a tile
    )
    assert done.returncode == 1
    assert re.search(r"^zemosaic: no tile could be made: .*tile_.*cannot be written: ", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    log = (tmp_path / "out" / "zemosaic.log").read_text(encoding="utf-8")
    for tile in (1, 2):
        assert re.search(rf"\[GRID\] Tile {tile} failed with error: .*tile_000{tile}.fits cannot be written", log)
    assert half_written(tmp_path) == []
    assert {path.name for path in (tmp_path / "out").rglob("*")} <= {"stack_plan.csv", "zemosaic.log", "tiles"}
    assert fingerprint(frames) == before


@posix_only
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("mode", ["grid", "classic"])
def test_a_disk_without_room_for_the_products_is_told_before_a_tile_is_made(frames, tmp_path, mode):
    command = [*GRID[:-1], mode, frames, tmp_path / "out", "--workers", "1"]
    limits = {"cwd": tmp_path, "preexec_fn": limited_to(150_000)}
    done = subprocess.run(command, capture_output=True, text=True, **limits)
    assert done.returncode == 1
    words = rf"^zemosaic: .*mosaic_{mode}.fits cannot be written: File too large"
    assert re.search(words, done.stderr, re.MULTILINE)
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert left == {"stack_plan.csv", "zemosaic.log"} | ({"groups.json"} if mode == "classic" else set())


IN_A_SMALL_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 77
shift; out="$1"; list="$2"; shift 2
"$@"
status=$?
ls -A "$out" "$out"/tiles > "$list" 2>/dev/null
exit $status
"""


@posix_only
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("size", ["1m", "600k", "4k"])
def test_a_full_disk_ends_with_a_clear_error_and_nothing_half_written(frames, tmp_path, size):
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_A_SMALL_DISK, "sh"]
    out, listing = tmp_path / "out", tmp_path / "listing"
    out.mkdir()
    if shutil.which("unshare") is None or subprocess.run([*private[:4], "true"], capture_output=True).returncode:
        pytest.skip("no private mounts here")
    command = [*private, size, out, listing, *GRID, frames, out, "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if done.returncode == 77:
        pytest.skip("no tmpfs can be mounted here")
    assert done.returncode == 1
    assert re.search(r"^zemosaic: .*disk is full", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    left = listing.read_text().split()
    assert not [name for name in left if name.endswith(".part") or name.startswith("mosaic_grid")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_does_not_flood_the_terminal(frames, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "zemosaic.log").symlink_to("/dev/full")
    run = Attempt(frames, tmp_path / "out")
    assert run.error is None or isinstance(run.error, OutputError)
    shown = capfd.readouterr().err
    assert "Logging error" not in shown
    assert "Traceback" not in shown


# ---- a tile, a frame, a worker that is lost on the way ---------------------------------------------------


def take_name(path):
    return lambda _event: path.mkdir()


def core_of(run, tile):
    """The part of the canvas that a tile of one more run with the same tiles gives."""
    header = fits.getheader(run.paths.tile(tile))
    return slice(header["CY0"], header["CY1"]), slice(header["CX0"], header["CX1"])


def check_hole(run, clean):
    """Tile 2 is missing from the mosaic, named, and nothing else is."""
    assert run.error is None
    assert run.finish is FinishReason.WITH_FAILURES
    assert [failure.tile for failure in run.result.failed_tiles] == [2]
    assert [event.tile for event in run.events if isinstance(event, TileFailed)] == [2]
    assert "[GRID] Tile 2 failed with error: " in run.log
    hole = core_of(clean, 2)
    assert np.isnan(run.mosaic[hole]).all()
    assert (run.coverage[hole] == 0).all()
    assert (run.weight[hole] == 0).all()
    assert (clean.coverage[hole] > 0).any()
    rest = np.ones(run.mosaic.shape, dtype=bool)
    rest[hole] = False
    np.testing.assert_array_equal(run.mosaic[rest], clean.mosaic[rest])
    np.testing.assert_array_equal(run.coverage[rest], clean.coverage[rest])
    assert len(run.rows) == 8
    assert half_written(run.paths.folder) == []


def test_a_tile_that_fails_leaves_a_hole_and_the_others_go_on(frames, clean, tmp_path):
    name = tmp_path / "out" / "tiles" / "tile_0002.fits"
    run = Attempt(frames, tmp_path / "out", listener=on_first(PhaseProgress, take_name(name), phase="stack"))
    check_hole(run, clean)


def test_a_tile_whose_name_was_taken_before_the_run_leaves_a_hole(frames, clean, tmp_path):
    (tmp_path / "out" / "tiles" / "tile_0002.fits").mkdir(parents=True)
    check_hole(Attempt(frames, tmp_path / "out"), clean)


def test_a_run_without_one_tile_is_an_error_and_keeps_the_earlier_mosaic(frames, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mosaic_grid.fits").write_bytes(b"earlier")

    def take_all(_event):
        for number in (1, 2):
            (out / "tiles" / f"tile_{number:04d}.fits").mkdir()

    run = Attempt(frames, out, listener=on_first(PhaseProgress, take_all, phase="stack"))
    assert isinstance(run.error, OutputError)
    assert run.finish is FinishReason.ERROR
    assert (out / "mosaic_grid.fits").read_bytes() == b"earlier"


MOMENTS = {
    "before the first tile": (PhaseProgress, {"phase": "stack"}, "no tile could be made: "),
    "after the first tile": (TileDone, {}, ""),
    "after the last tile": (PhaseProgress, {"phase": "assemble"}, ""),
}


@posix_only
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["mosaic_grid.fits", "mosaic_grid_coverage.fits"])
def test_a_product_that_is_taken_away_while_it_is_made_is_an_error_and_leaves_nothing(
    frames, tmp_path, moment, name
):
    kind, fields, said = MOMENTS[moment]

    def take_away(_event):
        (part,) = (tmp_path / "out").glob(f".{name}.*.part")
        part.unlink()

    run = Attempt(frames, tmp_path / "out", listener=on_first(kind, take_away, **fields))
    assert isinstance(run.error, OutputError)
    assert re.match(rf"{said}.*{re.escape(name)} cannot be written: .*\.part was removed", str(run.error))
    assert run.finish is FinishReason.ERROR
    assert not list(run.paths.folder.glob("mosaic_grid*"))
    assert half_written(tmp_path) == []


def test_a_run_that_loses_all_it_had_is_an_error_and_makes_no_mosaic(raw, tmp_path):
    def lose_all(_event):
        for path in raw.glob("*.fit"):
            path.unlink()

    lose = on_first(PhaseProgress, lose_all, phase="stack")
    run = Attempt(raw, tmp_path / "out", listener=lose, spoils_input=True)
    assert isinstance(run.error, ZeMosaicError)
    assert run.finish is FinishReason.ERROR
    assert not list(run.paths.folder.glob("mosaic_grid*"))
    assert half_written(tmp_path) == []


@pytest.fixture(scope="module")
def bereft(frames, tmp_path_factory):
    """A run that loses a frame's file between its measure and the first tile."""
    folder = tmp_path_factory.mktemp("bereft")
    raw = Path(shutil.copytree(frames, folder / "raw"))
    lose = on_first(PhaseProgress, lambda _event: (raw / GOOD).unlink(), phase="stack")
    run = Attempt(raw, folder / "out", listener=lose, spoils_input=True)
    assert {path.name for path in raw.iterdir()} == set(good_names(frames)) - {GOOD}
    return run


def test_a_frame_that_vanishes_before_the_stack_is_named(bereft, clean):
    assert bereft.finish is FinishReason.WITH_FAILURES
    assert {Path(item.path).name for item in bereft.result.left_out} == {GOOD}
    assert re.search(r"missing from tile 1: .*does not exist", bereft.row(GOOD)["reason"])
    assert len(bereft.rows) == bereft.result.n_planned == 8
    assert not bereft.result.failed_tiles
    np.testing.assert_array_equal(np.isfinite(bereft.mosaic), bereft.coverage > 0)
    assert bereft.coverage.sum() < clean.coverage.sum()


def test_a_frame_that_gave_no_sample_is_not_counted_as_used(bereft):
    assert bereft.row(GOOD)["n_samples"] == "0"
    assert bereft.row(GOOD)["used"] == "no"
    assert bereft.result.n_used == 7
    assert bereft.header["NCOMBINE"] == 7
    assert bereft.header["LIVETIME"] == 70.0


@pytest.fixture(scope="module")
def bereaved(frames, tmp_path_factory):
    """A run of two workers one of which is killed in the measure, and one in the stack."""
    out = tmp_path_factory.mktemp("bereaved")
    killed = []

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    in_measure = on_first(PhaseProgress, lambda _event: kill(workers()[0].pid), phase="measure", done=4)
    in_stack = on_first(TileDone, lambda event: kill(event.worker_pid))
    # What a worker leaves behind that was killed while it wrote.
    (out / "tiles").mkdir()
    (out / "tiles" / ".tile_0001.fits.99999999.part").write_bytes(b"half")
    # And what a whole run leaves behind that was killed while it wrote.
    (out / ".mosaic_grid.fits.99999999.part").write_bytes(b"half")

    def listen(event):
        in_measure(event)
        in_stack(event)

    run = Attempt(frames, out, replace(ONE_WORKER, workers=2, size_factor=3.0), listener=listen)
    assert len(killed) == 2
    return run


@posix_only
def test_a_killed_worker_costs_nothing(bereaved, clean):
    assert bereaved.error is None
    assert bereaved.finish is FinishReason.COMPLETE, bereaved.log
    assert len([event for event in bereaved.events if isinstance(event, TileDone)]) == 18
    assert "a worker process died" in bereaved.log
    same_mosaic(bereaved, clean)
    assert workers() == []


@posix_only
def test_what_a_killed_worker_had_half_written_is_cleared_away(bereaved):
    assert half_written(bereaved.paths.tiles) == []


@posix_only
def test_what_a_killed_run_had_half_written_is_cleared_away(bereaved):
    assert list(bereaved.paths.folder.glob(".*.part")) == []


# ---- cancelling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", GRID_PHASES)
def test_a_cancelled_run_stops_and_leaves_nothing_behind(frames, tmp_path, phase):
    cancel = CancelToken()
    settings = replace(ONE_WORKER, workers=2 if phase == "stack" else 1, size_factor=3.0)
    stop = on_first(PhaseProgress, lambda _event: cancel.cancel(), phase=phase)
    run = Attempt(frames, tmp_path / "out", settings, listener=stop, cancel=cancel)
    assert isinstance(run.error, RunCancelled)
    assert run.finish is FinishReason.CANCELLED
    assert not list(run.paths.folder.glob("mosaic_grid*"))
    assert half_written(tmp_path) == []
    assert workers() == []
    later = [event.phase for event in run.events if isinstance(event, PhaseProgress)]
    assert later[-1] == phase


# ---- listeners -------------------------------------------------------------------------------------------


def test_a_listener_that_raises_does_not_end_the_run(frames, clean, tmp_path):
    def stumble(event):
        raise RuntimeError(f"cannot draw {type(event).__name__}")

    run = Attempt(frames, tmp_path / "out", listener=stumble)
    assert run.finish is FinishReason.COMPLETE
    assert "a progress listener raised" in run.log
    assert "cannot draw TileDone" in run.log
    same_mosaic(run, clean)


def test_the_older_form_of_callback_is_told_everything(raw, tmp_path):
    (raw / "empty.fit").touch()
    heard = []

    def callback(message, progress, level):
        heard.append((message, progress, level))

    result = run_grid_mode(raw, tmp_path / "out", callback)
    messages, percentages, levels = zip(*heard, strict=True)
    assert all(isinstance(message, str) and message for message in messages)
    told = {p for p in percentages if p is not None}
    assert set(np.linspace(0, 100, 9)) <= told  # eight frames are measured
    assert all(0 <= p <= 100 for p in told)
    assert set(levels) <= {"DEBUG", "INFO", "WARNING", "ERROR"}
    assert "measure: 8/8 frames" in messages
    assert any(re.search(r"left out .*empty\.fit: the file is empty", message) for message in messages)
    assert messages[-1].startswith("run finished with failures")
    assert sum(message.startswith("run ") for message in messages) == 1
    assert (result.n_used, result.n_planned) == (8, 9)


@pytest.mark.parametrize("kind", [queue.Queue, queue.SimpleQueue, multiprocessing.Queue])
def test_a_queue_gets_typed_events(kind):
    events = kind()
    as_listener(events.put)(TileFailed(7, "no memory"))
    assert events.get(timeout=10) == TileFailed(7, "no memory")


def test_the_older_form_of_callback_may_have_defaults():
    heard = []

    def callback(message, progress=None, level="INFO"):
        heard.append((message, progress, level))

    as_listener(callback)(TileFailed(7, "no memory"))
    assert heard == [("tile 7 failed: no memory", None, "ERROR")]
