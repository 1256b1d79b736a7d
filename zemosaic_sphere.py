"""Places on the sky as unit vectors, in which means and distances have no edges and no poles."""

from __future__ import annotations

import numpy as np


def unit_vectors(sky_deg: np.ndarray) -> np.ndarray:
    """Return right ascensions and declinations (n, 2) as unit vectors (n, 3)."""
    lon, lat = np.deg2rad(np.asarray(sky_deg, dtype=float)).T
    return np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def places_deg(vectors: np.ndarray) -> np.ndarray:
    """Return right ascensions, 0 to below 360, and declinations (n, 2) of vectors (n, 3); NaN stays.

    The vectors may have any length.
    """
    x, y, z = vectors.T
    ra = np.mod(np.rad2deg(np.arctan2(y, x)), 360.0)
    return np.column_stack([np.where(ra == 360.0, 0.0, ra), np.rad2deg(np.arctan2(z, np.hypot(x, y)))])


def place_deg(vector: np.ndarray) -> tuple[float, float]:
    """Return right ascension and declination of one vector (3,)."""
    ra, dec = places_deg(vector[None])[0]
    return float(ra), float(dec)


def mean_place(sky_deg: np.ndarray) -> tuple[float, float]:
    """Return right ascension and declination of the mean of places (n, 2) on the sphere, in degrees."""
    return place_deg(normalised(unit_vectors(sky_deg).sum(axis=0)))


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) of length 1; those of length 0 as they are."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)


def north_east(sky_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors (n, 3) that point north and east at places (n, 2)."""
    lon, lat = np.deg2rad(np.asarray(sky_deg, dtype=float)).T
    north = np.column_stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    return north, np.column_stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)])


def chord_angle_deg(chord: np.ndarray | float) -> np.ndarray:
    """Return the angles between unit vectors from the distances of their ends."""
    return np.rad2deg(2.0 * np.arcsin(np.clip(0.5 * np.asarray(chord), 0.0, 1.0)))
