"""The same drive as `zemosaic_align_stack` on a GPU: slabs planned from its free memory, transfers, fall-back.

Raw sections go to the device as they are stored, where they are prepared, resampled and stacked; only a slab's
result comes back. Threads read the next sections meanwhile. Nothing here says what is computed: that is in
`zemosaic_frame_cuda` (or, without kernels that can be trusted, `zemosaic_frame_arrays`) and `zemosaic_stack_core`.

A device that fails costs nothing but time: the slab is stacked on the host instead, with the result of the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np

import zemosaic_frame_arrays
import zemosaic_stack_arrays as arrays
import zemosaic_stack_cuda as kernels
from zemosaic_backend import Device
from zemosaic_device_trials import frame_kernels_agree, stack_kernels_agree
from zemosaic_events import tagged_logger
from zemosaic_frame_arrays import to_float
from zemosaic_frame_cuda import FrameKernels
from zemosaic_frame_source import FrameSource, PreparingForms
from zemosaic_reproject import LEAST_FEATHER
from zemosaic_resample_kernels import lanczos3_table
from zemosaic_stack_core import HALO_PX, normalise
from zemosaic_types import FrameError, Rect, StackParams

logger = tagged_logger("ZeMosaicWorker.stack")

#: After so many failures the device is left alone for the rest of the run.
MOST_FAILURES = 3

_SHARE_OF_FREE_MEMORY = 0.7
_SLAB_SIDE_PX = 2048
_MIN_SLAB_SIDE_PX = 16
_READERS = 2
_SECTIONS_AHEAD = 6


class Stacking(Protocol):
    """What a driver offers to a device: a rectangle that is being stacked."""

    n_channels: int
    params: StackParams
    feather_px: float
    weighs_pixels: bool

    def stack_slab(
        self,
        slab: Rect,
        gather: Callable[..., tuple[Any, Any]],
        *,
        kernels: Callable[[int], Device | None] = ...,
    ) -> None:
        """Stack a slab from the samples that ``gather(sources, wide)`` returns, and keep the result.

        Where `kernels` gives a device for the number of frames by its compiled kernels, else in array operations.
        """
        ...

    def stack_on_host(self, slab: Rect) -> None:
        """Stack a slab on the host."""
        ...

    def hard_weights(self, source: FrameSource, part: Rect) -> np.ndarray | None:
        """Return the weights of a frame's pixels in a part of the canvas without a feather, on the host."""
        ...

    def miss(self, source: FrameSource, reason: str) -> None:
        """Note that a frame could not be read here."""
        ...


class FrameForms(PreparingForms, Protocol):
    """What brings a raw frame onto the canvas: `zemosaic_frame_arrays`, or a device's `FrameKernels`."""

    PREPARE_BYTES_PER_PX: int
    RESAMPLE_BYTES_PER_PX: int
    resample: Callable[..., Any]
    feather: Callable[..., Any]


class DeviceStacker:
    """A device that stacks slabs, for a whole run.

    Parameters
    ----------
    device : Device
        Used by the calling thread only.

    Attributes
    ----------
    failures : list of str
        Why slabs were stacked on the host instead, in order.
    notes : list of str
        What else a user should know, in order: kernels that are not used since they are wrong.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.failures: list[str] = []
        self.notes: list[str] = []
        self._table: Any = None
        self._forms: FrameForms | None = None
        self._trusted: dict[tuple[StackParams, int], bool] = {}

    @property
    def given_up(self) -> bool:
        """Whether the device has failed too often to be tried again."""
        return len(self.failures) >= MOST_FAILURES

    def slab_side(self, n_frames: int, n_channels: int, params: StackParams) -> int:
        """Return the side of the square slabs that fit into free memory, the largest if the device cannot say."""
        try:
            compiled = params.combine == "mean" and self._kernels(params, n_frames) is not None
            forms = self._frame_forms()
            free = self.device.free_bytes()
        except self.device.errors as error:  # after some errors of CUDA every call fails
            self.failures.append(_described(error))
            return _SLAB_SIDE_PX
        of_sample, of_pixel = (4, kernels.PIXEL_BYTES) if compiled else (arrays.SAMPLE_BYTES, arrays.PIXEL_BYTES)
        samples = n_frames * n_channels * (4 + of_sample) + 4 * n_frames  # the last: weights a pixel
        of_one_frame = max(forms.RESAMPLE_BYTES_PER_PX + 4 * n_channels, 2 * forms.PREPARE_BYTES_PER_PX)
        bytes_per_px = samples + n_channels * of_pixel + of_one_frame
        pixels = int(_SHARE_OF_FREE_MEMORY * free) // bytes_per_px
        return min(max(_MIN_SLAB_SIDE_PX, int(pixels**0.5) - 2 * HALO_PX), _SLAB_SIDE_PX)

    def stack_slab(self, work: Stacking, slab: Rect) -> None:
        """Stack a slab on the device; halve it when memory is full, and go to the host when the device fails."""
        if self.given_up:
            work.stack_on_host(slab)
            return
        reason = self._try(work, slab)
        if reason is None:
            return
        if reason == "" and max(slab.shape) > _MIN_SLAB_SIDE_PX:
            for half in _halves(slab):
                self.stack_slab(work, half)
            return
        self.failures.append(reason or "its memory is full, even for a small slab")
        work.stack_on_host(slab)

    def _try(self, work: Stacking, slab: Rect) -> str | None:
        """Stack a slab; return None, the reason of a failure, or nothing if memory was full."""
        reason: str | None = None
        try:
            gather, trusted = partial(self._gather, work), partial(self._kernels, work.params)
            work.stack_slab(slab, gather, kernels=trusted)
        except self.device.errors as error:
            reason = "" if self.device.is_out_of_memory(error) else _described(error)
        self._release(failed=bool(reason))
        return reason

    def _kernels(self, params: StackParams, n_frames: int) -> Device | None:
        """Return the device if its kernels for so many frames give what the CPU gives.

        They are tried once, on made-up pixels of as many frames as these kernels can take.
        """
        if not self.device.compiles or n_frames > kernels.MOST_FRAMES:
            return None
        key = params, kernels.compiled_for(n_frames)
        if key not in self._trusted:
            self._trusted[key] = stack_kernels_agree(self.device, *key)
            if not self._trusted[key]:
                gpu, n = self.device.info.name, key[1]
                self._note(
                    f"{gpu}: the stack kernel for {n} frames computes wrongly and is not used, "
                    "which makes the run slower"
                )
        return self.device if self._trusted[key] else None

    def _frame_forms(self) -> FrameForms:
        """Return what prepares and resamples frames: the device's kernels if they give what the CPU gives."""
        if self._forms is None:
            trusted = self.device.compiles and frame_kernels_agree(self.device)
            if self.device.compiles and not trusted:
                self._note(
                    f"{self.device.info.name}: the kernels of frames compute wrongly and are not used, "
                    "which makes the run slower"
                )
            self._forms = FrameKernels(self.device) if trusted else zemosaic_frame_arrays
        return self._forms

    def _note(self, note: str) -> None:
        self.notes.append(note)
        logger.warning("%s", note)

    def _release(self, *, failed: bool) -> None:
        """Give memory back; a device that has just failed is not counted once more if it cannot do that either."""
        try:
            self.device.release()
        except self.device.errors as error:
            if not failed:
                self.failures.append(_described(error))

    def _gather(self, work: Stacking, sources: list[FrameSource], wide: Rect) -> tuple[Any, Any]:
        """Return the samples (n, c, ny, nx) of frames in a rectangle and weights of pixels, None if all are 1."""
        xp = self.device.xp
        data = xp.full((len(sources), work.n_channels, *wide.shape), xp.nan, dtype=np.float32)
        weight = xp.ones((len(sources), *wide.shape), dtype=np.float32) if work.weighs_pixels else None
        weighed = False
        for row, section, raw in _read_ahead(sources, wide):
            source = sources[row]
            part = source.part_of(wide)
            at = part.shifted(-wide.y0, -wide.x0).slices
            try:
                pixels = raw.result()
                of_part = self._weights(work, source, part) if weight is not None else None
                if of_part is not None:
                    weight[(row, *at)], weighed = of_part, True
            except FrameError as error:
                work.miss(source, str(error))
                continue
            data[(row, slice(None), *at)] = self._samples(source, section, pixels, part)
            rows, columns = (a if a is None else self.device.upload(a) for a in source.ramps(part))
            normalise(data[(row, slice(None), *at)], np.array(source.frame.solution.gain), rows, columns)
        return data, weight if weighed else None

    def _weights(self, work: Stacking, source: FrameSource, part: Rect) -> Any:
        """Return the weights of a frame's pixels in a part of the canvas, None if all are 1."""
        hard = work.hard_weights(source, part)
        weight = None if hard is None else self.device.upload(hard)
        if not source.is_feathered(part, work.feather_px):
            return weight
        if weight is None:
            weight = self.device.xp.ones(part.shape, dtype=np.float32)
        grid, size = source.grid, source.header.shape
        where = self.device.upload(grid.nodes), grid.origin, (part.y0, part.x0), size
        return self._frame_forms().feather(*where, work.feather_px, LEAST_FEATHER, weight)

    def _samples(self, source: FrameSource, section: Rect, raw: np.ndarray, part: Rect) -> Any:
        """Return a frame's samples (c, h, w) of a part of the canvas, not normalised yet."""
        raw, forms = to_float(self.device.upload(raw)), self._frame_forms()
        planes = source.prepared(raw, section, forms, self.device.upload)
        grid = source.grid
        return forms.resample(
            planes,
            (section.y0, section.x0),
            source.header.shape,
            self.device.upload(grid.nodes),
            grid.origin,
            (part.y0, part.x0),
            part.shape,
            source.kernel,
            self._lanczos_table(),
        )

    def _lanczos_table(self) -> Any:
        if self._table is None:
            self._table = self.device.upload(lanczos3_table())
        return self._table


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _halves(slab: Rect) -> tuple[Rect, Rect]:
    """Cut a rectangle across its longer side."""
    ny, nx = slab.shape
    if ny >= nx:
        middle = slab.y0 + ny // 2
        return Rect(slab.y0, middle, slab.x0, slab.x1), Rect(middle, slab.y1, slab.x0, slab.x1)
    middle = slab.x0 + nx // 2
    return Rect(slab.y0, slab.y1, slab.x0, middle), Rect(slab.y0, slab.y1, middle, slab.x1)


def _read(source: FrameSource, section: Rect) -> np.ndarray:
    """Return a section of a frame as it is stored, in the byte order of the machine: a reader's work, too."""
    raw = source.read(section)
    return np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("="))


def _read_ahead(sources: list[FrameSource], wide: Rect) -> Iterator[tuple[int, Rect, Future]]:
    """Yield (row, section, its pixels to come) of the frames that reach the rectangle, a few being read ahead."""
    sections = ((row, source.section_of(source.part_of(wide))) for row, source in enumerate(sources))
    waiting: deque[tuple[int, Rect, Future]] = deque()
    with ThreadPoolExecutor(_READERS) as readers:
        try:
            for row, section in sections:
                if section.empty:
                    continue
                waiting.append((row, section, readers.submit(_read, sources[row], section)))
                if len(waiting) > _SECTIONS_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for *_, pixels in waiting:
                pixels.cancel()
