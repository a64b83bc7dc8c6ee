"""Other libraries' classifiers by name: timm, Hugging Face transformers, peft. Each is an extra, imported when it is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.models.foreign import library_of, low_rank

log = logging.getLogger(__name__)


def _channels(input_shape: Sequence[int]) -> int:
    if len(input_shape) not in (2, 3):
        raise ValueError(
            f"this model reads images [C, H, W] or [H, W], not {list(input_shape)}: choose images, data=digits"
        )
    return input_shape[0] if len(input_shape) == 3 else 1


class ImageClassifier(nn.Module):
    """A foreign network on images [n, C, H, W] or [n, H, W]: channels repeated and resized as it wants, logits [n, classes].

    Args:
        network: maps [n, channels, size, size] to logits, or to an object that holds them as `logits`.
        channels: 3 where a single one is to be repeated.
        size: pixels of a side, bilinearly interpolated; None: as they are.
    """

    def __init__(self, network: nn.Module, channels: int | None = None, size: int | None = None) -> None:
        super().__init__()
        self.network, self.channels, self.size = network, channels, size

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes]."""
        x = x.unsqueeze(1) if x.dim() == 3 else x
        if self.channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        found = self.network(x)
        return found if isinstance(found, Tensor) else found.logits


def timm(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    pretrained: bool = False,
    image_size: int | None = None,
    **settings: Any,
) -> ImageClassifier:
    """A timm model with a new head.

    Args:
        name: as `timm.list_models()` has it, "efficientnet_b0" for instance; "hf-hub:..." and local folders work too.
        input_shape: of an image, [C, H, W] or [H, W].
        classes: number of logits.
        pretrained: with its weights, which timm downloads; its first convolution is then made to fit C channels.
        image_size: pixels of a side that images are resized to.
        settings: more of `timm.create_model`.

    Raises:
        ValueError: timm is not installed, or has no such model.
    """
    library = library_of("timm", "timm")
    try:
        network = library.create_model(
            name, pretrained=pretrained, num_classes=classes, in_chans=_channels(input_shape), **settings
        )
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        near = library.list_models(f"*{name.split('_')[0]}*")[:6]
        raise ValueError(f"timm has no model {name!r}; near it: {', '.join(near) or 'none'}") from error
    return ImageClassifier(network, size=image_size)


def hf_image_classifier(
    input_shape: Sequence[int],
    classes: int,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
) -> ImageClassifier:
    """A Hugging Face image classifier, with weights from `name` (a hub name or a folder) or freshly made from `config`."""
    shape = {"num_channels": _channels(input_shape), "image_size": max(input_shape[-2:])} if name is None else {}
    network = _huggingface("AutoModelForImageClassification", classes, name, {**shape, **(config or {})}, lora)
    wanted = getattr(network.config, "num_channels", None)
    size = getattr(network.config, "image_size", None)
    return ImageClassifier(network, wanted, size if isinstance(size, int) else None)


class TextClassifier(nn.Module):
    """A foreign network on tokens [n, L], `padding` after the end of a text, which it does not look at."""

    def __init__(self, network: nn.Module, padding: int = 0) -> None:
        super().__init__()
        self.network, self.padding = network, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [n, classes]."""
        return self.network(input_ids=tokens, attention_mask=(tokens != self.padding).long()).logits


def hf_text_classifier(
    input_shape: Sequence[int],
    classes: int,
    vocab: int,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    padding: int = 0,
) -> TextClassifier:
    """A Hugging Face text classifier, with weights from `name` (a hub name or a folder) or freshly made from `config`.

    Args:
        input_shape: [L], the longest text.
        classes: number of logits.
        vocab: number of different tokens in the data.
        name: a model whose vocabulary is that of the data.
        config: settings of a fresh one, without a name: `model_type`, widths, layers.
        lora: {rank, alpha, targets}: train low-rank adapters (peft) and the head alone.
        padding: the token after the end of a text.

    Raises:
        ValueError: transformers or peft is not installed, the vocabularies differ, texts that are too long for the model.
    """
    shape = {"vocab_size": vocab, "pad_token_id": padding} if name is None else {}
    network = _huggingface("AutoModelForSequenceClassification", classes, name, {**shape, **(config or {})}, lora)
    if name is not None:
        log.warning(
            "model.name=%s reads the data's own token numbers: they mean what they meant in its training only if it was trained on this "
            "vocabulary (data=sst2 numbers words by their frequency, no tokenizer does)",
            name,
        )
    if network.config.vocab_size != vocab:
        raise ValueError(
            f"model.name={name} knows {network.config.vocab_size} tokens and the data have {vocab}, so they do not mean the same: "
            "build one for these data, model.name=null"
        )
    longest = getattr(network.config, "max_position_embeddings", None)
    if longest is not None and input_shape[0] > longest:
        raise ValueError(
            f"the model reads at most {longest} tokens and the data have {input_shape[0]}: set data.length={longest}"
        )
    return TextClassifier(network, padding)


def _huggingface(
    kind: str, classes: int, name: str | None, config: Mapping[str, Any], lora: Mapping[str, Any] | None
) -> Any:
    library = library_of("transformers", "hf")
    if name is not None:
        network = getattr(library, kind).from_pretrained(name, num_labels=classes)
    else:
        settings = dict(config)
        made = library.AutoConfig.for_model(settings.pop("model_type", None) or "bert", num_labels=classes, **settings)
        network = getattr(library, kind).from_config(made)
    if lora is None:
        return network
    return low_rank(network, lora, [name for name in ("classifier", "score") if hasattr(network, name)])
