"""A corrected WCS: the header cards that put a frame where its stars say it is.

The linear part takes the correction: CRVAL and the CD matrix are written anew; distortions (SIP, PV, tables),
CRPIX and the projection stay. Files are not touched; the cards live in the frame's record.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from astropy.wcs import WCS

from zemosaic_fits_io import frame_wcs
from zemosaic_reproject import Canvas, canvas_to_frame, frame_to_canvas
from zemosaic_types import FrameError, FrameHeader

#: The new cards may differ from the wanted positions by this much, anywhere in the frame.
ROUND_TRIP_PX = 0.005

_GRID_POINTS = 9
_NEWTON_STEPS = 4
_CARD_WIDTH = 80
_REPLACED = re.compile(r"(CRVAL|CDELT|CROTA|CUNIT)[12]|(CD|PC)[12]_[12]|PC00[12]00[12]")
_LATITUDE_FIRST = re.compile(r"CTYPE1 *= *'(DEC-|.LAT)", re.IGNORECASE)

Move = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def corrected_header(header: FrameHeader, canvas: Canvas, move: Move) -> FrameHeader:
    """Return the header with a WCS that puts the frame's pixels where `move` wants them.

    Parameters
    ----------
    header : FrameHeader
    canvas : Canvas
    move : callable
        Takes canvas positions x, y (px) by the old WCS and returns the wanted ones; close to a linear map.

    Raises
    ------
    FrameError
        If no change of the linear part does that to `ROUND_TRIP_PX` over the whole frame.
    """
    wcs = frame_wcs(header)
    x, y = _grid(header.shape)
    wanted = move(*frame_to_canvas(wcs, x, y, canvas))
    there = wcs.all_pix2world(*canvas_to_frame(wcs, *wanted, canvas), 0)
    if not np.isfinite(there).all():
        raise FrameError("its WCS cannot be corrected: it ends at the frame's edge")
    crval, cd = _fitted(wcs, wcs.pix2foc(x, y, 0), there)
    corrected = replace(header, wcs_text=_rewritten(header.wcs_text, crval, cd))
    got = frame_to_canvas(frame_wcs(corrected), x, y, canvas)
    off = float(np.hypot(got[0] - wanted[0], got[1] - wanted[1]).max())
    if not off < ROUND_TRIP_PX:
        raise FrameError(f"its WCS cannot be corrected: the new one would be off by {off:.3g} px")
    return corrected


def _grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (np.linspace(-0.5, size - 0.5, _GRID_POINTS) for size in shape)
    x, y = np.meshgrid(columns, rows)
    return x.ravel(), y.ravel()


def _fitted(wcs: WCS, focal: tuple, sky: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return CRVAL and CD (degrees, longitude first) that take positions free of distortion to the sky."""
    core = wcs.deepcopy()
    centre = core.wcs.crpix - 1.0
    away = np.column_stack(focal) - centre
    design = np.column_stack([np.ones(len(away)), away])
    for _ in range(_NEWTON_STEPS):
        seen = np.column_stack(core.wcs_world2pix(*sky, 0)) - centre
        fit = np.linalg.lstsq(design, seen, rcond=None)[0]
        # The reference point must lie where the fit puts CRPIX; its shift turns north a little, hence the rounds.
        core.wcs.crval = np.ravel(core.wcs_pix2world(*(centre + fit[0])[:, None], 0))
        core.wcs.set()
    return core.wcs.crval, core.pixel_scale_matrix @ fit[1:].T


def _rewritten(text: str, crval: np.ndarray, cd: np.ndarray) -> str:
    cards = [text[start : start + _CARD_WIDTH] for start in range(0, len(text), _CARD_WIDTH)]
    kept = [card for card in cards if not _REPLACED.fullmatch(card[:8].strip())]
    order = (1, 0) if any(_LATITUDE_FIRST.match(card) for card in kept) else (0, 1)
    new = []
    for axis, world in enumerate(order, start=1):
        values = {f"CRVAL{axis}": crval[world], f"CD{axis}_1": cd[world, 0], f"CD{axis}_2": cd[world, 1]}
        new += [f"{key:<8}= {value:>24.16E}" for key, value in values.items()]
        new.append(f"CUNIT{axis}  = 'deg     '")
    return "".join(f"{card:<{_CARD_WIDTH}}" for card in kept + new)
