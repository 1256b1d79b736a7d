"""Seeded star catalogues: two views of one sky, each with its own faults."""

import numpy as np

from zemosaic_star_patterns import star_pattern

SHAPE = (540, 960)
MIDDLE = 0.5 * (SHAPE[1] - 1) + 0.5j * (SHAPE[0] - 1)


def sky(rng, n_in_view):
    """Places and fluxes of stars on a sky nine times as large as a view."""
    ny, nx = SHAPE
    size = 9 * n_in_view
    places = rng.uniform(-nx, 2 * nx, size) + 1j * rng.uniform(-ny, 2 * ny, size)
    return places, rng.pareto(1.0, size) + 1.0


def view(rng, places, flux, *, turn=1.0, shift=0.0, noise=0.3, missing=0.3, spurious=0.5, mirrored=False):
    """The pattern of a view, in which a place of the sky lies at ``turn * (place - middle + shift) + middle``."""
    z = turn * (places - MIDDLE + shift) + MIDDLE
    if mirrored:
        z = SHAPE[1] - 1 - z.conj()
    kept = (z.real > 0) & (z.imag > 0) & (z.real < SHAPE[1] - 1) & (z.imag < SHAPE[0] - 1)
    kept &= rng.random(z.size) >= missing
    z, seen = z[kept], flux[kept] * rng.lognormal(0.0, 0.2, kept.sum())
    n_more = int(spurious * z.size)
    more = rng.uniform(0, SHAPE[1] - 1, n_more) + 1j * rng.uniform(0, SHAPE[0] - 1, n_more)
    z = (
        np.concatenate([z, more])
        + rng.normal(0, noise, z.size + n_more)
        + 1j * rng.normal(0, noise, z.size + n_more)
    )
    z = z[np.argsort(-np.concatenate([seen, rng.pareto(1.0, n_more) + 1.0]), kind="stable")]
    return star_pattern(z.real, z.imag, SHAPE)


def two_views(seed, n_in_view=60, *, scale=1.0, overlap=0.7, **faults):
    """Two views of one sky, the second turned by any angle; the similarity between them."""
    rng = np.random.default_rng(seed)
    places, flux = sky(rng, n_in_view)
    turn = scale * np.exp(1j * rng.uniform(0, 2 * np.pi))
    shift = -(1.0 - overlap) * SHAPE[1]
    mirrored = faults.pop("mirrored", False)
    first = view(rng, places, flux, **faults)
    second = view(rng, places, flux, turn=turn, shift=shift, mirrored=mirrored, **faults)
    return first, second, turn, turn * (shift - MIDDLE) + MIDDLE
