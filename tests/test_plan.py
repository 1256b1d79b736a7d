"""The plan: reading and writing ``stack_plan.csv``, scanning folders, and the records made of rows."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_events import CancelToken
from zemosaic_plan import (
    ALIASES,
    NO_WCS,
    PLAN_COLUMNS,
    frame_id,
    load_frames,
    plan_from_folder,
    read_plan,
    scan_folder,
    write_plan,
)
from zemosaic_plan_table import PLAN_NAME
from zemosaic_types import LeftOut, OutputError, PlanError, PlanRow, RunCancelled

LINUX_ONLY = pytest.mark.skipif(os.name == "nt", reason="the name or link is not allowed on Windows")


def touch(path: Path) -> Path:
    """Make a file that a plan may name; its content is not looked at by `read_plan`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def plan_file(folder: Path, content: str | bytes) -> Path:
    path = folder / PLAN_NAME
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def celestial_cards(ra=192.7, dec=41.1, scale=-6.6e-4) -> dict:
    return {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": 8.5,
        "CRPIX2": 6.5,
        "CD1_1": scale,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": -scale,
        "RADESYS": "ICRS",
    }


def write_frame(path: Path, *, wcs: bool = True, **cards) -> Path:
    """Write a real FITS exposure of 12 x 16 px; a card of None is left away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = fits.Header()
    common = {"EXPTIME": 10.0, "DATE-OBS": "2025-03-27T01:20:32.955", "FILTER": "IRCUT", "BAYERPAT": "GRBG"}
    common |= {"INSTRUME": "Seestar S50", "TELESCOP": "S50_1a2b3c4d"}
    cards = {key.replace("_OBS", "-OBS"): value for key, value in cards.items()}
    for key, value in (common | (celestial_cards() if wcs else {}) | cards).items():
        if value is not None:
            header[key] = value
    fits.writeto(path, np.arange(192, dtype=np.uint16).reshape(12, 16), header)
    return path


@pytest.fixture
def frame(tmp_path):
    return touch(tmp_path / "a.fit")


def only_row(folder: Path, content: str | bytes) -> PlanRow:
    rows, left_out = read_plan(plan_file(folder, content))
    assert left_out == []
    assert len(rows) == 1
    return rows[0]


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# ---- columns and delimiters ------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_producer():
    assert ",".join(PLAN_COLUMNS) == (
        "order,batch_id,mount,bortle,telescope,session_date,filter,exposure,file_path,ra,dec"
    )


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("alias", ALIASES["file_path"])
def test_every_alias_of_the_path_is_found_in_any_case(frame, alias, case):
    row = only_row(frame.parent, f"ignored,{case(alias)}\nx,a.fit\n")
    assert row == PlanRow(line=2, path=frame)


ALIAS_VALUES = [
    *((alias, "exposure_s", "12.5", 12.5) for alias in ("exposure", "exp", "exptime", "exposure_s")),
    *((alias, "bortle", "Unknown", "Unknown") for alias in ("bortle", "bortle_class", "sky_quality")),
    *((alias, "filter", "LP", "LP") for alias in ("filter", "band", "channel")),
    *((alias, "batch_id", "n 1", "n 1") for alias in ("batch_id", "batch", "session", "night")),
    *((alias, "order", "7", 7) for alias in ("order", "seq", "sequence", "index")),
    *((alias, "mount", "eq", "EQ") for alias in ("mount", "eqmode", "mount_mode")),
    ("telescope", "telescope", "Seestar S50", "Seestar S50"),
    ("session_date", "session_date", "2025-03-26", "2025-03-26"),
    ("ra", "ra_deg", "192.75", 192.75),
    ("dec", "dec_deg", "-41.5", -41.5),
]


@pytest.mark.parametrize(("alias", "field", "text", "value"), ALIAS_VALUES)
def test_every_alias_of_a_column_is_found(frame, alias, field, text, value):
    row = only_row(frame.parent, f"file_path,{alias.upper()}\na.fit,{text}\n")
    assert getattr(row, field) == value


def test_the_first_alias_that_is_not_empty_wins_whatever_its_place(tmp_path):
    a, b = touch(tmp_path / "a.fit"), touch(tmp_path / "b.fit")
    plan = plan_file(tmp_path, "raw,exptime,file_path,exposure\nb.fit,20,a.fit,10\nb.fit,20,,\n")
    rows, left_out = read_plan(plan)
    assert [(row.path, row.exposure_s) for row in rows] == [(a, 10.0), (b, 20.0)]
    assert left_out == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t", " "])
def test_every_delimiter_is_recognised_with_and_without_quotes(tmp_path, delimiter, quote, end):
    frame = touch(tmp_path / "night 1" / "a.fit") if quote else touch(tmp_path / "a.fit")
    cells = [["order", "filter", "file_path", "exposure"], ["3", "LP", f"{frame.relative_to(tmp_path)}", "2.5"]]
    text = end.join(delimiter.join(quote + cell + quote for cell in row) for row in cells)
    assert only_row(tmp_path, text) == PlanRow(line=2, path=frame, filter="LP", order=3, exposure_s=2.5)


def test_a_delimiter_inside_a_quoted_header_does_not_decide(frame):
    row = only_row(frame.parent, '"a,b,c,d,e";file_path;"x,y"\n1;a.fit;2\n')
    assert row.path == frame


def test_columns_padded_with_spaces_are_read(frame):
    row = only_row(frame.parent, "order   file_path    exposure\n4       a.fit        30\n")
    assert (row.order, row.path, row.exposure_s) == (4, frame, 30.0)


def test_an_empty_cell_between_two_spaces_is_kept_where_the_row_is_whole(frame):
    row = only_row(frame.parent, "order exposure file_path filter\n4  a.fit LP\n")
    assert (row.order, row.exposure_s, row.path, row.filter) == (4, None, frame, "LP")


def test_a_single_column_keeps_the_spaces_of_its_paths(tmp_path):
    frame = touch(tmp_path / "M 94 east" / "light 1.fit")
    assert only_row(tmp_path, "File Path\nM 94 east/light 1.fit\n").path == frame


def test_blanks_and_quotes_around_cells_are_stripped(frame):
    row = only_row(frame.parent, "\"file_path\" , 'exposure'\n 'a.fit' ,  \"10\" \n")
    assert (row.path, row.exposure_s) == (frame, 10.0)


def test_blank_lines_comments_and_rows_of_bare_delimiters_are_ignored(frame):
    text = "# made by hand\n\nfile_path,exposure\n\n  # a note, with a comma\n,,\na.fit,10\n , \n"
    assert only_row(frame.parent, text).line == 7


def test_a_quoted_cell_may_hold_a_line_break_and_lines_are_still_counted_right(tmp_path):
    touch(tmp_path / "a.fit"), touch(tmp_path / "b.fit")
    rows, _ = read_plan(plan_file(tmp_path, 'note,file_path\n"two\nlines",a.fit\nx,b.fit\n'))
    assert [(row.line, row.path.name) for row in rows] == [(2, "a.fit"), (4, "b.fit")]


def test_a_quote_that_is_never_closed_spoils_its_own_row_only(tmp_path):
    for name in "abcd":
        touch(tmp_path / f"{name}.fit")
    text = 'file_path,filter\na.fit,"LP\nb.fit,IR\n"c.fit,IR\nd.fit,IR\n'
    rows, left_out = read_plan(plan_file(tmp_path, text))
    assert [row.path.name for row in rows] == ["a.fit", "b.fit", "d.fit"]
    assert [item.line for item in left_out] == [4]


# ---- encodings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_every_encoding_of_the_issue_is_read(tmp_path, encoding):
    frame = touch(tmp_path / "été" / "nébuleuse.fit")
    text = "file_path,filter\nété/nébuleuse.fit,Hα\n" if encoding != "cp1252" else "file_path\nété/nébuleuse.fit\n"
    assert only_row(tmp_path, text.encode(encoding)).path == frame


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_both_byte_orders_of_utf_16_are_read(frame, encoding):
    assert only_row(frame.parent, "\ufefffile_path\na.fit\n".encode(encoding)).path == frame


def test_a_line_that_is_not_utf_8_leaves_the_others_as_they_are(tmp_path):
    frames = [touch(tmp_path / "é1.fit"), touch(tmp_path / "é2.fit")]
    rows, _ = read_plan(plan_file(tmp_path, b"file_path\n" + "é1.fit\n".encode() + "é2.fit\n".encode("cp1252")))
    assert [row.path for row in rows] == frames


# ---- values ----------------------------------------------------------------------------------------------

MOUNTS = [
    *((text, "EQ") for text in ("EQ", "equatorial", "Gem", "GERMAN")),
    *((text, "ALTZ") for text in ("ALTZ", "Alt-Az", "ALT/AZ", "ALT-AZM", "AltAz", "altitude-azimuth")),
    *((text, "") for text in ("Unknown", "fork", "")),
]


@pytest.mark.parametrize(("text", "mount"), MOUNTS)
def test_mounts_are_normalised(frame, text, mount):
    assert only_row(frame.parent, f"file_path,mount\na.fit,{text}\n").mount == mount


BAD_NUMBERS = [
    *(("exposure", text) for text in ("abc", "0", "-10", "nan", "inf", "1e999", "10,5", "10 s")),
    *(("order", text) for text in ("first", "1.5", "inf")),
    *(("ra", text) for text in ("361", "-1", "north")),
    *(("dec", text) for text in ("90.1", "-91", "nan")),
]


@pytest.mark.parametrize(("column", "text"), BAD_NUMBERS)
def test_a_bad_number_is_reported_and_the_row_stays(frame, caplog, column, text):
    row = only_row(frame.parent, f'file_path,{column}\n\na.fit,"{text}"\n')
    assert row == PlanRow(line=3, path=frame)
    (message,) = warnings_of(caplog)
    assert message.startswith("[GRID] line 3 ")
    assert column in message
    assert repr(text) in message
    assert {record.name for record in caplog.records} == {"ZeMosaicWorker.plan"}


def test_an_empty_number_is_not_reported(frame, caplog):
    assert only_row(frame.parent, "file_path,exposure,order\na.fit,,\n").exposure_s is None
    assert warnings_of(caplog) == []


def test_a_semicolon_file_may_have_decimal_commas(frame):
    row = only_row(frame.parent, "file_path;exposure;ra;dec\na.fit;10,5;192,75;41.25\n")
    assert (row.exposure_s, row.ra_deg, row.dec_deg) == (10.5, 192.75, 41.25)


def test_a_row_shorter_or_longer_than_the_header_is_read(tmp_path):
    touch(tmp_path / "a.fit"), touch(tmp_path / "b.fit")
    rows, _ = read_plan(plan_file(tmp_path, "file_path,exposure\na.fit\nb.fit,10,extra,cells\n"))
    assert [row.exposure_s for row in rows] == [None, 10.0]


# ---- files without a header ------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_a_file_without_a_header_is_read_by_its_column_of_fits_paths(tmp_path, caplog, delimiter):
    caplog.set_level(logging.INFO)
    frames = [touch(tmp_path / "M 94" / "1.FITS"), touch(tmp_path / "M 94" / "2.fit.fz")]
    rows, _ = read_plan(plan_file(tmp_path, "".join(f"x{delimiter}M 94/{f.name}{delimiter}10\n" for f in frames)))
    assert rows == [PlanRow(line=1, path=frames[0]), PlanRow(line=2, path=frames[1])]
    assert f"[GRID] {PLAN_NAME} has no header; column 2 is read as the path" in caplog.messages


def test_a_bare_list_of_paths_is_a_plan(tmp_path):
    frames = [touch(tmp_path / f"light {k}.fit") for k in range(3)]
    rows, _ = read_plan(plan_file(tmp_path, "\n".join(f.name for f in frames)))
    assert [row.path for row in rows] == frames


def test_a_header_with_a_known_name_is_a_header_though_a_name_looks_like_a_file(frame):
    with pytest.raises(PlanError, match="no column with file paths"):
        read_plan(plan_file(frame.parent, "exposure,dark.fit\n10,a.fit\n"))


# ---- paths -----------------------------------------------------------------------------------------------


def test_relative_paths_count_from_the_folder_of_the_plan(tmp_path, monkeypatch):
    frame = touch(tmp_path / "plan" / "sub" / "a.fit")
    plan_file(tmp_path / "plan", "file_path\nsub/../sub/a.fit\n")
    monkeypatch.chdir(tmp_path)
    rows, _ = read_plan(Path("plan") / PLAN_NAME)
    assert [row.path for row in rows] == [frame.resolve()]


def test_absolute_paths_are_taken_as_they_are(tmp_path):
    frame = touch(tmp_path / "elsewhere" / "a.fit")
    (tmp_path / "plan").mkdir()
    assert only_row(tmp_path / "plan", f"file_path\n{frame}\n").path == frame


WINDOWS_PATHS = [
    (r"D:\Astro\M94\sub\a.fit", "Astro/M94/sub/a.fit"),
    (r"D:\Astro\M94\sub\a.fit", "M94/sub/a.fit"),
    (r"D:\Astro\M94\sub\a.fit", "sub/a.fit"),
    (r"D:\Astro\M94\sub\a.fit", "a.fit"),
    ("D:/Astro/M94/sub/a.fit", "sub/a.fit"),
    ("D:a.fit", "a.fit"),
    (r"\\nas\share\M94\a.fit", "M94/a.fit"),
    (r"sub\a.fit", "sub/a.fit"),
    (r".\sub\a.fit", "a.fit"),
]


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize(("text", "place"), WINDOWS_PATHS)
def test_windows_paths_are_found_by_their_tail_and_then_by_their_name(tmp_path, text, place, quote):
    frame = touch(tmp_path / place)
    assert only_row(tmp_path, f"file_path,exposure\n{quote}{text}{quote},10\n").path == frame


def test_the_longest_tail_of_a_windows_path_wins(tmp_path):
    near, far = touch(tmp_path / "a.fit"), touch(tmp_path / "sub" / "a.fit")
    assert near != far
    assert only_row(tmp_path, "file_path\nC:\\x\\sub\\a.fit\n").path == far


@LINUX_ONLY
def test_a_name_with_backslashes_is_first_taken_as_it_is(tmp_path):
    exact = touch(tmp_path / r"C:\x\a.fit")
    touch(tmp_path / "a.fit")
    assert only_row(tmp_path, "file_path\nC:\\x\\a.fit\n").path == exact


def test_a_path_of_another_unix_machine_is_not_guessed(frame):
    touch(frame.parent / "b.fit")
    rows, left_out = read_plan(plan_file(frame.parent, "file_path\n/nowhere/else/a.fit\nb.fit\n"))
    assert [row.path.name for row in rows] == ["b.fit"]
    assert left_out[0].reason == "file not found: /nowhere/else/a.fit"


ODD_PATHS = [
    "%s%d%(x)s.fit",
    "C:\\",
    "\\",
    "\\\\",
    "\\\\?\\C:\\a",
    "C:",
    "a\0.fit",
    "x" * 5000,
    "~",
    "..",
    "%%",
    "{}",
]


@pytest.mark.parametrize("text", ODD_PATHS)
def test_odd_paths_are_left_out_and_nothing_crashes(frame, text):
    rows, left_out = read_plan(plan_file(frame.parent, f"file_path,filter\n{text},x\na.fit,x\n"))
    assert [row.path for row in rows] == [frame]
    assert [(item.path, item.reason, item.line) for item in left_out] == [(text, f"file not found: {text}", 2)]


def test_a_row_without_a_path_is_left_out(frame):
    rows, left_out = read_plan(plan_file(frame.parent, "exposure,file_path\n10,\n10,a.fit\n10\n"))
    assert len(rows) == 1
    assert [(item.reason, item.line) for item in left_out] == [("no file path", 2), ("no file path", 4)]
    assert all(item.path for item in left_out)


def test_a_file_named_again_counts_once(frame):
    text = f"file_path,exposure\na.fit,10\n./a.fit,20\n{frame},30\nC:\\x\\a.fit,40\n"
    rows, left_out = read_plan(plan_file(frame.parent, text))
    assert [(row.line, row.exposure_s) for row in rows] == [(2, 10.0)]
    assert [(item.line, item.reason) for item in left_out] == [(n, "duplicate of line 2") for n in (3, 4, 5)]
    assert all(item.harmless for item in left_out)


@LINUX_ONLY
def test_a_link_to_a_file_named_before_is_a_duplicate(frame):
    (frame.parent / "link.fit").symlink_to(frame)
    rows, left_out = read_plan(plan_file(frame.parent, "file_path\nlink.fit\na.fit\n"))
    assert [row.path.name for row in rows] == ["link.fit"]
    assert [item.reason for item in left_out] == ["duplicate of line 2"]


# ---- plans that cannot be used ---------------------------------------------------------------------------

NEEDED = "one of file_path, filepath, file, path, filename, fits, raw is needed"
USELESS = [
    ("", "{plan} is empty"),
    ("\n\n , ,\n# nothing\n", "{plan} is empty"),
    ("\ufeff", "{plan} is empty"),
    ("order,file_path\n", "{plan} has a header but no rows"),
    ("order,file_path\n\n,,\n#a.fit\n", "{plan} has a header but no rows"),
    (
        "order,exposure\n1,a.fit\n",
        "{plan} has no column with file paths: its columns are 'order, exposure'; " + NEEDED,
    ),
    ("hello\nworld\n", "{plan} has no column with file paths: its columns are 'hello'; " + NEEDED),
    ("file_path\nb.fit\n", "{plan} has no usable row: line 2: file not found: b.fit"),
    (
        "x,file_path\n1,\n1,b.fit\n",
        "{plan} has no usable row: line 2: no file path; line 3: file not found: b.fit",
    ),
    (
        "file_path\nb\nc\nd\ne\nf\n",
        "{plan} has no usable row: line 2: file not found: b; line 3: file not found: c; "
        "line 4: file not found: d; and 2 more",
    ),
    ("b.fit\n", "{plan} has no usable row: line 1: file not found: b.fit"),
]


@pytest.mark.parametrize(("text", "reason"), USELESS)
def test_a_plan_that_gives_nothing_says_why(frame, text, reason):
    plan = plan_file(frame.parent, text)
    with pytest.raises(PlanError) as caught:
        read_plan(plan)
    assert str(caught.value) == reason.format(plan=plan)


def test_a_plan_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(PlanError, match=r"stack_plan\.csv cannot be read: "):
        read_plan(tmp_path / PLAN_NAME)
    (tmp_path / PLAN_NAME).mkdir()
    with pytest.raises(PlanError, match=r"stack_plan\.csv cannot be read: "):
        read_plan(tmp_path / PLAN_NAME)


def test_random_text_raises_nothing_but_plan_errors(tmp_path):
    rng = np.random.default_rng(20250327)
    frames = {touch(tmp_path / "a.fit"), touch(tmp_path / "sub" / "b.fit")}
    words = [
        "file_path",
        "order",
        "exposure",
        "ra",
        "a.fit",
        "sub/b.fit",
        r"C:\x\sub\b.fit",
        "abc",
        "nan",
        "-1",
        "#",
    ]
    words += [
        ",",
        ";",
        "|",
        "\t",
        " ",
        '"',
        "'",
        "\n",
        "\r\n",
        "\r",
        "\0",
        "\ufeff",
        "é",
        "10,5",
        "%s",
        "..",
        "\\",
        "/",
    ]
    n_read = 0
    for _ in range(1500):
        body = "".join(rng.choice(words, rng.integers(0, 40)))
        head = rng.choice(["", "file_path,order\n", '"path";exposure\n', "file ra\n"])
        data = (str(head) + body).encode(str(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))
        if rng.random() < 0.2:
            data = data[: rng.integers(0, len(data) + 1)] + rng.bytes(int(rng.integers(0, 60)))
        try:
            rows, left_out = read_plan(plan_file(tmp_path, data))
        except PlanError:
            continue
        n_read += 1
        assert rows
        assert {row.path for row in rows} <= frames
        assert len({row.path for row in rows}) == len(rows)
        assert all(item.reason for item in left_out)
    assert n_read > 100


def test_a_cell_longer_than_the_csv_module_takes_spoils_its_own_row_only(frame):
    rows, left_out = read_plan(plan_file(frame.parent, f"filter,file_path\n{'x' * 200_000},b.fit\nx,a.fit\n"))
    assert [row.path for row in rows] == [frame]
    assert [item.reason for item in left_out] == ["file not found: b.fit"]


# ---- scanning --------------------------------------------------------------------------------------------


def names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_scan_finds_every_kind_of_fits_file_and_nothing_else(tmp_path):
    wanted = ["B/3.fits", "a/1.FIT", "a/2.fts.gz", "a/b/c/x.Fits.FZ", "z.fit"]
    other = [
        "a.txt",
        ".hidden.fit",
        "._z.fit",
        ".cache/x.fit",
        "fit",
        "a/1.wcs.hdr",
        "x.fit.zip",
        "x.gz",
        "1.fit.bak",
    ]
    other += ["mosaic_grid.fits", "out/mosaic_grid_weight.fits", "out/tiles/tile_0001.fits", PLAN_NAME]
    for name in wanted + other:
        touch(tmp_path / name)
    (tmp_path / "folder.fit").mkdir()
    assert names(tmp_path, scan_folder(tmp_path)) == wanted


def test_a_tile_of_another_program_is_a_frame(tmp_path):
    touch(tmp_path / "panels" / "tile_0001.fits")
    assert names(tmp_path, scan_folder(tmp_path)) == ["panels/tile_0001.fits"]


def test_the_excluded_folder_is_not_looked_into(tmp_path):
    touch(tmp_path / "in" / "a.fit"), touch(tmp_path / "out" / "b.fit")
    assert names(tmp_path, scan_folder(tmp_path, exclude=tmp_path / "in" / ".." / "out")) == ["in/a.fit"]


def test_excluding_the_folder_itself_or_one_above_excludes_nothing(tmp_path):
    touch(tmp_path / "in" / "a.fit")
    for exclude in (tmp_path / "in", tmp_path):
        assert len(scan_folder(tmp_path / "in", exclude=exclude)) == 1


@LINUX_ONLY
def test_links_are_followed_and_loops_of_them_do_no_harm(tmp_path):
    root = tmp_path / "root"
    touch(root / "b" / "x.fit"), touch(tmp_path / "elsewhere" / "y.fit"), touch(tmp_path / "above.fit")
    (root / "a_link_to_b").symlink_to(root / "b")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "upper").symlink_to(tmp_path)
    (root / "other").symlink_to(tmp_path / "elsewhere")
    (root / "a_link.fit").symlink_to(root / "b" / "x.fit")
    (root / "another.fit").symlink_to(tmp_path / "above.fit")
    (root / "self").symlink_to(root / "self")
    (root / "ping").symlink_to(root / "pong")
    (root / "pong").symlink_to(root / "ping")
    assert names(root, scan_folder(root)) == ["another.fit", "b/x.fit", "other/y.fit"]


def test_scanning_what_is_no_folder_is_a_plan_error(frame):
    for path in (frame, frame.parent / "nowhere"):
        with pytest.raises(PlanError, match="is not a folder"):
            scan_folder(path)


def test_a_scan_reports_progress_and_can_be_cancelled(tmp_path):
    touch(tmp_path / "a.fit"), touch(tmp_path / "b" / "c.fit")
    seen, token = [], CancelToken()
    scan_folder(tmp_path, on_progress=lambda *counts: seen.append(counts), cancel=token)
    assert seen == [(1, 0), (2, 0)]
    token.cancel()
    with pytest.raises(RunCancelled):
        scan_folder(tmp_path, cancel=token)


# ---- a plan from a folder --------------------------------------------------------------------------------


def test_the_columns_of_a_new_plan_come_from_the_header(tmp_path):
    frame = write_frame(tmp_path / "a.fit", EQMODE=1)
    rows, left_out = plan_from_folder(tmp_path)
    assert left_out == []
    (row,) = rows
    centre = WCS(fits.Header(celestial_cards())).pixel_to_world(7.5, 5.5)
    assert (row.ra_deg, row.dec_deg) == pytest.approx((centre.ra.deg, centre.dec.deg), abs=1e-6)
    assert row == PlanRow(
        line=2,
        path=frame,
        exposure_s=10.0,
        filter="IRCUT",
        batch_id="Seestar-S50_2025-03-26_IRCUT",
        mount="EQ",
        telescope="Seestar S50",
        session_date="2025-03-26",
        order=1,
        ra_deg=row.ra_deg,
        dec_deg=row.dec_deg,
    )


HEADER_VALUES = [
    ({"EQMODE": 0}, "mount", "ALTZ"),
    ({}, "mount", ""),
    ({"DATE_OBS": "2025-03-27T12:00:01"}, "session_date", "2025-03-27"),
    ({"DATE_OBS": "2025-03-27T11:59:59.5"}, "session_date", "2025-03-26"),
    ({"DATE_OBS": "2024-03-01T03:00:00"}, "session_date", "2024-02-29"),
    ({"DATE_OBS": "2025-03-27"}, "session_date", "2025-03-27"),
    ({"DATE_OBS": "yesterday"}, "session_date", ""),
    ({"DATE_OBS": "0001-01-01T00:00:00"}, "session_date", ""),
    ({"DATE_OBS": None, "FILTER": None}, "batch_id", "Seestar-S50_-_-"),
    ({"FILTER": "L Pro"}, "batch_id", "Seestar-S50_2025-03-26_L-Pro"),
    ({"INSTRUME": None}, "telescope", "S50"),
    ({"INSTRUME": None, "TELESCOP": "S50-1a2b3c4d"}, "telescope", "S50"),
    ({"INSTRUME": None, "TELESCOP": "1a2b3c4d"}, "telescope", ""),
    ({"INSTRUME": None, "TELESCOP": "EdgeHD 1100"}, "telescope", "EdgeHD 1100"),
    ({"EXPTIME": None}, "exposure_s", None),
    ({"EXPTIME": -5.0}, "exposure_s", None),
]


@pytest.mark.parametrize(("cards", "field", "value"), HEADER_VALUES)
def test_a_header_gives_the_value_of_a_column(tmp_path, cards, field, value):
    write_frame(tmp_path / "a.fit", **cards)
    rows, _ = plan_from_folder(tmp_path)
    assert getattr(rows[0], field) == value


def test_no_serial_number_gets_into_a_plan(tmp_path):
    write_frame(tmp_path / "a.fit")
    write_frame(tmp_path / "b.fit", INSTRUME=None)
    plan = tmp_path / PLAN_NAME
    write_plan(plan, plan_from_folder(tmp_path)[0])
    assert "1a2b3c4d" not in plan.read_text()


def test_frames_without_a_wcs_are_listed_with_their_pointing(tmp_path):
    write_frame(tmp_path / "a.fit", wcs=False, RA=193.25, DEC=40.5)
    write_frame(tmp_path / "b.fit", CD1_1=0.0, CD2_2=0.0, RA=193.5, DEC=40.25)
    rows, left_out = plan_from_folder(tmp_path)
    assert [(row.ra_deg, row.dec_deg) for row in rows] == [(193.25, 40.5), (193.5, 40.25)]
    assert left_out == []


def test_a_new_plan_is_in_order_of_time_then_path_with_undated_frames_last(tmp_path):
    write_frame(tmp_path / "late.fit", DATE_OBS="2025-03-27T01:00:02")
    write_frame(tmp_path / "b.fit", DATE_OBS="2025-03-27T01:00:01.5")
    write_frame(tmp_path / "a.fit", DATE_OBS="2025-03-27T01:00:01.5")
    write_frame(tmp_path / "0.fit", DATE_OBS=None)
    write_frame(tmp_path / "z" / "early.fit", DATE_OBS="2025-03-26T23:00:00")
    rows, _ = plan_from_folder(tmp_path)
    assert [row.path.name for row in rows] == ["early.fit", "a.fit", "b.fit", "late.fit", "0.fit"]
    assert [(row.order, row.line) for row in rows] == [(k, k + 1) for k in range(1, 6)]


@LINUX_ONLY
def test_files_that_are_no_frames_are_left_out_with_their_reason(tmp_path):
    write_frame(tmp_path / "good.fit")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "empty.fit").write_bytes(b"")
    (tmp_path / "text.fits").write_text("not FITS at all " * 500)
    write_frame(tmp_path / "cut.fit")
    (tmp_path / "cut.fit").write_bytes((tmp_path / "cut.fit").read_bytes()[:1000])
    (tmp_path / "dangling.fit").symlink_to(tmp_path / "nowhere.fit")
    rows, left_out = plan_from_folder(tmp_path)
    assert [row.path.name for row in rows] == ["good.fit"]
    assert [item.path for item in left_out] == ["cut.fit", "dangling.fit", "sub/empty.fit", "text.fits"]
    assert all(item.reason for item in left_out)


def test_a_compressed_copy_beside_its_frame_does_not_count_twice(tmp_path):
    write_frame(tmp_path / "a.fits")
    write_frame(tmp_path / "a.fits.gz")
    write_frame(tmp_path / "b.fits.gz")
    rows, left_out = plan_from_folder(tmp_path)
    assert sorted(row.path.name for row in rows) == ["a.fits", "b.fits.gz"]
    assert left_out == [LeftOut("a.fits.gz", "compressed copy of a.fits", harmless=True)]


@LINUX_ONLY
def test_a_name_that_is_not_utf_8_is_left_out_and_the_plan_can_be_written(tmp_path):
    good = write_frame(tmp_path / "a.fit")
    odd = os.fsencode(tmp_path) + b"/b\xff.fit"
    try:
        Path(os.fsdecode(odd)).write_bytes(good.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    rows, left_out = plan_from_folder(tmp_path)
    write_plan(tmp_path / PLAN_NAME, rows)
    assert [row.path for row in rows] == [good]
    assert [(item.path, "UTF-8" in item.reason) for item in left_out] == [("b?.fit", True)]


def test_a_folder_without_frames_is_a_plan_error_that_says_why(tmp_path):
    with pytest.raises(PlanError, match=r"no FITS file .* in "):
        plan_from_folder(tmp_path)
    (tmp_path / "a.fit").write_bytes(b"")
    with pytest.raises(PlanError, match=r"no usable frame in .*: a\.fit: "):
        plan_from_folder(tmp_path)


def test_planning_reports_progress_skips_the_output_and_can_be_cancelled(tmp_path):
    for name in ("a.fit", "b.fit", "out/c.fit"):
        write_frame(tmp_path / name)
    seen, token = [], CancelToken()

    def on_progress(done, total):
        seen.append((done, total))
        token.cancel()

    with pytest.raises(RunCancelled):
        plan_from_folder(tmp_path, exclude=tmp_path / "out", on_progress=on_progress, cancel=token)
    assert seen == [(1, 2)]


# ---- writing ---------------------------------------------------------------------------------------------


def test_a_plan_of_real_frames_reads_back_as_the_same_rows(tmp_path):
    for k, name in enumerate(["a.fit", "sub dir/b, c.fit", 'sub dir/d "e".fits', "été/Hα.fts"]):
        write_frame(tmp_path / name, EQMODE=k % 2, EXPTIME=0.1 + k / 3, **{"CRVAL1": 10.0 + k / 7})
    rows, _ = plan_from_folder(tmp_path)
    write_plan(tmp_path / PLAN_NAME, rows)
    assert read_plan(tmp_path / PLAN_NAME) == (rows, [])


@LINUX_ONLY
def test_odd_names_survive_the_round_trip(tmp_path):
    odd = [
        " lead.fit",
        "'q'/'.fit",
        "#1.fit",
        "a\nb.fit",
        r"C:\d.fit",
        "%s.fit",
        "a;b|c\td.fit",
        "'.fit",
    ]
    rows = [PlanRow(line=0, path=touch(tmp_path / name)) for name in odd]
    write_plan(tmp_path / PLAN_NAME, rows)
    again, left_out = read_plan(tmp_path / PLAN_NAME)
    assert left_out == []
    assert [row.path for row in again] == [row.path for row in rows]


def test_a_plan_kept_elsewhere_has_absolute_paths_and_still_reads_back(tmp_path):
    frames = tmp_path / "in"
    write_frame(frames / "sub" / "a.fit"), (tmp_path / "out").mkdir()
    rows, _ = plan_from_folder(frames)
    plan = tmp_path / "out" / PLAN_NAME
    write_plan(plan, rows)
    assert (frames / "sub" / "a.fit").as_posix() in plan.read_text()
    assert read_plan(plan) == (rows, [])


def test_the_text_of_a_plan_is_plain_csv_with_relative_posix_paths(tmp_path):
    row = PlanRow(2, touch(tmp_path / "sub" / "a.fit"), 10.0, 'L, "Pro"', "b_1", "EQ", "4", "S50", "2025-03-26", 1)
    write_plan(tmp_path / PLAN_NAME, [row])
    assert (tmp_path / PLAN_NAME).read_bytes().decode() == (
        "order,batch_id,mount,bortle,telescope,session_date,filter,exposure,file_path,ra,dec\n"
        '1,b_1,EQ,4,S50,2025-03-26,"L, ""Pro""",10.0,sub/a.fit,,\n'
    )


def test_a_plan_that_cannot_be_written_is_an_output_error(tmp_path, frame):
    with pytest.raises(OutputError):
        write_plan(frame / PLAN_NAME, [PlanRow(2, frame)])


def test_a_plan_of_three_thousand_rows_is_read_whole(tmp_path):
    frames = [touch(tmp_path / f"night{k % 7}" / f"light_{k:05d}.fit") for k in range(3000)]
    rows = [PlanRow(k + 2, f, 10.0 + k % 3, order=k + 1, ra_deg=k / 1000) for k, f in enumerate(frames)]
    write_plan(tmp_path / PLAN_NAME, rows)
    assert read_plan(tmp_path / PLAN_NAME) == (rows, [])


# ---- frame records ---------------------------------------------------------------------------------------


def test_records_do_not_depend_on_the_order_of_the_rows(tmp_path):
    for k in range(12):
        write_frame(tmp_path / f"n{k % 3}" / f"{k}.fit", EXPTIME=10.0 + k)
    write_frame(tmp_path / "unsolved.fit", wcs=False), (tmp_path / "bad.fit").write_bytes(b"")
    rows = [PlanRow(100 - k, path) for k, path in enumerate(scan_folder(tmp_path))]
    expected = load_frames(rows, tmp_path)
    assert [record.frame_id for record in expected[0]] == sorted(f"n{k % 3}/{k}.fit" for k in range(12))
    rng = np.random.default_rng(5)
    for _ in range(4):
        assert load_frames([rows[i] for i in rng.permutation(len(rows))], tmp_path) == expected


def test_a_record_says_where_the_frame_is_and_what_its_header_says(tmp_path):
    frame = write_frame(tmp_path / "sub" / "a.fit")
    (record,), left_out = load_frames([PlanRow(7, frame)], tmp_path)
    assert left_out == []
    assert (record.frame_id, record.path, record.line) == ("sub/a.fit", str(frame), 7)
    assert (record.header.shape, record.header.filter, record.exptime_s) == ((12, 16), "IRCUT", 10.0)


def test_frames_that_cannot_be_placed_are_left_out_with_their_reason(tmp_path):
    write_frame(tmp_path / "unsolved.fit", wcs=False)
    write_frame(tmp_path / "singular.fit", CD1_1=0.0, CD2_2=0.0)
    (tmp_path / "empty.fit").write_bytes(b"")
    paths = [tmp_path / name for name in ("unsolved.fit", "singular.fit", "gone.fit", "empty.fit")]
    records, left_out = load_frames([PlanRow(k, path) for k, path in enumerate(paths, 2)], tmp_path)
    assert records == []
    assert [(item.path, item.line) for item in left_out] == [
        (str(tmp_path / "empty.fit"), 5),
        (str(tmp_path / "gone.fit"), 4),
        (str(tmp_path / "singular.fit"), 3),
        (str(tmp_path / "unsolved.fit"), 2),
    ]
    assert left_out[3].reason == NO_WCS == "no celestial WCS in the file or beside it"
    assert len({item.reason for item in left_out}) == 4


def test_frames_that_cannot_be_placed_are_kept_for_a_plate_solver_if_asked(tmp_path):
    write_frame(tmp_path / "unsolved.fit", wcs=False)
    write_frame(tmp_path / "singular.fit", CD1_1=0.0, CD2_2=0.0)
    write_frame(tmp_path / "good.fit")
    (tmp_path / "empty.fit").write_bytes(b"")
    rows = [PlanRow(k, path) for k, path in enumerate(scan_folder(tmp_path), 2)]
    (_, (empty, *others)), (records, left_out) = (
        load_frames(rows, tmp_path),
        load_frames(rows, tmp_path, keep_unplaced=True),
    )
    assert left_out == [empty]
    good, *unplaced = records
    assert (good.frame_id, good.unplaced) == ("good.fit", "")
    assert [(record.path, record.unplaced) for record in unplaced] == [(item.path, item.reason) for item in others]
    assert {record.header.wcs_text for record in unplaced} == {""}


@pytest.mark.parametrize("cards", [{"RADESYS": "GAPPT"}, {"CTYPE1": "SLON-TAN", "CTYPE2": "SLAT-TAN"}])
def test_a_wcs_in_an_unknown_system_of_the_sky_is_left_out_and_not_fatal(tmp_path, cards):
    write_frame(tmp_path / "a.fit", RA=193.25, DEC=40.5, **cards)
    (row,), _ = plan_from_folder(tmp_path)
    assert (row.ra_deg, row.dec_deg) == (193.25, 40.5)
    records, left_out = load_frames([row], tmp_path)
    assert records == []
    assert "system of the sky that is not known" in left_out[0].reason


def test_the_centre_of_a_galactic_wcs_is_given_in_icrs(tmp_path):
    write_frame(tmp_path / "a.fit", CTYPE1="GLON-TAN", CTYPE2="GLAT-TAN", CRVAL1=0.0, CRVAL2=0.0, RADESYS=None)
    (row,), _ = plan_from_folder(tmp_path)
    assert (row.ra_deg, row.dec_deg) == pytest.approx((266.405, -28.936), abs=2e-3)


@pytest.mark.parametrize(
    ("plan", "header", "expected"), [(20.0, 10.0, 20.0), (None, 30.0, 30.0), (None, None, 1.0)]
)
def test_the_exposure_is_the_plans_then_the_headers_then_one_second(tmp_path, caplog, plan, header, expected):
    frames = [write_frame(tmp_path / f"{k}.fit", EXPTIME=header) for k in range(3)]
    records, _ = load_frames([PlanRow(2, frame, plan) for frame in frames], tmp_path)
    assert [record.exptime_s for record in records] == [expected] * 3
    told = ["[GRID] 3 frames have no exposure in plan or header; 1 s is used"]
    assert warnings_of(caplog) == (told if expected == 1.0 else [])


def test_loading_reports_progress_and_can_be_cancelled(tmp_path):
    frames = [write_frame(tmp_path / f"{k}.fit") for k in range(3)]
    seen, token = [], CancelToken()

    def on_progress(done, total):
        seen.append((done, total))
        if done == 2:
            token.cancel()

    with pytest.raises(RunCancelled):
        load_frames([PlanRow(2, frame) for frame in frames], tmp_path, on_progress=on_progress, cancel=token)
    assert seen == [(1, 3), (2, 3)]


def test_the_frame_id_is_relative_below_the_folder_and_absolute_elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "plan"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    assert frame_id(folder / "s" / "a.fit", folder) == "s/a.fit"
    assert frame_id(Path("plan/s/a.fit"), folder) == frame_id(folder / "s" / "a.fit", Path("plan")) == "s/a.fit"
    assert frame_id(folder / ".." / "a.fit", folder) == (tmp_path / "a.fit").resolve().as_posix()
    assert frame_id(tmp_path / "plan2" / "a.fit", folder) == (tmp_path / "plan2" / "a.fit").as_posix()


@LINUX_ONLY
def test_the_frame_id_is_the_same_through_a_link_to_the_folder(tmp_path):
    frame = touch(tmp_path / "real" / "s" / "a.fit")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert frame_id(frame, tmp_path / "link") == "s/a.fit"
    assert frame_id(tmp_path / "link" / "s" / "a.fit", tmp_path / "real") == "s/a.fit"
