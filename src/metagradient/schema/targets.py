"""What is built by name (`_target_`) and is ours: the ranges of its numbers, wherever in a configuration it stands."""

from __future__ import annotations

from typing import Any

from metagradient.schema.ranges import Names, Range

Numbers = dict[str, Range | Names]

_BOUND = 1e6
"""A size beyond which a step, a rate or a factor means nothing."""


def _whole(example: int, least: int = 1, **bounds: Any) -> Range:
    return Range(whole=True, least=least, example=example, **bounds)


def _positive(example: float, **bounds: Any) -> Range:
    return Range(**{"above": 0, "most": _BOUND, "example": example, **bounds})


def _share(example: float, **bounds: Any) -> Range:
    return Range(**{"least": 0, "most": 1, "example": example, **bounds})


_SEED = Range(whole=True, least=0, below=2**63)
_DECAY = Range(least=0, most=_BOUND, example=0.0)
_BETAS = Range(each=True, count=2, least=0, below=1, example=[0.9, 0.999])
_WIDTHS = Range(each=True, whole=True, least=1, most=1_000_000, example=[128])
_WIDTH = _whole(16, most=1_000_000)
_ADAM: Numbers = {
    "betas": _BETAS,
    "eps": _share(1e-8),
    "eps_root": _share(1e-8),
    "weight_decay": _DECAY,
}

_OPTIMIZERS: dict[str, Numbers] = {
    "SGD": {"momentum": _share(0.9, most=None, below=1), "weight_decay": _DECAY},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Lion": {"betas": _BETAS, "weight_decay": _DECAY},
    "Muon": {"momentum": _share(0.95, most=None, below=1), "weight_decay": _DECAY, "ns_steps": _whole(5)},
}

_LORA: Numbers = {
    "lora.rank": _whole(8),
    "lora.alpha": _positive(16),
    "lora.targets": Names(some=True, example=["q_proj", "v_proj"], nullable=True),
    "lora.dropout": _share(0.0, most=None, below=1),
}

_MODELS: dict[str, Numbers] = {
    "mlp": {"hidden": _WIDTHS, "logit_scale": _positive(1.0)},
    "resnet9": {"width": _WIDTH, "logit_scale": _positive(0.1)},
    "TableMLP": {"hidden": _WIDTHS, "width": _whole(16, most=1_000_000, nullable=True)},
    "SentenceClassifier": {"vocab": _whole(1000), "layers": _whole(2), "heads": _whole(4), "width": _WIDTH},
    "GPT": {"layers": _whole(2), "heads": _whole(4), "width": _WIDTH},
    "hf_text_classifier": {"vocab": _whole(1000), **_LORA},
    "hf_image_classifier": _LORA,
    "hf_causal": _LORA,
    "image_text_model": {
        "outputs": _WIDTH,
        "temperature": _positive(0.07),
        "bias": Range(least=-_BOUND, most=_BOUND, nullable=True, example=-10.0),
        **{f"{tower}_options.width": _WIDTH for tower in ("image", "text")},
        **{f"{tower}_options.{size}": _whole(4) for tower in ("image", "text") for size in ("layers", "heads")},
        "image_options.hidden": _WIDTHS,
        "image_options.patch": _whole(4),
        "image_options.logit_scale": _positive(1.0),
        "text_options.hidden": _WIDTH,
    },
    "timm": {"image_size": _whole(32, nullable=True)},
}

_DRAWN: Numbers = {
    "train": _whole(1000),
    "validation": _whole(100, least=0),
    "test": _whole(100),
    "seed": _SEED,
}
"""A number of rows for each split."""
_ALL_LEFT: Numbers = {**_DRAWN, "test": _whole(100, nullable=True)}
_SHARED: Numbers = {
    "train": _whole(1000, nullable=True),
    "validation": Range(whole=True, least=0, share=True, example=0.1),
    "test": Range(whole=True, least=1, share=True, example=0.2),
    "seed": _SEED,
}
"""Shares of one's own rows, or numbers of them."""
_WORDS: Numbers = {"length": _whole(24), "words": _whole(1000)}

_VOCAB = _whole(512, least=261, most=1_000_000)
"""Byte pairs: all bytes and the special tokens are among them."""

_DATA: dict[str, Numbers] = {
    "a9a": _ALL_LEFT,
    "covtype": _ALL_LEFT,
    "digits": _ALL_LEFT,
    "higgs": {**_ALL_LEFT, "train": _whole(1000, nullable=True), "official": _whole(500_000)},
    "hub": {**_ALL_LEFT, "classes": Names(some=True, example=["cat", "dog"], nullable=True)},
    "rcv1": {**_ALL_LEFT, "features": _whole(2000)},
    "characters": {**_DRAWN, "length": _whole(32), "planted": _whole(8, least=0), "copies": _whole(20)},
    "made_instructions": {
        **_DRAWN,
        "train": _whole(800, least=20),
        "validation": _whole(120),
        "vocab": _VOCAB,
        "largest": _whole(5, most=9),
        "corpus": _whole(800, least=0),
    },
    "instructions": {**_SHARED, "length": _whole(256, least=2)},
    "TokenizerSettings": {"vocab": _VOCAB},
    "AnswerNoise": {"fraction": _share(0.2)},
    "sentences": {**_DRAWN, **_WORDS},
    "array_file": _SHARED,
    "image_folder": {
        **_SHARED,
        "size": _whole(32),
        "channels": _whole(1, most=3, nullable=True),
        "workers": _whole(1, least=0, nullable=True),
    },
    "image_text_pairs": {
        **_SHARED,
        "size": _whole(32),
        "channels": _whole(3, most=3),
        "extra_words": _whole(4),
        "vocab": _whole(8192),
        "length": _whole(16),
        "workers": _whole(1, least=0, nullable=True),
    },
    "drawn_digits": {**_DRAWN, "noise": _share(0.1)},
    "table_file": {**_SHARED, "categories": _whole(50), "drop": Names()},
    "text_file": {**_SHARED, **_WORDS},
    "LabelNoise": {"fraction": _share(0.4, most=None, below=1)},
    "RandomShift": {"pixels": _whole(1)},
    "GaussianNoise": {"sd": _positive(0.1)},
}

_LOOP: Numbers = {
    "metasteps": _whole(20),
    "seeds_per_metastep": _whole(1),
    "patience": _positive(0.5),
    "average_from": _share(0.6),
}
_STEP: Numbers = {"step": _positive(0.3)}
_RATES = Range(each=True, count=2, above=0, most=_BOUND, example=[0.01, 3.0])
_PIXEL = Range(least=-_BOUND, most=_BOUND, example=0.0)

_DESCENT: dict[str, Numbers] = {
    "WeightSelection": {**_LOOP, "replay_from": _share(0.0, most=None, below=1)},
    "CountSelection": {
        **_LOOP,
        "probability": _share(0.2, least=None, above=0),
        "surrogate": _share(0.9),
        "swap": _whole(50, nullable=True),
        "shard": _share(0.5, least=None, above=0),
        "chunk": _whole(1024),
        "weighed": _whole(500, nullable=True),
        "most": _whole(10, nullable=True),
    },
    "PixelPoisoning": {**_LOOP, "low": _PIXEL, "high": _PIXEL, "settle": _share(0.7)},
    "GradientCancelling": {
        "radii": _positive(0.1, each=True, some=True),
        "corruption_steps": _whole(50),
        "steps": _whole(300),
        "rate": _positive(0.05),
        "low": Range(least=-_BOUND, most=_BOUND, nullable=True, example=0.0),
        "high": Range(least=-_BOUND, most=_BOUND, nullable=True, example=1.0),
    },
    "ScheduleSearch": {**_LOOP, "start": _positive(0.02)},
    "RecipeSpace": {"knots": _whole(6, most=10_000)},
    "Family": {
        "peak": _RATES,
        "warmup": Range(each=True, count=2, least=0, below=1, example=[0.0, 0.7]),
        "start": _RATES,
        "final": _RATES,
    },
    "Sign": _STEP,
    "Clipped": {**_STEP, "clip": _positive(2.0)},
    "Adam": {**_STEP, "betas": _BETAS, "eps": _share(1e-12)},
    "Raw": {"threshold": _positive(0.5)},
    "Sigmoid": {"scale": _positive(1.0)},
}

_RATE_OF_THE_RUN = _positive(0.02, nullable=True)
_UNLEARNING: dict[str, Numbers] = {
    "DeltaGrad": {"period": _whole(5), "burn_in": _whole(10, least=0), "pairs": _whole(2)},
    "Guard": {"curvature": _positive(1.5), "growth": _positive(1.5)},
    "Adaptive": {"target": _positive(0.02), "longest": _whole(50)},
    "Finetune": {"epochs": _whole(5), "learning_rate": _RATE_OF_THE_RUN, "seed": _SEED},
    "GradientAscent": {"steps": _whole(5), "learning_rate": _RATE_OF_THE_RUN},
    "NegGradPlus": {
        "share": _share(0.5, least=None, above=0),
        "epochs": _whole(5),
        "learning_rate": _RATE_OF_THE_RUN,
        "seed": _SEED,
    },
    "Newton": {
        "damping": Range(least=0, most=1e12, nullable=True, example=0.01),
        "iterations": _whole(30),
        "tolerance": _positive(1e-3, most=None, below=1),
    },
}

TARGETS: dict[str, Numbers] = {
    f"metagradient.{package}.{name}": numbers
    for package, known in {
        "training": _OPTIMIZERS,
        "models": _MODELS,
        "data": _DATA,
        "descent": _DESCENT,
        "unlearning": _UNLEARNING,
    }.items()
    for name, numbers in known.items()
}
"""`_target_` -> its settings that have a range, those in braces of it with dots."""
