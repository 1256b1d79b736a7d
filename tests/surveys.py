"""Runs on simulated surveys, and what they left behind."""

import csv
import random
import shutil
from dataclasses import replace
from pathlib import Path

from classic_mode import ClassicSettings, run_classic
from grid_mode import GridSettings, run_grid
from zemosaic_fits_products import read_image, read_product_wcs
from zemosaic_outputs import ProductPaths
from zemosaic_plan import plan_from_folder, write_plan
from zemosaic_plan_table import PLAN_NAME
from zemosaic_synthetic import make_survey
from zemosaic_truth import score_mosaic

TWO_WORKERS = GridSettings(workers=2, overwrite=True)
CLASSIC = ClassicSettings(workers=2, overwrite=True)

#: Those whose progress a run of Grid mode tells, frames having a WCS.
GRID_PHASES = ["headers", "canvas", "measure", "refine", "flat", "match", "stack", "assemble"]


class Run:
    """A finished run of Grid mode: its events, products and ledger."""

    pipeline, stem = staticmethod(run_grid), "mosaic_grid"

    def __init__(self, frames: Path, output: Path, settings: GridSettings = TWO_WORKERS, **more) -> None:
        self.events = []
        self.paths = ProductPaths(output, self.stem)
        self.result = self.pipeline(frames, output, settings, listener=self.events.append, **more)

    @property
    def mosaic(self):
        return read_image(self.paths.mosaic, 0)[1]

    @property
    def coverage(self):
        return read_image(self.paths.coverage, 0)[1]

    @property
    def weight(self):
        return read_image(self.paths.weight, 0)[1]

    @property
    def header(self):
        return read_image(self.paths.mosaic, 0)[0]

    @property
    def ledger(self):
        with self.paths.ledger.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def log(self):
        return self.paths.log.read_text(encoding="utf-8")

    def score(self, survey):
        return score_mosaic(self.mosaic, self.coverage, read_product_wcs(self.paths.mosaic), survey)


class ClassicRun(Run):
    """A finished run of Classic."""

    pipeline, stem = staticmethod(run_classic), "mosaic_classic"

    def __init__(self, frames: Path, output: Path, settings: ClassicSettings = CLASSIC, **more) -> None:
        super().__init__(frames, output, settings, **more)

    @property
    def tiles(self):
        return sorted(self.paths.master_tiles.iterdir())


def survey_in(folder: Path, spec):
    """Return the truth of a survey whose frames are put into ``folder``."""
    return make_survey(folder, spec)


def shuffled_copy(frames: Path, folder: Path, seed: int = 0) -> Path:
    """Copy frames into another folder with a plan whose rows are in random order."""
    shutil.copytree(frames, folder)
    rows, _ = plan_from_folder(folder)
    random.Random(seed).shuffle(rows)
    write_plan(folder / PLAN_NAME, [replace(row, order=k) for k, row in enumerate(rows, start=1)])
    return folder
