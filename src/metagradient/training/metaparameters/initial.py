"""The initial parameters as a metaparameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.metaparameters.metaparameter import Metaparameter


@dataclass(frozen=True, eq=False)
class InitialParameters(Metaparameter):
    """The initial parameters theta_0 [P], in the order of the learner's layout."""

    name: str = "initial_parameters"

    @property
    def first_step(self) -> int:
        return -1

    def on_start(self, params: Tensor) -> Tensor:
        if self.value.shape != params.shape:
            raise UserError(f"InitialParameters needs {params.numel()} values, not {list(self.value.shape)}")
        return self.value
