"""The systems of the sky that WCS are in (ICRS, FK5, galactic, ...), and positions in them and in ICRS.

Between systems that differ by a rotation alone, one matrix takes all positions. It is astropy's, asked for once: a
frame is put on the canvas many times, and astropy takes a millisecond for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.coordinates import FK5, ICRS, BaseCoordinateFrame, Galactic, SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame

from zemosaic_sphere import places_deg, unit_vectors
from zemosaic_types import FrameError


def check_system(wcs: WCS) -> None:
    """Raise `FrameError` if a celestial WCS is in a system of the sky that is not known."""
    _system(wcs)


def to_icrs(wcs: WCS, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension and declination of positions in the system of a WCS.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        A celestial one; its longitude is the first world axis.
    lon, lat : ndarray, shape (n,)
        Degrees; NaN stays.

    Raises
    ------
    FrameError
        If the system is not known.
    """
    system = _system(wcs)
    if system.turn is not None:
        return _turned(lon, lat, system.turn)
    if isinstance(system.frame, ICRS):
        return lon, lat
    sky = SkyCoord(lon, lat, unit="deg", frame=system.frame).icrs
    return sky.ra.deg, sky.dec.deg


def from_icrs(wcs: WCS, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return longitude and latitude in the system of a WCS; the inverse of `to_icrs`."""
    system = _system(wcs)
    if system.turn is not None:
        return _turned(ra, dec, system.turn.T)
    if isinstance(system.frame, ICRS):
        return ra, dec
    sky = SkyCoord(ra, dec, unit="deg", frame="icrs").transform_to(system.frame)
    return sky.spherical.lon.deg, sky.spherical.lat.deg


@dataclass(frozen=True)
class _System:
    """A system, and the matrix (3, 3) that turns its unit vectors to ICRS; None where astropy must be asked."""

    frame: BaseCoordinateFrame
    turn: np.ndarray | None = None


def _system(wcs: WCS) -> _System:
    """Return the system of a WCS, or raise `FrameError`."""
    known = _turned_system(tuple(axis[:4] for axis in wcs.wcs.ctype), wcs.wcs.radesys, repr(wcs.wcs.equinox))
    if known is not None:
        return known
    try:
        return _System(wcs_to_celestial_frame(wcs))
    except ValueError as err:
        system = f"CTYPE1 {wcs.wcs.ctype[0]}, RADESYS {wcs.wcs.radesys or 'not given'}"
        raise FrameError(f"the WCS is in a system of the sky that is not known ({system})") from err


@lru_cache(maxsize=64)
def _turned_system(axes: tuple[str, ...], radesys: str, equinox: str) -> _System | None:
    """Return ICRS, or a system that is ICRS turned, by the cards that name it; None for all others.

    `equinox` is a text, since NaN, none given, is not equal to itself.
    """
    if axes not in (("RA--", "DEC-"), ("GLON", "GLAT")):
        return None
    plain = WCS(naxis=2)
    plain.wcs.ctype = [f"{axis}-TAN" for axis in axes]
    plain.wcs.radesys, plain.wcs.equinox = radesys, float(equinox)
    try:
        frame = wcs_to_celestial_frame(plain)
    except ValueError:
        return None
    if isinstance(frame, ICRS):
        return _System(frame)
    if not isinstance(frame, FK5 | Galactic):
        return None
    axes_there = SkyCoord(*np.eye(3), frame=frame, representation_type="cartesian").icrs.cartesian.xyz.value
    return _System(frame, axes_there)


def _turned(lon: np.ndarray, lat: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = places_deg(unit_vectors(np.column_stack([lon, lat])) @ matrix.T)
    return places[:, 0], places[:, 1]
