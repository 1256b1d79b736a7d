"""Plate solvers for tests: the real one where it is installed, and fakes that behave as badly as one likes."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits

from zemosaic_astrometry import SolveOptions, hint_of, star_picture
from zemosaic_fits_io import frame_wcs
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_programs import find_indexes, find_solve_field
from zemosaic_types import SolverMissing

_HEAD = """\
#!{python}
import os, shutil, sys, time
def after(name):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""
folder, image, key = after("--dir"), sys.argv[-1], after("--ra")
with open({calls!r}, "a") as calls:
    calls.write(f"{{os.getpid()}} {{key}} {{sys.argv[1:]}}\\n")
def answer(key=key, status=0):
    for ending in ("wcs", "corr"):
        source = os.path.join({answers!r}, f"{{key}}.{{ending}}")
        if os.path.exists(source):
            shutil.copy(source, os.path.join(folder, f"frame.{{ending}}"))
    print("Field 1: solved with index index-fake.fits.")
    sys.exit(status)
"""


class FakeSolver:
    """A ``solve-field`` on the search path that does what `code` says; it notes every call.

    The code may use ``answer()``, which gives the solution that `prepare` has made for the frame, told by the
    right ascension of its hint.
    """

    def __init__(self, folder: Path, monkeypatch, code: str = "answer()") -> None:
        self.calls_path, self.answers = folder / "calls.txt", folder / "answers"
        self.program, indexes = folder / "bin" / "solve-field", folder / "indexes"
        for place in (self.answers, self.program.parent, indexes):
            place.mkdir()
        (indexes / "index-fake.fits").touch()
        monkeypatch.setenv("PATH", str(self.program.parent))
        self.options = SolveOptions(
            method="astrometry_net", astrometry_local_path=str(indexes), timeout_s=30, align_by_stars=False
        )
        self.behave(code)

    def behave(self, code: str) -> None:
        head = _HEAD.format(python=sys.executable, calls=str(self.calls_path), answers=str(self.answers))
        self.program.write_text(head + code + "\n", encoding="utf-8")
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.calls_path.read_text(encoding="utf-8").splitlines() if self.calls_path.exists() else []

    @property
    def running(self) -> list[int]:
        """Those of its processes that still run."""
        pids = [int(call.split()[0]) for call in self.calls]
        return [pid for pid in pids if psutil.pid_exists(pid) and self._is_mine(pid)]

    def _is_mine(self, pid):
        try:
            return str(self.program) in psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            return False

    def prepare(self, truth, *, scale=1.0, mirror=False, away_deg=0.0, shift_px=0.0, n_stars=None):
        """Make the solution of a frame from a record that has its WCS; spoil it as asked."""
        picture, wcs = star_picture(truth), frame_wcs(truth.header).deepcopy()
        assert picture.binning == 1
        key = self.answers / f"{hint_of(truth.header, 3.0).centre_deg[0]:.5f}"
        x, y = picture.star_x[:n_stars] + shift_px, picture.star_y[:n_stars] + shift_px
        ra, dec = wcs.all_pix2world(x, y, 0)
        matrix = wcs.pixel_scale_matrix * scale
        if mirror:
            matrix[:, 0] *= -1
        wcs.wcs.cd = matrix
        wcs.wcs.crval = [wcs.wcs.crval[0], wcs.wcs.crval[1] - away_deg]
        if scale != 1.0 or mirror or away_deg:  # its stars are those it says
            ra, dec = wcs.all_pix2world(x, y, 0)
        header = wcs.to_header(relax=True)
        fits.PrimaryHDU(header=header).writeto(f"{key}.wcs", output_verify="ignore")
        columns = [
            fits.Column(name, "D", array=np.asarray(values))
            for name, values in (("index_ra", ra), ("index_dec", dec))
        ]
        fits.BinTableHDU.from_columns(columns).writeto(f"{key}.corr")


def without_wcs(frames: Path, folder: Path, names) -> Path:
    """Copy a folder of frames; those named lose their WCS."""
    folder.mkdir()
    for path in sorted(frames.glob("*.fit")):
        data, header = fits.getdata(path), fits.getheader(path)
        if path.name in names:
            for card in ("CTYPE1", "CTYPE2"):
                header.remove(card)
        fits.writeto(folder / path.name, data, header)
    return folder


def records_in(folder: Path):
    """The frames of a folder, with or without a WCS."""
    rows, _ = plan_from_folder(folder)
    return load_frames(rows, folder, keep_unplaced=True)[0]


def need_real_solver() -> None:
    """Skip the test, visibly, where astrometry.net or its index files are not there."""
    try:
        find_solve_field()
    except SolverMissing:
        pytest.skip("solve-field is not installed (Debian: astrometry.net)")
    indexes = find_indexes() or []
    if not any("tycho2-08" in name for name in indexes):
        pytest.skip("the index files are not installed (Debian: astrometry-data-tycho2)")
