"""Values of header cards, in whichever of their many forms capture programs write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from astropy.io import fits

#: Headers of a frame in the order in which they are asked.
Headers = tuple[fits.Header, ...]

_SEXAGESIMAL = re.compile(r"([+-]?)(\d{1,3})[\s:hd°]+(\d{1,2})[\s:m'′]+(\d{1,2}(?:\.\d*)?)[\s\"″s]*")
_ARCSEC_OF_MICRON_A_MM = 206.264806


def values(headers: Headers, keys: Iterable[str]) -> Iterator[object]:
    """Yield what the cards `keys` say, each from all headers; a card that cannot be parsed says nothing."""
    for key in keys:
        for header in headers:
            try:
                value = header.get(key)
            except (fits.VerifyError, ValueError):
                continue
            if value is not None and not isinstance(value, fits.card.Undefined):
                yield value


def number(headers: Headers, *keys: str) -> float | None:
    """Return the first finite number of some cards; text is no number."""
    return next((float(value) for value in values(headers, keys) if _is_number(value)), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def positive_or_inf(value: float | None) -> float:
    """Return a positive number, and infinity in place of anything else."""
    return value if value is not None and value > 0 else math.inf


def text_of(headers: Headers, *keys: str) -> str:
    """Return the first text of some cards that is not blank, else an empty one."""
    return next((text for value in values(headers, keys) if (text := str(value).strip())), "")


def mount(headers: Headers) -> str:
    """Return EQMODE (a Seestar's 1 or 0) in words, else MOUNT."""
    for value in values(headers, ("EQMODE",)):
        if isinstance(value, int | float):
            return "EQ" if value else "ALTZ"
    return text_of(headers, "EQMODE", "MOUNT")


def angle(headers: Headers, keys: tuple[str, ...], *, is_ra: bool) -> float | None:
    """Return the first usable angle in degrees; sexagesimal right ascensions are hours unless marked with d."""
    low, high = (0.0, 360.0) if is_ra else (-90.0, 90.0)
    for value in values(headers, keys):
        degrees = _sexagesimal_deg(value, is_ra=is_ra) if isinstance(value, str) else value
        if _is_number(degrees) and low <= degrees <= high:
            return float(degrees)
    return None


def _sexagesimal_deg(text: str, *, is_ra: bool) -> float | None:
    match = _SEXAGESIMAL.fullmatch(text.strip())
    if match is None or float(match[3]) >= 60 or float(match[4]) > 60:
        return None
    degrees = int(match[2]) + float(match[3]) / 60 + float(match[4]) / 3600
    hours = is_ra and "d" not in text and "°" not in text
    return (-degrees if match[1] == "-" else degrees) * (15.0 if hours else 1.0)


def equinox(headers: Headers) -> str:
    """Return what RA and DEC are said to refer to, in the header's words (a year, ICRS, JNOW), or nothing."""
    return text_of(headers, "EQUINOX", "OBJEQUIN", "RADESYS", "RADECSYS", "EPOCH").upper()


def pixel_scale(headers: Headers) -> float | None:
    """Return the pixel scale that pixel size (microns) and focal length (mm) give, arcsec a pixel, if they can."""
    size, focal_length = number(headers, "XPIXSZ", "PIXSIZE1"), number(headers, "FOCALLEN")
    if not size or not focal_length or size < 0 or focal_length < 0:
        return None
    return _ARCSEC_OF_MICRON_A_MM * size / focal_length
