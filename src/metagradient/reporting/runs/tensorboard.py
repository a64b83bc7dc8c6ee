"""TensorBoard's event files beside a record, for those who look at their runs there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metagradient.errors import UserError


class Board:
    """A writer of event files in the run directory's `tensorboard/`, or nothing without a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"logger.tensorboard=true needs tensorboard ({error}): pip install 'metagradient[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One point of each curve."""
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(key, value, step)

    def image(self, key: str, path: Path) -> None:
        """A picture."""
        if self._writer is not None:
            import numpy as np
            from PIL import Image  # no other run needs it here

            with Image.open(path) as picture:
                self._writer.add_image(key, np.asarray(picture.convert("RGB")), dataformats="HWC")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run's results as points at step 0, and the end of the file."""
        if self._writer is not None:
            self.log(0, {key: value for key, value in summary.items() if key.startswith(("result/", "cost/"))})
            self._writer.close()
            self._writer = None
