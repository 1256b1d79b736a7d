"""Programs under measurement: their commands, runs in turn, and the table of what they used."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_helpers import BYTES_PER_MB, Usage, added_usage, measure, median_usage, positive_int, table

PACKAGES = ("zemosaic", "numpy", "numba", "astropy", "reproject", "scipy")


@dataclass(frozen=True)
class Program:
    """What is measured as one: commands that run one after the other, each in the folder."""

    name: str
    commands: tuple[Sequence[str | Path], ...]
    folder: Path

    def run(self) -> Usage:
        """Run the commands once, with nothing of ZeMosaic's configuration in the environment.

        Modules are compiled once and kept, as they are where ZeMosaic is installed.
        """
        kept = os.environ.items()
        env = {k: v for k, v in kept if not k.startswith("ZEMOSAIC_") and k != "PYTHONDONTWRITEBYTECODE"}
        return added_usage([measure(command, folder=self.folder, env=env) for command in self.commands])

    def show(self) -> None:
        """Print the full command lines."""
        for command in self.commands:
            print(f"{self.name}: {shlex.join(map(str, command))}")


def zemosaic(
    frames: Path, work: Path, workers: int, *, name: str = "zemosaic", pipeline: str = "grid", gpu: bool = False
) -> tuple[Program, Path]:
    """Return a pipeline of ``zemosaic`` with all other options at their defaults, and where its mosaic goes."""
    folder = work / name.replace(" ", "_")
    output = folder / "mosaic"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "defaults.json"  # not the user's own configuration
    config.write_text("{}\n", encoding="utf-8")
    command = [sys.executable, "-m", "zemosaic_cli", pipeline, frames, output, "--workers", str(workers)]
    command += ["--overwrite", "--quiet", "--config", config, *(["--gpu", "on"] if gpu else [])]
    return Program(name, (command,), folder), output


def run_in_turn(programs: Sequence[Program], runs: int) -> dict[str, list[Usage]]:
    """Run every program once, then every one a second time, and so on; return what each run used."""
    found: dict[str, list[Usage]] = {program.name: [] for program in programs}
    for number in range(1, runs + 1):
        for program in programs:
            print(f"run {number} of {runs}: {program.name} ...", flush=True)
            found[program.name].append(program.run())
    print()
    return found


def print_usage(found: dict[str, list[Usage]]) -> dict[str, Usage]:
    """Print every run, the medians and, of two programs, their ratio; return the medians."""
    header = ("run", "CPU s", "user s", "system s", "wall s", "peak MB")
    runs = [(f"{name} {k}", usage) for name, usages in found.items() for k, usage in enumerate(usages, 1)]
    medians = {name: median_usage(usages) for name, usages in found.items()}
    runs += [(f"{name}, median", usage) for name, usage in medians.items()]
    rows = [(label, *_figures(usage)) for label, usage in runs]
    if len(medians) == 2:
        (first, a), (second, b) = medians.items()
        ratios = [a.cpu_s / b.cpu_s, a.user_s / b.user_s, a.system_s / b.system_s, a.wall_s / b.wall_s]
        ratios.append(a.peak_bytes / b.peak_bytes)
        rows.append((f"{first} / {second}", *(f"{ratio:.2f}" for ratio in ratios)))
    print(table(header, rows))
    return medians


def _figures(usage: Usage) -> list[str]:
    times = (usage.cpu_s, usage.user_s, usage.system_s, usage.wall_s)
    return [*(f"{seconds:.2f}" for seconds in times), f"{usage.peak_bytes / BYTES_PER_MB:.0f}"]


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark of whole runs has."""
    add = parser.add_argument
    add("--work", type=Path, help="folder for surveys and mosaics, kept for the next time (default: temporary)")
    add("--runs", type=positive_int, default=2, metavar="N", help="measured runs of each (default: %(default)s)")
    add("--workers", type=positive_int, default=2, metavar="W", help="processes or threads (default: %(default)s)")


def in_work_folder(arguments: argparse.Namespace, task: Callable[[argparse.Namespace, Path], None]) -> None:
    """Do the task in the folder of ``--work``, or in one that is gone afterwards."""
    if arguments.work is not None:
        task(arguments, arguments.work.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="zemosaic_bench_") as work:
        task(arguments, Path(work).resolve())
