"""All numbers and lists of all experiments x what cannot be meant: accepted, or refused in one line whose advice works."""

import functools
import math
import re
from collections import Counter

from hydra.core.override_parser.overrides_parser import OverridesParser
from walk import ODD, Setting, settings

from metagradient.errors import UserError
from metagradient.schema import check_settings


def refusal(setting: Setting, value: object) -> str | None:
    try:
        check_settings(setting.with_value(value), setting.experiment)
    except UserError as error:
        return str(error)
    return None


def test_the_walk() -> None:
    counts, silent, unhelpful = Counter[str](), [], []
    walked, parse = settings(), functools.cache(OverridesParser.create().parse_override)
    for setting in walked:
        check_settings(setting.config, setting.experiment)
        for value in ODD:
            said = refusal(setting, value)
            counts["refused" if said else "accepted"] += 1
            never = value == "a" or (isinstance(value, float) and not math.isfinite(value))
            if said is None:
                silent += [f"{setting}={value}"] if never else []
                continue
            advice = re.search(rf": set ({re.escape(setting.key)}=\S+)$", said)
            if not said.startswith(setting.key) or "\n" in said or advice is None:
                unhelpful.append(said)
            elif (after := refusal(setting, parse(advice[1]).value())) is not None:
                unhelpful.append(f"{said} -> {after}")
    assert silent == []
    assert unhelpful == []
    assert len(walked) * len(ODD) >= 400
    by = {setting.key for setting in walked if setting.experiment == "selection"}
    assert by >= {"learner.learning_rate", "method.metasteps", "model.hidden", "data.noise.fraction"}
    print(f"{len(walked)} settings x {len(ODD)} values: {dict(counts)}")
