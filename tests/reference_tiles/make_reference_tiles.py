"""Makes the reference tiles beside this file anew: ``python tests/reference_tiles/make_reference_tiles.py``.

To be run when the arithmetic of the stack changes on purpose, never to make a test pass. Commit what it writes
with the change, and say in the commit what moved and why.
"""

import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from grid_mode import GridSettings, run_grid  # noqa: E402
from zemosaic_synthetic import SurveySpec, make_survey  # noqa: E402

SPECS = {
    "mono": SurveySpec(
        seed=71,
        panels=(2, 2),
        frames_per_panel=4,
        frame_shape=(90, 110),
        overlap_fraction=0.3,
        rotation_deg=12.0,
        dither_px=4.0,
        star_density=4000.0,
        trail_fraction=0.3,
    ),
    "color": SurveySpec(
        seed=72,
        panels=(2, 2),
        frames_per_panel=3,
        frame_shape=(80, 90),
        color=True,
        overlap_fraction=0.3,
        rotation_deg=12.0,
        dither_px=4.0,
        star_density=4000.0,
    ),
}
SETTINGS = GridSettings(workers=1, size_factor=2.0, overwrite=True)


def make_tiles(name: str, folder: Path) -> Path:
    """Make the tiles of a survey in a folder and return where they are."""
    make_survey(folder / "frames", SPECS[name])
    run_grid(folder / "frames", folder / "out", SETTINGS)
    return folder / "out" / "tiles"


def main() -> None:
    """Replace the reference tiles."""
    for name in SPECS:
        with tempfile.TemporaryDirectory() as folder:
            tiles = make_tiles(name, Path(folder))
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(tiles, HERE / name)


if __name__ == "__main__":
    main()
