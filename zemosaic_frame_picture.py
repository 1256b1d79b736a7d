"""A small stretched picture of one frame, for people who wonder what is on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zemosaic_fits_io import read_frame_header, read_section
from zemosaic_preprocess import half_planes
from zemosaic_preview import shrink_factor, shrink_rows, stretch
from zemosaic_types import Rect


def frame_picture(path: Path, longest_px: int) -> np.ndarray:
    """Return a frame as 8-bit RGBA, first row on top, transparent where it has no data.

    Colours behind a filter array are taken from their 2 x 2 cells; nothing is calibrated.

    Parameters
    ----------
    path : Path
    longest_px : int
        The longer side of the picture has at most so many pixels.

    Returns
    -------
    ndarray, shape (ny, nx, 4), uint8

    Raises
    ------
    FrameError
        If the file cannot be read as a frame.
    """
    header = read_frame_header(path)
    ny, nx = header.shape
    raw = read_section(path, header, Rect(0, ny, 0, nx))
    planes = half_planes(raw[0], header.bayer) if header.bayer else raw.astype(np.float32)
    return stretch(shrink_rows(planes, shrink_factor(planes.shape[1:], longest_px)))
