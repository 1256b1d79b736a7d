"""The book of a run: what became of every frame and tile, how long each phase took, and who is told.

Pipelines write into it; the ledger, the report, the log and the listener read from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from zemosaic_events import (
    PERCENT,
    CancelToken,
    Emitter,
    FrameLeftOut,
    Message,
    PhaseProgress,
    TileFailed,
    tagged_logger,
)
from zemosaic_flat_frames import InstrumentFlat
from zemosaic_outputs import LedgerRow, ProductPaths, RunSummary
from zemosaic_reproject import Canvas
from zemosaic_types import FrameRecord, LeftOut, OutputError, RunResult, Tell, TileFailure

logger = tagged_logger("ZeMosaicWorker.run")

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _LogFile(logging.FileHandler):
    """A log that says once, when it is closed, that the disk did not take it: not for every line, on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Keep quiet; closing the file raises what is wrong."""


class RunBook:
    """Everything a run notes down.

    Parameters
    ----------
    paths : ProductPaths
    emit : Emitter
        Told of everything that happens.
    cancel : CancelToken
        Looked at between phases.

    Attributes
    ----------
    rows : dict
        `LedgerRow` of each planned frame by its path.
    left_out : list of LeftOut
    failed_tiles : list of TileFailure
    seconds : dict
        Wall time of each finished phase.
    flats : list of InstrumentFlat
        What became of the flat of each instrument.
    caveats : list of str
        Sentences that whoever uses the products must know; they are written into their headers.
    peak_memory_bytes : dict
        Of the ``"main"`` process and of the largest ``"worker"``.
    """

    def __init__(self, paths: ProductPaths, emit: Emitter, cancel: CancelToken) -> None:
        self.paths = paths
        self.emit = emit
        self.cancel = cancel
        self.rows: dict[str, LedgerRow] = {}
        self.left_out: list[LeftOut] = []
        self.failed_tiles: list[TileFailure] = []
        self.flats: list[InstrumentFlat] = []
        self.caveats: list[str] = []
        self.seconds: dict[str, float] = {}
        self.peak_memory_bytes = {"main": 0, "worker": 0}

    def plan(self, path: str, line: int | None) -> None:
        """Note a planned frame."""
        self.rows.setdefault(path, LedgerRow(path, line))

    def accept(self, record: FrameRecord) -> None:
        """Note what the header of a planned frame says."""
        row = self.rows.setdefault(record.path, LedgerRow(record.path, record.line))
        row.frame_id, row.exptime_s = record.frame_id, record.exptime_s
        header = record.header
        row.date_obs, row.filter, row.camera = header.date_obs, header.filter, header.camera_name
        row.placed_by = record.placed_by

    def leave_out(self, item: LeftOut, *, used: bool = False) -> None:
        """Note a frame that is not in the mosaic, or (`used`) not everywhere in it, and why."""
        log = logger.warning if item.missed else logger.info
        log("%s left out: %s", item.path, item.reason)
        self.left_out.append(item)
        if not item.harmless:  # a repeated row is no planned frame of its own
            row = self.rows.setdefault(item.path, LedgerRow(item.path, item.line))
            row.reason = "; ".join(filter(None, (row.reason, item.reason)))
            row.used = used
        self.emit(FrameLeftOut(item))

    def fail_tile(self, number: int, reason: str) -> None:
        """Note a tile that is missing from the mosaic."""
        logger.error("Tile %s failed with error: %s", number, reason)
        self.failed_tiles.append(TileFailure(number, reason))
        self.emit(TileFailed(number, reason))

    def count_samples(self, path: str, kept: int, low: int, high: int) -> None:
        """Add what became of a frame's samples in one tile."""
        row = self.rows[path]
        row.n_tiles += kept + low + high > 0
        row.n_samples += kept
        row.n_rejected_low += low
        row.n_rejected_high += high

    def forget_samples(self, path: str) -> None:
        """Take back what became of a frame's samples: nobody will see them."""
        row = self.rows[path]
        row.n_tiles = row.n_samples = row.n_rejected_low = row.n_rejected_high = 0

    def drop_unseen(self) -> None:
        """Leave out frames that gave no sample to any tile."""
        for row in list(self.rows.values()):
            if row.used and row.n_samples == 0:
                self.leave_out(LeftOut(row.path, "none of its pixels is in the mosaic", row.line))

    def note_memory(self, who: str, n_bytes: int) -> None:
        """Note the peak memory of a process; the largest counts."""
        self.peak_memory_bytes[who] = max(self.peak_memory_bytes[who], n_bytes)

    def first_reasons(self) -> str:
        """Return why the first frames were left out, for an error that ends the run."""
        return "; ".join(f"{item.path}: {item.reason}" for item in self.left_out[:3]) or "the plan is empty"

    def say(self, text: str, level: str = "INFO") -> None:
        """Tell the user a sentence."""
        logger.log(getattr(logging, level), "%s", text)
        self.emit(Message(text, level))

    def progress(self, phase: str, *, unit: str = "frame") -> Callable[[int, int], None]:
        """Return a function of (done, total) that tells the progress of a phase."""
        return lambda done, total: self.emit(PhaseProgress(phase, done, total, unit))

    def share(self, phase: str) -> Tell:
        """Return what tells the progress of a phase whose work is counted by its share, and ends it when asked to.

        The progress never goes back, whatever is told.
        """
        told = -1

        def tell(share: float) -> None:
            nonlocal told
            self.cancel.check()
            percent = int(100.0 * share)
            if percent > told:
                told = percent
                self.emit(PhaseProgress(phase, percent, 100, PERCENT))

        tell(0.0)
        return tell

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, all its repetitions together; a cancelled run does not begin it."""
        self.cancel.check()
        start = time.perf_counter()
        logger.info("phase %s", name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def log_file(self) -> Iterator[None]:
        """Keep a log of the run beside its products."""
        try:
            handler = _LogFile(self.paths.log, mode="w", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self.paths.log} cannot be written: {error.strerror}") from error
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        family = logging.getLogger("ZeMosaicWorker")
        level = family.level
        if level == logging.NOTSET:
            family.setLevel(logging.INFO)
        family.addHandler(handler)
        try:
            yield
        finally:
            family.removeHandler(handler)
            family.setLevel(level)
            try:
                handler.close()
            except OSError as error:
                raise OutputError(f"{self.paths.log} cannot be written: {error.strerror}") from error

    def summary(self, canvas: Canvas, n_channels: int, settings: dict, saturation: float) -> RunSummary:
        """Return what headers and the report say about the run."""
        rows = sorted(self.rows.values(), key=lambda row: row.frame_id or row.path)
        flats = tuple(asdict(flat) for flat in self.flats)
        return RunSummary(canvas, n_channels, settings, rows, saturation, flats, tuple(self.caveats))

    def result(self) -> RunResult:
        """Return what the run leaves behind."""
        rows = self.rows.values()
        return RunResult(
            mosaic_path=self.paths.mosaic,
            preview_path=self.paths.preview,
            n_used=sum(row.used for row in rows),
            n_planned=len(rows),
            left_out=tuple(self.left_out),
            failed_tiles=tuple(self.failed_tiles),
            seconds=dict(self.seconds),
        )
