"""Other libraries' models of image-text pairs by name: CLIP of transformers, and open_clip. Each is an extra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.models.foreign import library_of

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the channels of the images that OpenAI's CLIP was trained on, which its successors kept."""


class ForeignPairs(nn.Module):
    """A foreign model of images [n, 3, H, W] in [0, 1] (or [n, 1, H, W]) and of tokens [n, length] as our encoders give them.

    Our tokens are those of the model's own tokenizer.json plus 1, so that 0 can be the padding (`data.tokens=FILE`). Behind a
    text's last token, or in its place where the text is too long, stands the model's end of text, which it reads a text at.

    Args:
        network: the model.
        embed: (images, tokens, bool tokens that are there) -> (unit embeddings, unit embeddings, scale [], ...).
        size: pixels of a side that images are resized to.
        end: the model's token at the end of a text.
        context: tokens of a text that the model wants; None: any number.
    """

    def __init__(
        self,
        network: nn.Module,
        embed: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
        size: int,
        end: int,
        context: int | None,
    ) -> None:
        super().__init__()
        self.network, self.embed, self.size, self.end, self.context = network, embed, size, end, context

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """(images' embeddings [n, D], texts' [n, D], scale [] and, where the model has one, bias [])."""
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        mean, deviation = (images.new_tensor(x).view(-1, 1, 1) for x in (_MEAN, _DEVIATION))
        context = tokens.shape[1] + 1 if self.context is None else self.context
        tokens = F.pad(tokens, (0, max(context - tokens.shape[1], 0)))[:, :context]
        last = (tokens != 0).sum(1).clamp(max=context - 1)
        place = torch.arange(context, device=tokens.device)
        ended = (tokens - 1).clamp(min=0).where(place != last[:, None], self.end)
        return self.embed((images - mean) / deviation, ended, place <= last[:, None])


def hf_clip(
    input_shape: Sequence[int],
    vocab: int,
    length: int,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> ForeignPairs:
    """A CLIP of transformers, with weights from `name` (a hub name or a folder) or freshly made from `config`.

    Args:
        input_shape: (channels, H, W) of the images.
        vocab: number of our tokens, the padding 0 included.
        length: tokens of the longest text.
        name: of the model.
        config: settings of a fresh one, without a name: {"text_config": {...}, "vision_config": {...}, "projection_dim": 64}.

    Raises:
        ValueError: transformers is not installed, a model that cannot be loaded, or one with too few tokens or too short texts.
    """
    library = library_of("transformers", "hf")
    try:
        if name is not None:
            network = library.CLIPModel.from_pretrained(name, dtype=torch.float32)
        else:
            shape = {"image_size": max(input_shape[-2:])}
            texts = {"vocab_size": vocab + 1, "eos_token_id": vocab, "max_position_embeddings": length + 1}
            own = dict(config or {})
            vision = {**shape, **own.pop("vision_config", {})}
            text = {**texts, **own.pop("text_config", {})}
            network = library.CLIPModel(library.CLIPConfig(text_config=text, vision_config=vision, **own))
    except (OSError, ValueError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.name={name} cannot be made into a CLIP: {said}") from error
    text = network.config.text_config
    _check(f"model.name={name}", vocab, text.vocab_size, length + 1, text.max_position_embeddings)

    def embed(images: Tensor, tokens: Tensor, there: Tensor) -> tuple[Tensor, ...]:
        found = network(input_ids=tokens, pixel_values=images, attention_mask=there.long())
        return found.image_embeds, found.text_embeds, network.logit_scale.exp()

    return ForeignPairs(network, embed, network.config.vision_config.image_size, text.eos_token_id, None)


def open_clip(
    input_shape: Sequence[int], vocab: int, length: int, name: str = "ViT-B-32", pretrained: str | None = None
) -> ForeignPairs:
    """A model of open_clip (pip install 'metagradient[clip]').

    Args:
        input_shape: (channels, H, W) of the images.
        vocab: number of our tokens, the padding 0 included.
        length: tokens of the longest text.
        name: as `open_clip.list_models()` has it.
        pretrained: the weights, a file or one of `open_clip.list_pretrained()`, which open_clip downloads; None: fresh ones.

    Raises:
        ValueError: open_clip is not installed, has no such model, or one with too few tokens or too short texts.
    """
    library = library_of("open_clip", "clip")
    try:
        network = library.create_model(name, pretrained=pretrained, precision="fp32")
    except RuntimeError as error:
        near = [each for each in library.list_models() if each.split("-")[0] == name.split("-")[0]][:6]
        raise ValueError(f"open_clip has no model {name!r} ({error}); near it: {', '.join(near) or 'none'}") from error
    return of_open_clip(network, f"model.name={name}", vocab, length)


def of_open_clip(network: Any, said: str, vocab: int, length: int) -> ForeignPairs:
    """A network of open_clip's; `said` is what messages call it."""
    _check(said, vocab, network.vocab_size, length + 1, network.context_length)
    size = network.visual.image_size
    for module in network.modules():  # a buffer of floats would be state of the run, and differentiated
        if (mask := module._buffers.pop("attn_mask", None)) is not None:
            module.attn_mask = nn.Parameter(mask, requires_grad=False)

    def embed(images: Tensor, tokens: Tensor, there: Tensor) -> tuple[Tensor, ...]:
        a, b = network.encode_image(images, normalize=True), network.encode_text(tokens, normalize=True)
        bias = () if getattr(network, "logit_bias", None) is None else (network.logit_bias,)
        return a, b, network.logit_scale.exp(), *bias

    side = size[0] if isinstance(size, tuple | list) else size
    return ForeignPairs(network, embed, side, network.vocab_size - 1, network.context_length)


def _check(said: str, vocab: int, tokens: int, length: int, longest: int) -> None:
    """Raises ValueError where the data have more tokens, or longer texts, than the model reads."""
    if vocab - 1 > tokens:
        raise ValueError(
            f"{said} has {tokens} tokens, and the data {vocab - 1}: set data.tokens to the model's tokenizer.json"
        )
    if length > longest:
        raise ValueError(f"{said} reads {longest} tokens of a text, its end included: set data.length={longest - 1}")
