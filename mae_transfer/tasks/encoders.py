"""What the tasks that pretrain an encoder have in common: its config, its monitor, and its export."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import model_validator

from mae_transfer import checkpoints
from mae_transfer.core.patches import sides
from mae_transfer.engine.state import LoopConfig
from mae_transfer.results import Result
from mae_transfer.tasks.images import ImageConfig, ImageTask
from mae_transfer.tasks.monitor import Monitor, MonitorConfig

if TYPE_CHECKING:
    from mae_transfer.models.joint import JointModelConfig
    from mae_transfer.models.mae import MAEConfig


class EncoderConfig(ImageConfig):
    """Options of every pretraining of an encoder."""

    if TYPE_CHECKING:
        model: MAEConfig | JointModelConfig

    monitor: MonitorConfig | None = None
    """What to measure of the features meanwhile. It changes no number of the run. None: nothing."""
    trains = "pretraining"

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        encoder = self.model.encoder
        if sides(encoder.image_size) != sides(self.data.size):
            raise ValueError(
                f"model.encoder.image_size = {encoder.image_size}, but data.size = {self.data.size}: set both to the "
                "same size"
            )
        if not encoder.channels == len(self.mean) == len(self.std):
            raise ValueError(
                f"model.encoder.channels = {encoder.channels}, but mean has {len(self.mean)} values and std has "
                f"{len(self.std)}: give one value per channel"
            )
        if self.monitor is not None and self.monitor.pool == "cls" and not encoder.class_token:
            raise ValueError("monitor.pool = 'cls', but the encoder has no class token: set monitor.pool=mean")
        return self

    @abstractmethod
    def method(self) -> str:
        """Return what a table calls this pretraining: "MAE norm_pixel, random 75%, 800 ep"."""


C = TypeVar("C", bound=EncoderConfig)


class EncoderTask(ImageTask[C]):
    """A run that pretrains an encoder. Its model has the encoder as `encoder`."""

    name = "pretrain"
    artifact = "backbone.safetensors"
    watch: Monitor | None = None
    """What measures the features meanwhile; from `open` on."""

    @property
    def method(self) -> str:
        return self.cfg.method()

    def open(self) -> None:
        super().open()
        cfg = self.cfg
        if cfg.monitor is not None:
            self.watch = Monitor(
                cfg.monitor, size=cfg.data.size, statistics=cfg.statistics, precision=cfg.precision, run=cfg.run,
                dist=self.dist,
            )  # fmt: skip

    def prepare(self, loop: LoopConfig) -> None:
        if self.watch is not None:
            self.watch.read()

    def loop(self) -> LoopConfig:
        loop, cfg = super().loop(), self.cfg.monitor
        every = None if cfg is None else max(1, round(cfg.every_epochs * loop.steps_per_epoch))
        return loop.model_copy(update={"monitor_every": every})

    def monitor(self, model: Any, step: int) -> dict[str, float]:
        assert self.watch is not None
        return self.watch(model.encoder)

    def export(self, model: Any) -> None:
        """Write the encoder alone."""
        about = {**self.about(), "pretrain": self.method, "images_seen": self.state.images_seen}
        checkpoints.export_backbone(self.folder.backbone, model.encoder, about=about)

    def closing_words(self, written: list[Result]) -> str:
        folder = self.folder
        where = f"pictures in {folder.reconstructions}, numbers in {folder.results}"
        return f"done: {folder.backbone} (for the transfer tasks), {where}"
