"""The values of all options while the program is open: read from a file, changed by the form, kept in a file.

Values come from where the command line finds them: environment, file, defaults; what is changed in the program
comes before all of them. Keys of the file that the table does not know stay with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PySide6.QtCore import QObject, Signal

from zemosaic_config import (
    GPU_KEYS,
    OPTIONS,
    Config,
    Value,
    check_value,
    find_option,
    load_file,
    migrate,
    resolve,
    save,
)

_FOLDERS = ("input_dir", "output_dir")

#: What each preset decides; all of them name the same options.
PRESETS: dict[str, dict[str, Value]] = {
    "fast": {
        "resampling_kernel": "bilinear",
        "refine_wcs": "off",
        "flat_from_frames": "off",
        "stacking_normalize_method": "global",
        "stacking_weighting_method": "noise_variance",
        "stacking_rejection_algorithm": "kappa_sigma",
        "stacking_final_combine_method": "mean",
    },
    "balanced": {
        "resampling_kernel": "lanczos3",
        "refine_wcs": "auto",
        "flat_from_frames": "auto",
        "stacking_normalize_method": "global",
        "stacking_weighting_method": "noise_variance",
        "stacking_rejection_algorithm": "kappa_sigma",
        "stacking_final_combine_method": "mean",
    },
    "best": {
        "resampling_kernel": "lanczos3",
        "refine_wcs": "auto",
        "flat_from_frames": "auto",
        "stacking_normalize_method": "global",
        "stacking_weighting_method": "noise_fwhm",
        "stacking_rejection_algorithm": "kappa_sigma",
        "stacking_final_combine_method": "mean",
    },
}


class Settings(QObject):
    """Values of the options.

    `changed` names an option whose value is another; `replaced` says that any may be.

    Parameters
    ----------
    content : mapping
        What a configuration file holds.
    env : mapping
        Environment variables.

    Raises
    ------
    ConfigError
        If a value cannot be used.
    """

    changed = Signal(str)
    replaced = Signal()

    def __init__(self, content: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._env = dict(env or {})
        self._content: dict[str, object] = {}
        self._edits: dict[str, Value] = {}
        self._chosen: set[str] = set()  # in the window, whether a file holds it by now or not
        self._values: dict[str, Value] = {}
        self._use(dict(content or {}))

    def _use(self, content: dict[str, object]) -> None:
        config = resolve(content, self._env)  # refuses what is no good before anything changes
        self._content, self._edits, self._chosen = content, {}, set()
        self.notes = config.notes
        self._values = config.as_dict() | self._switches(content)

    def _switches(self, content: Mapping[str, object]) -> dict[str, Value]:
        """Return the GPU switches as they are written, undefined ones included, which a run settles."""
        return {
            key: check_value(key, self._env.get(find_option(key).variable) or content.get(key)) for key in GPU_KEYS
        }

    def value(self, key: str) -> Value:
        """Return the value of an option; None for a switch that is left to others."""
        return self._values[key]

    def set(self, key: str, value: Value) -> None:
        """Change an option; raises `ConfigError` if the value is no good."""
        checked = check_value(key, value)
        if checked != self._values[key]:
            self._values[key] = self._edits[key] = checked
            self._chosen.add(key)
            self.changed.emit(key)

    def is_default(self, key: str) -> bool:
        """Whether an option has the value that the program came with."""
        return self._values[key] == find_option(key).default

    def reset(self, key: str) -> None:
        """Give an option its default."""
        self.set(key, find_option(key).default)

    def edits(self) -> dict[str, Value]:
        """Return what was changed since the file was read or written."""
        return dict(self._edits)

    def config(self) -> Config:
        """Return the configuration of a run."""
        env = {name: text for name, text in self._env.items() if name not in self._edited_variables()}
        return resolve(migrate(self._content) | self._edits, env).chosen_in_window(self._chosen)

    def _edited_variables(self) -> set[str]:
        return {find_option(key).variable for key in self._chosen.union(self._edits)}

    # ---- presets and files -------------------------------------------------------------------------------

    def apply_preset(self, name: str) -> None:
        """Give the options of a preset its values."""
        for key, value in PRESETS[name].items():
            self.set(key, value)

    def preset(self) -> str:
        """Return the preset whose values are in force, nothing if none is."""
        for name, values in PRESETS.items():
            if all(self._values[key] == value for key, value in values.items()):
                return name
        return ""

    def load(self, path: Path | str) -> None:
        """Take all values from a file, folders only if it names them; what changes counts as changed by the user.

        Raises
        ------
        ConfigError
            If it is no good; nothing changes then.
        """
        before, edited = self._values, set(self._edits)
        self._use(load_file(path))
        self._values |= {key: before[key] for key in _FOLDERS if not self._values[key]}
        # What was changed before is written too, since no file holds it yet.
        self._edits = {k: value for k, value in self._values.items() if value != before[k] or k in edited}
        self._edits |= {key: before[key] for key in _FOLDERS if self._values[key] == before[key] != ""}
        self.replaced.emit()

    def save_as(self, path: Path | str) -> None:
        """Write all values into a file; keys that no option has stay, those of the file that was read come along.

        Raises
        ------
        ConfigError
            If it cannot be written.
        """
        save(path, {option.key: self._values[option.key] for option in OPTIONS}, keep=self._content)

    def keep_edits(self, path: Path | str) -> None:
        """Write into a file what was changed, and nothing else; raises `ConfigError` if that cannot be done."""
        if self._edits:
            save(path, self._edits)
            self._content, self._edits = migrate(self._content) | self._edits, {}
