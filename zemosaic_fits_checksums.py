"""Headers of FITS files as bytes, with their checksums (FITS standard 4.0, appendix J)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning

BLOCK = 2880
CARD = 80

_WORD = 0xFFFFFFFF


def padded(n_bytes: int) -> int:
    """Return a length in whole blocks of a FITS file."""
    return -(-n_bytes // BLOCK) * BLOCK


def with_checksums(header: fits.Header, datasum: int, length: int) -> bytes:
    """Return a header of so many bytes with DATASUM and CHECKSUM; `datasum` is the sum of the data words."""
    done = header.copy()
    done["DATASUM"] = str(datasum)
    done["CHECKSUM"] = "0" * 16
    words = np.frombuffer(header_bytes(done, length), dtype=">u4")
    total = folded(int(words.sum(dtype=np.uint64)) + datasum)
    done["CHECKSUM"] = _checksum_text(total ^ _WORD)
    return header_bytes(done, length)


def folded(total: int) -> int:
    """Return the ones'-complement sum of 32-bit words from their plain sum: carries are added at the low end."""
    while total > _WORD:
        total = (total & _WORD) + (total >> 32)
    return total


def _checksum_text(value: int) -> str:
    """Return 16 letters and digits that add `value` to a sum in which they replace 16 zeros.

    Each of the four bytes is spread over four characters that stand in the same byte of four words. Pairs of
    characters move apart, one up and one down, until none is a punctuation mark.
    """
    letters = [0] * 16
    for position, byte in enumerate(value.to_bytes(4, "big")):
        quarter, rest = divmod(byte, 4)
        four = [quarter + ord("0") + extra for extra in (rest, 0, 0, 0)]
        for first in (0, 2):
            while not all(chr(code).isalnum() for code in four[first : first + 2]):
                four[first] += 1
                four[first + 1] -= 1
        letters[position::4] = four
    # The value of a card starts in column 12, the last byte of a word: turn by one.
    return "".join(map(chr, [letters[-1], *letters[:-1]]))


def header_bytes(header: fits.Header, length: int) -> bytes:
    """Return a header of so many bytes, whole blocks; blank cards bring END into the last of them."""
    with quiet_cards():
        cards = header.tostring(endcard=False, padding=False).encode("ascii")
    if len(cards) > length - CARD:
        raise ValueError(f"a header of {len(cards) // CARD} cards does not fit into {length} bytes")
    return (cards.ljust(length - BLOCK) + b"END").ljust(length)


@contextlib.contextmanager
def quiet_cards() -> Iterator[None]:
    """Ignore what astropy says about cards whose comment it has to shorten."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        yield
