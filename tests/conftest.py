"""Fixtures that several test files share."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

try:
    import PySide6.QtWidgets  # noqa: F401 - loads the libraries of the system, too
except ImportError as reason:
    WITHOUT_QT = str(reason)
    collect_ignore_glob = ["test_gui*"]
else:
    WITHOUT_QT = ""


def pytest_terminal_summary(terminalreporter):
    """Say that the tests of the desktop program were passed over, where they are."""
    if WITHOUT_QT:
        terminalreporter.write_line(f"SKIPPED tests/test_gui*: Qt cannot be loaded: {WITHOUT_QT}", yellow=True)


REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data():
    """The folder of real Seestar frames; the test is skipped, visibly, where it is not there."""
    if not REAL_DATA.is_dir():
        pytest.skip("the folder of real Seestar frames is not there")
    return REAL_DATA


@pytest.fixture(scope="session")
def gpu_device():
    """The first GPU, open; the test is skipped, with the reason, where there is none."""
    from zemosaic_backend import open_device
    from zemosaic_types import DeviceUnavailable

    try:
        return open_device(0)
    except DeviceUnavailable as reason:
        pytest.skip(f"no GPU: {reason}")


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch, tmp_path_factory):
    """No test reads or writes the user's own configuration."""
    own = str(tmp_path_factory.mktemp("own"))
    monkeypatch.delenv("ZEMOSAIC_CONFIG", raising=False)
    for name in ("XDG_CONFIG_HOME", "APPDATA", "HOME"):
        monkeypatch.setenv(name, own)
