"""`metagradient`, with the experiment `tiny` beside the real ones: `python driver.py tiny --config-dir conf ...`."""

from dataclasses import dataclass
from pathlib import Path

import metagradient.experiments
from hydra.core.config_store import ConfigStore

from metagradient.cli.command import main

metagradient.experiments.__path__.append(str(Path(__file__).parent / "experiments"))


@dataclass
class Learner:
    """A schema, as the core groups have it: types are checked."""

    learning_rate: float = 0.1
    steps: int = 10
    nesterov: bool = False


ConfigStore.instance().store(group="learner", name="base", node=Learner)

if __name__ == "__main__":
    main()
