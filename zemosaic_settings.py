"""What a user can choose about any run, whatever pipeline makes it: one frozen record of checked values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Self

from zemosaic_align_stack import StackOptions
from zemosaic_astrometry import SolveOptions
from zemosaic_config import Config
from zemosaic_frame_source import RadialWeight, StackFrame
from zemosaic_match import MatchOptions, usual_feather_px
from zemosaic_types import StackParams

MEGABYTE = 1024**2


@dataclass(frozen=True)
class RunSettings:
    """The choices that pipelines share; the names are those of the configuration."""

    normalise: str = "global"
    weight: str = "noise_variance"
    params: StackParams = field(default_factory=StackParams)
    radial: RadialWeight | None = None
    feather_px: int = -1
    kernel: str = "lanczos3"
    orientation: str = "north_up"
    refine_wcs: str = "auto"
    size_factor: float = 1.0
    chunk_ram_mb: int = 512
    workers: int | None = None
    use_gpu: bool = False
    gpu_decided_by: str | None = None
    rgb_equalize: bool = False
    flat_from_frames: str = "auto"
    save_uint16: bool = False
    legacy_rgb_cube: bool = False
    overwrite: bool = False
    drop_suggested: bool = False
    excluded: tuple[str, ...] = ()
    solve: SolveOptions | None = field(default_factory=SolveOptions)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        overwrite: bool = False,
        drop_suggested: bool = False,
        excluded: tuple[str, ...] = (),
    ) -> Self:
        """Return the settings that a resolved configuration asks for."""
        radial = RadialWeight(
            config["radial_feather_fraction"], config["radial_shape_power"], config["min_radial_weight_floor"]
        )
        return cls(
            normalise=config["stacking_normalize_method"],
            weight=config["stacking_weighting_method"],
            params=StackParams(
                reject=config["stacking_rejection_algorithm"],
                kappa_low=config["stacking_kappa_low"],
                kappa_high=config["stacking_kappa_high"],
                winsor_limits=tuple(config["stacking_winsor_limits"]),
                spread=config["reject_spread"],
                combine=config["stacking_final_combine_method"],
            ),
            radial=radial if config["apply_radial_weight"] else None,
            feather_px=config["frame_feather_px"],
            kernel=config["resampling_kernel"],
            orientation=config["canvas_orientation"],
            refine_wcs=config["refine_wcs"],
            size_factor=config["grid_size_factor"],
            chunk_ram_mb=config["grid_chunk_ram_mb"],
            workers=config["grid_workers"],
            use_gpu=config["use_gpu_grid"],
            gpu_decided_by=config.gpu_decided_by,
            rgb_equalize=config["grid_rgb_equalize"],
            flat_from_frames=config["flat_from_frames"],
            save_uint16=config["save_final_as_uint16"],
            legacy_rgb_cube=config["legacy_rgb_cube"],
            overwrite=overwrite,
            drop_suggested=drop_suggested,
            excluded=tuple(excluded),
            solve=SolveOptions.from_config(config),
        )

    def match_options(self, n_channels: int) -> MatchOptions:
        """Return what the match needs of the settings."""
        return MatchOptions(self.normalise, self.weight, self.kernel, self.rgb_equalize and n_channels == 3)

    def stack_options(self, n_channels: int, frames: list[StackFrame]) -> StackOptions:
        """Return what the stack needs of the settings, the feather settled for all its frames."""
        feather_px = self.feather_px if self.feather_px >= 0 else usual_feather_px(frames)
        return StackOptions(
            n_channels, self.params, self.kernel, self.radial, float(feather_px), self.chunk_ram_mb * MEGABYTE
        )

    def described(self) -> dict:
        """Return the settings as plain values for the report and the headers."""
        flat = asdict(self)
        return flat | flat.pop("params")
