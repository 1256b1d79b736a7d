"""Systems of the sky, against astropy's own transformation of every position."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame

import zemosaic_sky_systems
from zemosaic_sky_systems import check_system, from_icrs, to_icrs
from zemosaic_types import FrameError

#: Axes, RADESYS and EQUINOX, and whether a matrix is enough.
SYSTEMS = {
    "ICRS": (("RA---TAN", "DEC--TAN"), "ICRS", None, False),
    "nothing said": (("RA---TAN-SIP", "DEC--TAN-SIP"), "", None, False),
    "FK5": (("RA---TAN", "DEC--TAN"), "FK5", 2000.0, True),
    "FK5 by its equinox": (("RA---SIN", "DEC--SIN"), "", 2000.0, True),
    "FK5 of another year": (("RA---TAN", "DEC--TAN"), "FK5", 2026.5, True),
    "galactic": (("GLON-CAR", "GLAT-CAR"), "", None, True),
    "FK4": (("RA---TAN", "DEC--TAN"), "FK4", 1950.0, False),
    "FK4 by its equinox": (("RA---TAN", "DEC--TAN"), "", 1950.0, False),
}


def wcs_in(name):
    ctype, radesys, equinox, _ = SYSTEMS[name]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.radesys = list(ctype), radesys
    if equinox is not None:
        wcs.wcs.equinox = equinox
    wcs.wcs.set()
    return wcs


def positions():
    rng = np.random.default_rng(12)
    lon = np.concatenate([rng.uniform(0, 360, 300), [0.0, 0.0, 359.9999999999, 180.0, 12.0]])
    lat = np.concatenate([np.rad2deg(np.arcsin(rng.uniform(-1, 1, 300))), [90.0, -90.0, 0.0, 1e-9, -89.999999]])
    return lon, lat


@pytest.mark.parametrize("name", SYSTEMS)
def test_positions_are_astropys(name):
    wcs, (lon, lat) = wcs_in(name), positions()
    frame = wcs_to_celestial_frame(wcs)
    there, icrs = SkyCoord(lon, lat, unit="deg", frame=frame), SkyCoord(lon, lat, unit="deg", frame="icrs")
    forth = SkyCoord(*to_icrs(wcs, lon, lat), unit="deg", frame="icrs")
    back = SkyCoord(*from_icrs(wcs, lon, lat), unit="deg", frame=frame)
    assert forth.separation(there.icrs).arcsec.max() < 1e-8
    assert back.separation(icrs.transform_to(frame)).arcsec.max() < 1e-8
    again = SkyCoord(*from_icrs(wcs, forth.ra.deg, forth.dec.deg), unit="deg", frame=frame)
    assert again.separation(there).arcsec.max() < 1e-8


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_position_that_is_not_known_stays_so(name):
    wcs = wcs_in(name)
    for function in (to_icrs, from_icrs):
        lon, lat = function(wcs, np.array([10.0, np.nan, 200.0]), np.array([5.0, np.nan, -5.0]))
        np.testing.assert_array_equal(np.isnan(lon), [False, True, False])
        np.testing.assert_array_equal(np.isnan(lat), [False, True, False])


def test_astropy_is_asked_once_for_systems_that_are_turned(monkeypatch):
    zemosaic_sky_systems._turned_system.cache_clear()
    asked = []
    whole = SkyCoord.__init__
    monkeypatch.setattr(SkyCoord, "__init__", lambda self, *a, **k: asked.append(1) or whole(self, *a, **k))
    for name, (*_, turned) in SYSTEMS.items():
        wcs = wcs_in(name)
        to_icrs(wcs, *positions())
        asked.clear()
        for _ in range(3):
            to_icrs(wcs, *positions())
            from_icrs(wcs, *positions())
        assert bool(asked) == (not turned and "FK4" in name), name


def test_a_system_that_is_not_known_is_named():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], "JNOW"
    for function in (lambda w: to_icrs(w, np.zeros(1), np.zeros(1)), check_system):
        with pytest.raises(FrameError, match=r"not known \(CTYPE1 RA---TAN, RADESYS JNOW\)"):
            function(wcs)
