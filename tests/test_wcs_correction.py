"""A corrected WCS puts every pixel of the frame where it is wanted, whatever the form of its cards."""

import numpy as np
import pytest

from zemosaic_fits_io import frame_wcs
from zemosaic_reproject import frame_to_canvas, optimal_canvas, place
from zemosaic_types import FrameError, FrameHeader
from zemosaic_wcs_correction import ROUND_TRIP_PX, corrected_header

SHAPE = (1080, 1920)
SCALE = 2.4 / 3600
TAN = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 192.7,
    "CRVAL2": 41.1,
    "CRPIX1": 960.5,
    "CRPIX2": 540.5,
    "CD1_1": -SCALE * 0.9,
    "CD1_2": SCALE * 0.4358898943540674,
    "CD2_1": SCALE * 0.4358898943540674,
    "CD2_2": SCALE * 0.9,
    "RADESYS": "ICRS",
}
SIP = TAN | {
    "CTYPE1": "RA---TAN-SIP",
    "CTYPE2": "DEC--TAN-SIP",
    "A_ORDER": 3,
    "A_2_0": 2e-7,
    "A_0_3": 3e-9,
    "B_ORDER": 3,
    "B_1_1": -3e-7,
    "B_3_0": 2e-9,
}
FORMS = {
    "cd": TAN,
    "mirrored": TAN | {"CD1_1": SCALE * 0.9, "CD1_2": -SCALE * 0.4358898943540674},
    "sip": SIP,
    "reference far outside": TAN | {"CRPIX1": -4000.0, "CRPIX2": 9000.0},
    "near the pole": TAN | {"CRVAL2": 89.3},
    "galactic": TAN | {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
    "fk5": TAN | {"RADESYS": "FK5", "EQUINOX": 1950.0},
    "latitude first": TAN
    | {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 41.1, "CRVAL2": 192.7}
    | {"CD1_1": SCALE * 0.4, "CD1_2": SCALE * 0.9, "CD2_1": -SCALE * 0.9, "CD2_2": SCALE * 0.4},
    "tpv": TAN | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV1_7": 1e-3, "PV2_1": 1.0},
    "pc and cdelt": {k: v for k, v in TAN.items() if not k.startswith("CD")}
    | {"CDELT1": -SCALE, "CDELT2": SCALE, "PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8},
    "crota": {k: v for k, v in TAN.items() if not k.startswith("CD")}
    | {"CDELT1": -SCALE, "CDELT2": SCALE, "CROTA2": 33.0},
    "arcseconds": TAN
    | {"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CRVAL1": 192.7 * 3600, "CRVAL2": 41.1 * 3600}
    | {f"CD{i}_{j}": TAN[f"CD{i}_{j}"] * 3600 for i in (1, 2) for j in (1, 2)},
}


def header_of(cards):
    text = "".join(
        f"{key:<8}= {f'{value!r:<8}' if isinstance(value, str) else value}"[:80].ljust(80)
        for key, value in cards.items()
    )
    return FrameHeader(hdu=0, layout="mono", shape=SHAPE, wcs_text=text)


def canvas_of(wcs):
    """A canvas whose tangent point a neighbour two degrees away has drawn off the frame."""
    other = wcs.deepcopy()
    other.wcs.crval = wcs.wcs.crval - [0.0, 2.0]
    other.wcs.set()
    return optimal_canvas([(SHAPE, wcs), (SHAPE, other)])


def similarity(centre, tx, ty, turn_deg, scale):
    c, s = (1 + scale) * np.cos(np.deg2rad(turn_deg)), (1 + scale) * np.sin(np.deg2rad(turn_deg))

    def move(x, y):
        u, v = x - centre[0], y - centre[1]
        return centre[0] + tx + c * u - s * v, centre[1] + ty + s * u + c * v

    return move


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("move", [(0.5, -0.3, 0.02, 1e-4), (-4.0, 2.5, 0.2, -1e-3)], ids=str)
def test_pixels_go_where_they_are_wanted(form, move):
    header = header_of(FORMS[form])
    wcs = frame_wcs(header)
    canvas = canvas_of(wcs)
    rng = np.random.default_rng(4)
    x = np.append(rng.uniform(-0.5, SHAPE[1] - 0.5, 300), [-0.5, 1919.5, -0.5, 1919.5])
    y = np.append(rng.uniform(-0.5, SHAPE[0] - 0.5, 300), [-0.5, -0.5, 1079.5, 1079.5])
    old = frame_to_canvas(wcs, x, y, canvas)
    wanted_of = similarity(np.mean(old, axis=1), *move)
    corrected = frame_wcs(corrected_header(header, canvas, wanted_of))
    wanted, new = wanted_of(*old), frame_to_canvas(corrected, x, y, canvas)
    assert np.hypot(wanted[0] - old[0], wanted[1] - old[1]).max() > 0.4
    assert np.hypot(new[0] - wanted[0], new[1] - wanted[1]).max() < ROUND_TRIP_PX
    assert corrected.has_distortion == wcs.has_distortion
    place(corrected, SHAPE, canvas)


def test_no_correction_changes_nothing():
    header = header_of(SIP)
    canvas = canvas_of(frame_wcs(header))
    corrected = corrected_header(header, canvas, lambda x, y: (x, y))
    x, y = np.array([0.0, 1919.0]), np.array([0.0, 1079.0])
    old, new = (frame_to_canvas(frame_wcs(h), x, y, canvas) for h in (header, corrected))
    np.testing.assert_allclose(new, old, rtol=0, atol=1e-6)
    assert header.wcs_text != corrected.wcs_text
    assert "A_0_3" in corrected.wcs_text


def test_a_correction_can_be_corrected_again_and_undone():
    header = header_of(TAN)
    canvas = canvas_of(frame_wcs(header))
    there = corrected_header(header, canvas, lambda x, y: (x + 3.0, y - 2.0))
    back = corrected_header(there, canvas, lambda x, y: (x - 3.0, y + 2.0))
    np.testing.assert_allclose(frame_wcs(back).wcs.crval, [192.7, 41.1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(frame_wcs(back).pixel_scale_matrix, frame_wcs(header).pixel_scale_matrix, rtol=1e-7)
    assert len(there.wcs_text) == len(back.wcs_text)


def test_a_bent_motion_is_refused():
    header = header_of(TAN)
    canvas = canvas_of(frame_wcs(header))
    with pytest.raises(FrameError, match="cannot be corrected"):
        corrected_header(header, canvas, lambda x, y: (x + 1e-6 * (y - y.mean()) ** 2, y))
