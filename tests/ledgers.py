"""Ledgers made up for tests: rows as a run writes them, with culprits where a test wants them."""

from pathlib import Path

import numpy as np

from zemosaic_fits_io import frame_wcs, read_frame_header
from zemosaic_fits_products import read_product_wcs
from zemosaic_ledger import read_ledger
from zemosaic_outputs import LedgerRow, RunSummary, ledger_text
from zemosaic_reproject import Canvas

CANVAS = Canvas((192.72, 41.12), (300.0, 200.0), 2.4 / 3600, 0.0, (400, 600))


def rows_of(n=30, channels=1, seed=1, folder="/home/someone/my frames/M94", **bad):
    """Return the rows of frames in two panels; `bad` changes single frames: ``f3=dict(fwhm_px=7.0)``."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        x, y = 100.0 + 180.0 * (k % 2) + rng.normal(0, 3), 60.0 + rng.normal(0, 3)
        corners = [x, y, x + 240, y + 2, x + 238, y + 180, x - 2, y + 178]
        noise = float(30.0 * rng.uniform(0.9, 1.1))
        values = dict(
            path=f"{folder}/night1/Light_{k:04d}.fit",
            frame_id=f"night1/Light_{k:04d}.fit",
            used=True,
            date_obs=f"2025-03-26T20:{30 + k // 3:02d}:{20 * (k % 3):02d}.5",
            exptime_s=10.0,
            filter="LP",
            sky=(900.0,) * channels,
            noise=(noise,) * channels,
            fwhm_px=float(rng.normal(3.2, 0.1)),
            elongation=1.05,
            n_stars=80,
            gain=(1.0,) * channels,
            offset=(0.0,) * channels,
            weight=(1.0 / noise**2,) * channels,
            gradient_x=(float(rng.normal(0, 0.01)),) * channels,
            gradient_y=(float(rng.normal(0, 0.01)),) * channels,
            transparency=0.97,
            match_residual=(float(abs(rng.normal(1.2, 0.2))),) * channels,
            align_residual_px=0.15,
            outline=" ".join(f"{v:.2f}" for v in corners),
            area_ratio=1.0,
            n_tiles=2,
            n_samples=40_000,
            n_rejected_high=int(rng.integers(50, 400)),
        )
        rows.append(LedgerRow(**values | bad.get(f"f{k}", {})))
    return rows


def summary_of(rows, channels=1):
    """Return what a finished run says of itself."""
    settings = dict(reject="kappa_sigma", combine="mean", kernel="lanczos3", kappa_low=3.0, kappa_high=3.0)
    settings |= dict(spread="auto", normalise="linear_fit", weight="noise_variance", orientation="north_up")
    return RunSummary(CANVAS, channels, settings, rows, 65535.0)


def add_outlines(paths):
    """Write into a run's ledger where its frames lie, where it does not say so itself."""
    rows, n_channels = read_ledger(paths.ledger)
    mosaic = read_product_wcs(paths.mosaic)
    for row in rows:
        if row.used and not row.outline:
            header = read_frame_header(Path(row.path))
            ny, nx = header.shape
            x, y = [-0.5, nx - 0.5, nx - 0.5, -0.5], [-0.5, -0.5, ny - 0.5, ny - 0.5]
            corners = np.transpose(mosaic.all_world2pix(*frame_wcs(header).all_pix2world(x, y, 0), 0))
            row.outline = " ".join(f"{value:.2f}" for value in corners.ravel())
    paths.ledger.write_text(ledger_text(rows, n_channels), encoding="utf-8")
