"""Groups of things that are tied to each other, directly or through others, and their members."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components


def pair_graph(pairs: np.ndarray, n: int) -> coo_matrix:
    """Return the graph of n things that has an edge of length 1 for each of the pairs (p, 2)."""
    return coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))


def linked_groups(pairs: np.ndarray, n: int) -> np.ndarray:
    """Return the number of the group of each of n things (n,), from 0, by the pairs (p, 2) that tie them."""
    return connected_components(pair_graph(pairs, n), directed=False)[1]


def tied_groups(frame: np.ndarray, point: np.ndarray, n_frames: int) -> np.ndarray:
    """Return the number of the group of each frame (n,), from 0: common points tie frames to each other.

    Parameters
    ----------
    frame, point : ndarray, shape (m,), int
        Which frame sees which point.
    n_frames : int
    """
    n = n_frames + int(point.max(initial=-1)) + 1
    graph = csr_matrix((np.ones(frame.size, np.int8), (frame, n_frames + point)), shape=(n, n))
    label = connected_components(graph, directed=False)[1][:n_frames]
    return np.unique(label, return_inverse=True)[1]


def members_of(group: np.ndarray, order: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the indices of the members of each group, groups by number, members as they stand or in an order."""
    order = np.arange(group.size) if order is None else order
    order = order[np.argsort(group[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
