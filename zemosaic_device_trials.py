"""Whether the compiled kernels of a device give what the CPU gives: tried on made-up frames before they are used.

A kernel that computes nonsense, by a fault of ours or of a compiler, must not reach a mosaic. Agreement is to the
last bit, since the arithmetic is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import zemosaic_preprocess as compiled
import zemosaic_resample_kernels as kernels
from zemosaic_backend import Device, to_host
from zemosaic_frame_cuda import FrameKernels
from zemosaic_noise_model import NoiseModel
from zemosaic_stack_core import StackResult, stack
from zemosaic_types import StackParams

_SKY, _NOISE = np.array([1000.0, 1100.0, 900.0]), np.array([30.0, 33.0, 29.0])
_FLAT_PEDESTAL = 40.0
_FEATHER_PX, _LEAST_FEATHER = 12.0, 0.01


def stack_kernels_agree(device: Device, params: StackParams, n_frames: int) -> bool:
    """Return whether a device's kernels stack so many frames as the CPU does.

    Raises
    ------
    one of ``device.errors``
        If it fails.
    """
    rng, shape = np.random.default_rng(0), (24, 40) if n_frames <= 64 else (8, 12)
    samples = rng.normal(100.0, 5.0, (n_frames, 2, *shape)).astype(np.float32)
    samples[rng.random(samples.shape) < 0.05] += 80.0
    holed = samples[:, :, shape[0] // 3 :]  # the other rows have data of every frame
    holed[rng.random(holed.shape) < 0.1] = np.nan
    ranges = ((4, 12), (0.1, 1), (90, 100), (-0.4, 0.4))  # of sky, photon, level and blur
    noise = NoiseModel(*(rng.uniform(low, high, (n_frames, 2)) for low, high in ranges))
    given = rng.uniform(0.5, 2.0, (n_frames, 2)), noise, params
    weights = rng.uniform(0.1, 1.0, (n_frames, *shape)).astype(np.float32)
    there = device.upload(samples)
    for here in (None, weights):
        on_device = None if here is None else device.upload(here)
        result = stack(there, *given, pixel_weight=on_device, halo=(1, 1, 1, 1), device=device)
        if not _same(result, stack(samples, *given, pixel_weight=here, halo=(1, 1, 1, 1))):
            return False
    return True


def _same(one: StackResult, other: StackResult) -> bool:
    names = ("image", "weight", "coverage", "rejected_low", "rejected_high", "tally")
    pairs = ((to_host(getattr(one, name)), getattr(other, name)) for name in names)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def frame_kernels_agree(device: Device) -> bool:
    """Return whether a device's kernels prepare, resample and weigh a frame as the CPU does.

    Raises
    ------
    one of ``device.errors``
        If it fails.
    """
    forms = FrameKernels(device)
    pairs = (*_prepared(device, forms), *_on_canvas(device, forms))
    return all(np.array_equal(to_host(there), here, equal_nan=True) for there, here in pairs)


def _raw_frame() -> np.ndarray:
    """Return a raw frame with stars of a width, hot, dead and missing pixels, float32 (ny, nx)."""
    rng = np.random.default_rng(1)
    raw = rng.normal(1000.0, 30.0, (60, 150))
    y, x = np.indices(raw.shape)
    for j, i in rng.uniform(0, raw.shape, (12, 2)):
        raw += 9000.0 * np.exp(-((y - j) ** 2 + (x - i) ** 2) / 4.0)
    wild = rng.random(raw.shape)
    raw[wild < 0.02], raw[wild > 0.98], raw[np.abs(wild - 0.5) < 0.005] = 60000.0, 0.0, np.nan
    return raw.astype(np.float32)


def _prepared(device: Device, forms: FrameKernels) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield what the device and the CPU make of a raw frame, step by step."""
    raw, colours = _raw_frame(), compiled.bayer_colours("GRBG")
    rng = np.random.default_rng(2)
    rows, columns = rng.normal(1.0, 0.1, (3, 4, raw.shape[0])), np.linspace(-1.0, 1.0, raw.shape[1])
    flat = compiled.flattened(raw, colours, rows, columns, _FLAT_PEDESTAL)
    yield (
        forms.flattened(device.upload(raw), colours, device.upload(rows), device.upload(columns), _FLAT_PEDESTAL),
        flat,
    )
    model = colours, _SKY, _NOISE, compiled.ISOLATED_SIGMA
    clean = compiled.replace_isolated(raw, *model)
    yield forms.replace_isolated(device.upload(raw), *model), clean
    yield forms.demosaic(device.upload(clean), colours), compiled.demosaic(clean, colours)


def _on_canvas(device: Device, forms: FrameKernels) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield what the device and the CPU make of a frame on a turned canvas: its pixels, its feather."""
    planes = np.stack([_raw_frame(), _raw_frame()[::-1]])
    size, step = planes.shape[1:], 16
    y, x = np.mgrid[-96:112:step, -96:112:step].astype(np.float64)
    nodes = np.stack([75.3 + 0.9 * x - 0.4 * y + 1e-4 * x * y, 30.7 + 0.4 * x + 0.9 * y - 1e-4 * x * x])
    where, shape = (nodes, (-96, -96, step), (-60, -80)), (120, 170)
    there = device.upload(nodes), *where[1:]
    for kernel, table in (("lanczos3", (kernels.lanczos3_table(),)), ("bilinear", ())):
        expected = np.empty((planes.shape[0], *shape), dtype=np.float32)
        getattr(kernels, kernel)(planes, (0, 0), size, *where, *table, expected)
        on_device = (*map(device.upload, table),)
        yield forms.resample(device.upload(planes), (0, 0), size, *there, shape, kernel, *on_device), expected
    weight = np.random.default_rng(3).uniform(0.5, 1.0, shape).astype(np.float32)
    expected = weight.copy()
    kernels.feather(*where, *size, _FEATHER_PX, _LEAST_FEATHER, expected)
    yield forms.feather(*there, size, _FEATHER_PX, _LEAST_FEATHER, device.upload(weight)), expected
