"""Hugging Face causal language models, whole or with low-rank adapters."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metagradient.models.foreign import library_of, low_rank

log = logging.getLogger(__name__)

_NEAR = 0.9  # models round their vocabulary up


def hf_causal(
    vocab: int,
    block: int,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    checkpointing: bool | float = False,
) -> nn.Module:
    """A causal language model of transformers in float32; it maps tokens [B, L] to an object with `logits` [B, L, V].

    Dropout is off, as it makes the scores of single examples noisy.

    Args:
        vocab: tokens of the data's tokenizer.
        block: the most tokens of a row that the model reads.
        name: its weights: a folder, a GGUF file or a name of the Hugging Face hub; None: a fresh one from `config`.
        config: settings of a fresh one, {model_type: llama, hidden_size: 64, ...}.
        lora: {rank: 8, alpha: 16, targets: [q_proj, v_proj], dropout: 0.0}: train low-rank adapters (peft) alone.
        checkpointing: the share of the blocks that keep their inputs alone, and compute what is inside again when it is needed; True: all.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: transformers or peft is not installed; a model that cannot be loaded or has too few tokens or too short a
            context; targets that match no layer.
    """
    library = library_of("transformers", "hf")
    network = _made(library, config or {}, vocab, block) if name is None else _loaded(library, name)
    network.config.use_cache = False
    _check(network, name or "null", vocab, block)
    if checkpointing:
        _checkpointed(network, float(checkpointing))
    return network if lora is None else low_rank(network, lora, task_type="CAUSAL_LM")


def _made(library: Any, config: Mapping[str, Any], vocab: int, block: int) -> Any:
    settings = {"vocab_size": vocab, "max_position_embeddings": block, **config}
    kind = settings.pop("model_type", None) or "llama"
    try:
        made = library.AutoConfig.for_model(kind, **settings)
        return library.AutoModelForCausalLM.from_config(_without_dropout(made)).float()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"model.config={dict(config)} makes no model: {_line(error)}") from error


def _loaded(library: Any, name: str) -> Any:
    """A copy of its own: a run makes many learners, and a GGUF file takes half a minute to read."""
    place = Path(name).expanduser()
    changed = max((file.stat().st_mtime_ns for file in place.iterdir()), default=0) if place.is_dir() else 0
    return copy.deepcopy(_read(library, name, place.stat().st_mtime_ns if place.is_file() else changed)).train()


@functools.lru_cache(maxsize=1)
def _read(library: Any, name: str, _changed: int) -> Any:
    place = Path(name).expanduser()
    file = place.suffix == ".gguf"
    if not place.exists() and (file or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"model.name={name} does not exist: give a folder, a GGUF file or a hub name")
    where: str = str(place.parent) if file else str(place) if place.is_dir() else name
    given = {"gguf_file": place.name} if file else {}
    try:
        own = library.AutoConfig.from_pretrained(where, **given)
        return library.AutoModelForCausalLM.from_pretrained(
            where, config=_without_dropout(own), dtype=torch.float32, **given
        )
    except Exception as error:  # whatever a foreign file makes of the library
        raise ValueError(f"model.name={name} cannot be loaded: {_line(error)}") from error


def _without_dropout(config: Any) -> Any:
    """The configuration with every rate of dropout 0."""
    for key, value in list(config.to_dict().items()):
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def _checkpointed(network: Any, share: float) -> None:
    """The activations of so many of the blocks, evenly spread, are computed again."""
    if not 0 < share <= 1:
        raise ValueError(
            f"model.checkpointing={share:g} is a share of the blocks in (0, 1], true or false: set model.checkpointing=true"
        )
    settings = {"use_reentrant": True}
    if hasattr(network, "activation_checkpointing_enable"):
        network.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    network.disable_input_require_grads()  # only torch's own reentrant kind needs them; frozen embeddings then cost nothing
    marked = {m for m in network.modules() if getattr(m, "gradient_checkpointing", False)}
    blocks = [m for m in network.modules() if m in marked and marked.isdisjoint(list(m.modules())[1:])]
    for i, block in enumerate(blocks):
        block.gradient_checkpointing = int((i + 1) * share) > int(i * share)


def _check(network: Any, name: str, vocab: int, block: int) -> None:
    """Raises ValueError: the model cannot read the data's tokens, or not so many at once."""
    known = network.get_input_embeddings().num_embeddings
    if known < vocab:
        raise ValueError(
            f"model.name={name} knows {known} tokens and the data's tokenizer {vocab}: read the data by the model's own, "
            "data.tokenizer.name, or build a model for them, model.name=null"
        )
    if vocab < _NEAR * known:
        log.warning(
            "model.name=%s knows %d tokens and the data's tokenizer %d: they mean the same only if data.tokenizer.name is the model's own",
            name,
            known,
            vocab,
        )
    longest = getattr(network.config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest < block:
        raise ValueError(
            f"model.name={name} reads at most {longest} tokens and the data have rows of {block + 1}: set data.length={longest}"
        )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
