"""Whole runs of ``zemosaic`` against each other: more workers, more frames, Classic. See README.md."""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench_helpers import BYTES_PER_MB, Usage, positive_int, print_environment, table
from bench_programs import (
    PACKAGES,
    Program,
    add_common_options,
    in_work_folder,
    print_usage,
    run_in_turn,
    zemosaic,
)
from bench_surveys import USUAL_FRAMES, find_survey, read_once, spec_of, survey_folder

MORE_FRAMES = 200
MATCH_PHASES = ("refine", "flat", "match")


def main() -> None:
    """Measure what was asked for."""
    arguments = _parser().parse_args()
    if arguments.scaling and arguments.workers == 1:
        raise SystemExit("--scaling compares with one worker: give --workers another number")
    if not (arguments.scaling or arguments.classic) and arguments.frames == arguments.more_frames:
        raise SystemExit("the two surveys have the same number of frames: give --more-frames another number")
    print_environment(PACKAGES)
    in_work_folder(arguments, _scaling if arguments.scaling else _classic if arguments.classic else _growth)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare runs of zemosaic grid with each other.")
    add_common_options(parser)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scaling", action="store_true", help="W workers against one, on the same survey")
    what.add_argument("--growth", action="store_true", help="more frames on more panels: the depth stays")
    what.add_argument("--growth-depth", action="store_true", help="more frames on the same panels: more depth")
    what.add_argument("--classic", action="store_true", help="Classic against Grid mode, on the same survey")
    add("--frames", type=positive_int, default=USUAL_FRAMES, metavar="N", help="frames (default: %(default)s)")
    more = "frames of the larger survey of --growth and --growth-depth (default: %(default)s)"
    add("--more-frames", type=positive_int, default=MORE_FRAMES, metavar="M", help=more)
    add("--color", action="store_true", help="GRBG frames")
    return parser


def _scaling(arguments: argparse.Namespace, work: Path) -> None:
    """Run one survey with one worker and with several; print the ratios of wall time and of CPU seconds.

    Beside them stands what independent runs at once gain, which share nothing but the machine.
    """
    spec = spec_of(arguments.frames, color=arguments.color)
    read_once(find_survey(work, spec))
    frames = survey_folder(work, spec) / "frames"
    counts = (arguments.workers, 1)
    programs, outputs = zip(
        *(zemosaic(frames, work, n, name=f"{n} worker{'s' * (n > 1)}") for n in counts), strict=True
    )
    many, one = _measured(list(programs), arguments.runs)
    names = f"{programs[0].name} over {programs[1].name}, {spec.count} frames"
    print(f"wall time of {names}: {many.wall_s / one.wall_s:.2f}")
    print(f"CPU seconds of {names}: {many.cpu_s / one.cpu_s:.2f}")
    alone = _one_worker_each(frames, work, arguments.workers)
    names = f"{arguments.workers} independent runs with 1 worker each at once"
    print(f"{names}, over as many in turn: {alone / one.wall_s:.2f}")
    spent = json.loads((outputs[1] / "report.json").read_text(encoding="utf-8"))["seconds"]
    match_s = sum(spent[phase] for phase in MATCH_PHASES)  # in one thread of the main process
    print(f"{', '.join(MATCH_PHASES)} of all CPU seconds of {programs[1].name}: {match_s / one.cpu_s:.1%}")


def _one_worker_each(frames: Path, work: Path, n_runs: int) -> float:
    """Return the wall time of so many independent runs at once, over their number."""
    programs = [zemosaic(frames, work, 1, name=f"run {k}")[0] for k in range(1, n_runs + 1)]
    print(f"{n_runs} independent runs at once ...", flush=True)
    with ThreadPoolExecutor(n_runs) as threads:
        begun = time.perf_counter()
        for run in [threads.submit(program.run) for program in programs]:
            run.result()
        return (time.perf_counter() - begun) / n_runs


def _classic(arguments: argparse.Namespace, work: Path) -> None:
    """Run one survey in Classic and in Grid mode; print the ratios of wall time and of CPU seconds."""
    spec = spec_of(arguments.frames, color=arguments.color)
    read_once(find_survey(work, spec))
    frames = survey_folder(work, spec) / "frames"
    names = ("classic", "grid")
    programs = [zemosaic(frames, work, arguments.workers, name=name, pipeline=name)[0] for name in names]
    classic, grid = _measured(programs, arguments.runs)
    print(f"wall time of Classic over Grid mode, {spec.count} frames: {classic.wall_s / grid.wall_s:.2f}")
    print(f"CPU seconds of Classic over Grid mode, {spec.count} frames: {classic.cpu_s / grid.cpu_s:.2f}")


def _growth(arguments: argparse.Namespace, work: Path) -> None:
    """Run a survey and a larger one; print CPU seconds a frame and peak memory, and how much they grow."""
    small = spec_of(arguments.frames, color=arguments.color)
    panels = small.panels if arguments.growth_depth else None
    large = spec_of(arguments.more_frames, panels=panels, color=arguments.color)
    programs = []
    for spec in (large, small):
        read_once(find_survey(work, spec))
        frames = survey_folder(work, spec) / "frames"
        programs.append(zemosaic(frames, work, arguments.workers, name=f"{spec.count} frames")[0])
    usages = _measured(programs, arguments.runs)
    a_frame = [usage.cpu_s / spec.count for usage, spec in zip(usages, (large, small), strict=True)]
    rows = [
        (program.name, f"{seconds:.3f}", f"{usage.peak_bytes / BYTES_PER_MB:.0f}")
        for program, seconds, usage in zip(programs, a_frame, usages, strict=True)
    ]
    print(table(("survey", "CPU s a frame", "peak MB"), rows))
    names = f"{programs[0].name} over {programs[1].name}"
    print(f"CPU seconds a frame, {names}, less 1: {a_frame[0] / a_frame[1] - 1.0:+.1%}")
    print(f"peak memory, {names}: {usages[0].peak_bytes / usages[1].peak_bytes:.2f}")


def _measured(programs: list[Program], runs: int) -> list[Usage]:
    """Run programs in turn after an untimed run of the last; print the table and return their medians."""
    for program in programs:
        program.show()
    print("\nOne untimed run: after it, compiled code is cached. The frames are in the page cache.")
    programs[-1].run()
    medians = print_usage(run_in_turn(programs, runs))
    return [medians[program.name] for program in programs]


if __name__ == "__main__":
    main()
