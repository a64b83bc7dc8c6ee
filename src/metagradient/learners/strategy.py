"""How a Trainer runs a fit on several devices."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy


class SharedBatches(DDPStrategy):
    """Processes that share each batch of a fit: `Trainer(devices=4, strategy=mg.SharedBatches())`, with torchrun or without.

    As Lightning's `ddp` it starts a process for each device, which runs the same program. But the step itself adds up the
    gradients, where they can be differentiated, so that the module is not wrapped.
    """

    strategy_name = "shared_batches"

    def configure_ddp(self) -> None:
        """Nothing: see above."""
