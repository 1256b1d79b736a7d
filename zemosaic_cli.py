"""The ``zemosaic`` command."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zemosaic_config import (
    Config,
    config_path,
    find_option,
    load_file,
    parse_assignment,
    reference_page,
    resolve,
    set_in_file,
)
from zemosaic_events import CancelToken, Message
from zemosaic_types import (
    ConfigError,
    OutputError,
    PlanError,
    ProductExistsError,
    RunCancelled,
    RunResult,
    ZeMosaicError,
)

if TYPE_CHECKING:
    from grid_mode import GridSettings

_POLL_S = 0.1

COMPLETE, ERROR, UNUSABLE, WITH_FAILURES, CANCELLED = 0, 1, 2, 3, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status.

    0 complete, 2 bad usage, configuration or no usable input, 3 finished but some frames or tiles failed,
    130 cancelled, 1 anything else.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except RunCancelled:
        print("cancelled", file=sys.stderr)
        return CANCELLED
    except (ConfigError, PlanError, ProductExistsError) as error:
        print(f"zemosaic: {error}", file=sys.stderr)
        return UNUSABLE
    except ZeMosaicError as error:
        print(f"zemosaic: {error}", file=sys.stderr)
        return ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zemosaic", description="One large, seamless mosaic from many FITS exposures."
    )
    parser.add_argument("--version", action="version", version=f"ZeMosaic {metadata.version('zemosaic')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_plan(commands)
    _add_grid(commands)
    _add_classic(commands)
    _add_any(commands)
    _add_report(commands)
    _add_config(commands)
    _add_doctor(commands)
    _add_gui(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser("demo", help="make a synthetic survey and its mosaic, and compare with the truth")
    demo.add_argument(
        "--output", type=Path, default=Path("zemosaic_demo"), metavar="FOLDER", help="default: %(default)s"
    )
    _add_run_options(demo)
    demo.set_defaults(run=_demo)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser("plan", help="scan a folder of frames and write its stack_plan.csv")
    plan.add_argument("folder", type=Path, metavar="FOLDER")
    plan.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default: into the folder)")
    plan.add_argument("--overwrite", action="store_true", help="replace an existing plan")
    plan.set_defaults(run=_plan)


def _add_grid(commands: argparse._SubParsersAction) -> None:
    grid = commands.add_parser("grid", help="make a mosaic in Grid mode")
    _add_folders(grid)
    grid.set_defaults(run=_grid)


def _add_classic(commands: argparse._SubParsersAction) -> None:
    classic = commands.add_parser("classic", help="make a mosaic of master tiles: groups of frames, coadded")
    _add_folders(classic)
    classic.set_defaults(run=_classic)


def _add_any(commands: argparse._SubParsersAction) -> None:
    anything = commands.add_parser(
        "run",
        help="make a mosaic in the mode that suits: Grid with a stack_plan.csv or grid_mode_enabled, else Classic",
    )
    _add_folders(anything)
    anything.set_defaults(run=_run_apart)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="folder of frames, with or without stack_plan.csv"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the products")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier mosaic in OUTPUT")
    parser.add_argument(
        "--drop-suggested",
        action="store_true",
        help="leave out the frames that the ledger of the earlier run in OUTPUT suggests (see report)",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="FRAME",
        help="leave a frame out, named by its path below INPUT as in ledger.csv; repeatable",
    )
    _add_run_options(parser)


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="write report.html: maps, quality of frames, culprits")
    report.add_argument("output", type=Path, metavar="OUTPUT", help="folder of a finished run")
    report.set_defaults(run=_report)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes; 0 = automatic")
    parser.add_argument("--gpu", choices=("auto", "on", "off"), default="auto", help="auto: as configured")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: the user's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="KEY=VALUE",
        help="any configuration key; repeatable",
    )
    parser.add_argument("--quiet", action="store_true", help="show warnings and results only")
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="of zemosaic.log")


def _add_config(commands: argparse._SubParsersAction) -> None:
    config = commands.add_parser("config", help="show or change the configuration")
    verbs = config.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("path", help="print the path of the configuration file").set_defaults(run=_config_path)
    show = verbs.add_parser("show", help="print the values in force and where each comes from")
    show.add_argument("key", nargs="?", metavar="KEY")
    show.set_defaults(run=_config_show)
    change = verbs.add_parser("set", help="write a value to the configuration file")
    change.add_argument("assignment", metavar="KEY=VALUE")
    change.set_defaults(run=_config_set)
    verbs.add_parser("doc", help="print the reference page of all keys").set_defaults(run=_config_doc)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser("doctor", help="say what ZeMosaic finds on this machine, and what is missing")
    doctor.set_defaults(run=_doctor)


def _add_gui(commands: argparse._SubParsersAction) -> None:
    gui = commands.add_parser("gui", help="open the desktop program")
    gui.set_defaults(run=_gui)


def _configured(arguments: argparse.Namespace) -> Config:
    """Return the configuration of this run: command line, environment, file, defaults; print what is odd in it."""
    overrides: dict[str, object] = dict(parse_assignment(text) for text in arguments.assignments)
    if arguments.workers is not None:
        overrides["grid_workers"] = arguments.workers
    if arguments.gpu != "auto":
        overrides["use_gpu_grid"] = arguments.gpu
    if arguments.log_level is not None:
        overrides["logging_level"] = arguments.log_level
    config = resolve(load_file(arguments.config), os.environ, overrides)
    for note in config.notes:
        print(f"zemosaic: {note}", file=sys.stderr)
    return config


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[CancelToken]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop; a second one ends the program at once."""
    cancel = CancelToken()

    def stop(number: int, _frame: object) -> None:
        cancel.cancel()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(arguments: argparse.Namespace, start: Callable, name: str = "grid") -> object:
    """Run `start(pipeline, settings, listener=, cancel=)` as the arguments ask: its function and its settings."""
    config = _configured(arguments)
    logging.getLogger("ZeMosaicWorker").setLevel(config["logging_level"])
    logging.getLogger("ZeMosaicWorker").propagate = False
    with _cancelled_by_ctrl_c() as cancel:
        from parallel_utils import loading_libraries, prepare_workers

        # The server of the workers loads the numerical libraries while this process does.
        prepare_workers(["zemosaic_worker_start"])
        with loading_libraries():
            from zemosaic_terminal import TerminalReporter
            from zemosaic_worker import load_pipeline

            pipeline, kind = load_pipeline(name)  # only commands that compute load them

        settings = kind.from_config(
            config,
            overwrite=getattr(arguments, "overwrite", True),
            drop_suggested=getattr(arguments, "drop_suggested", False),
            excluded=tuple(getattr(arguments, "exclude", ())),
        )
        return start(pipeline, settings, listener=TerminalReporter(quiet=arguments.quiet), cancel=cancel)


def _grid(arguments: argparse.Namespace) -> int:
    return _run_here(arguments, "grid")


def _classic(arguments: argparse.Namespace) -> int:
    return _run_here(arguments, "classic")


def _run_here(arguments: argparse.Namespace, name: str) -> int:
    """Run a pipeline in this process."""

    def start(pipeline: Callable, settings: object, **talk: Any) -> RunResult:
        return pipeline(arguments.input, arguments.output, settings, **talk)

    return _tell(_run(arguments, start, name))


def _run_apart(arguments: argparse.Namespace) -> int:
    """Run the pipeline that suits the input in a process of its own."""
    from zemosaic_terminal import TerminalReporter
    from zemosaic_worker import RunRequest, choose_pipeline, start_run, title_of

    config = _configured(arguments)
    name, reason = choose_pipeline(arguments.input, config)
    reporter = TerminalReporter(quiet=arguments.quiet)
    reporter(Message(f"{title_of(name)}: {reason}"))
    folders = arguments.input, arguments.output
    request = RunRequest(
        name,
        *folders,
        config,
        overwrite=arguments.overwrite,
        drop_suggested=arguments.drop_suggested,
        excluded=tuple(arguments.exclude),
    )
    with _cancelled_by_ctrl_c() as cancel, start_run(request, reporter) as run:
        while run.wait(_POLL_S) is None:
            if cancel.cancelled:
                run.cancel()
        return _tell(run.result())


def _demo(arguments: argparse.Namespace) -> int:
    def start(_: Callable, settings: GridSettings, **talk: Any) -> tuple[RunResult, str]:
        from zemosaic_demo import run_demo
        from zemosaic_truth import format_score

        result, score = run_demo(arguments.output, settings, **talk)
        return result, format_score(score)

    result, distance = _run(arguments, start)
    status = _tell(result)
    print(distance)
    return status


def _tell(result: RunResult) -> int:
    """Print what a run left behind; return the exit status."""
    print(f"mosaic:  {result.mosaic_path}")
    print(f"preview: {result.preview_path}")
    print(f"frames:  {result.n_used} of {result.n_planned} used")
    for item in result.left_out:
        print(f"  left out: {item.path}: {item.reason}")
    for failure in result.failed_tiles:
        print(f"  tile {failure.tile} failed, its part of the sky is missing: {failure.reason}")
    return COMPLETE if result.complete else WITH_FAILURES


def _report(arguments: argparse.Namespace) -> int:
    from zemosaic_report import write_page

    print("\n".join(write_page(arguments.output)))
    return COMPLETE


def _plan(arguments: argparse.Namespace) -> int:
    from zemosaic_plan import plan_from_folder, write_plan
    from zemosaic_plan_table import PLAN_NAME

    path = arguments.output or arguments.folder / PLAN_NAME
    if path.exists() and not arguments.overwrite:
        raise ProductExistsError(f"{path} exists already; ask for --overwrite, or name another file with --output")
    rows, left_out = plan_from_folder(arguments.folder)
    write_plan(path, rows)
    print(f"{path}: {len(rows)} frames")
    for item in left_out:
        print(f"  left out: {item.path}: {item.reason}")
    return COMPLETE if all(item.harmless for item in left_out) else WITH_FAILURES


def _config_path(_arguments: argparse.Namespace) -> int:
    print(config_path())
    return COMPLETE


def _config_show(arguments: argparse.Namespace) -> int:
    config = resolve(load_file(), os.environ, {})
    keys = [find_option(arguments.key).key] if arguments.key else list(config)
    for key in keys:
        print(f"{key} = {config[key]!r}  ({config.source(key)})")
    for note in config.notes:
        print(f"# {note}")
    return COMPLETE


def _config_set(arguments: argparse.Namespace) -> int:
    key, text = parse_assignment(arguments.assignment)
    path = config_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be made: {error.strerror}") from error
    set_in_file(path, key, text)
    print(f"{path}: {key} = {text}")
    return COMPLETE


def _config_doc(_arguments: argparse.Namespace) -> int:
    print(reference_page(), end="")
    return COMPLETE


def _doctor(_arguments: argparse.Namespace) -> int:
    from zemosaic_doctor import can_run, examine, format_findings

    findings = examine()
    print(format_findings(findings))
    return COMPLETE if can_run(findings) else ERROR


def _gui(_arguments: argparse.Namespace) -> int:
    from zemosaic_gui_qt import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
