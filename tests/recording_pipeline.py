"""A pipeline that tells which options it received, and makes nothing."""

from dataclasses import asdict

from grid_mode import GridSettings
from zemosaic_events import FinishReason, Message, RunFinished
from zemosaic_types import RunResult

Settings = GridSettings


def record(input_folder, output, settings, *, listener, cancel):
    for name, value in asdict(settings).items():
        listener(Message(f"{name} = {value!r}"))
    listener(Message(f"folders = {input_folder.name!r}, {output.name!r}"))
    listener(RunFinished(FinishReason.COMPLETE))
    return RunResult(output / "mosaic_grid.fits", output / "preview.png", 1, 1)
