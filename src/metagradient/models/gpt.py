"""A small causal language model whose every operation has a second derivative."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        # [n, tokens, 3, heads, width / heads] -> three of [n, heads, tokens, width / heads]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: fused scaled_dot_product_attention has no second derivative.
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        # The mask is made here because a buffer would be training state, copied into every checkpoint.
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Positions(nn.Embedding):
    """Adds the embedding of each position, in a module of its own, whose input and output tell its gradient."""

    def forward(self, input: Tensor) -> Tensor:
        return input + self.weight[: input.shape[1]]


class GPT(nn.Module):
    """A causal transformer: learned positions, pre-norm blocks, GELU, no dropout.

    Maps tokens [n, t] (int64, t <= block) to next-token logits [n, t, vocab]; logits at position i depend on
    tokens 0..i only. `tied` shares the token embedding with the output map. Initialised as GPT-2: N(0, 0.02),
    the maps that write into the residual stream divided by sqrt(2 layers).

    Raises:
        ValueError: `heads` does not divide `width`, or a sequence is longer than `block`.
    """

    def __init__(
        self,
        vocab: int,
        block: int = 128,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"model.width must be a multiple of model.heads; got width={width}, heads={heads}; "
                f"set for example model.width={heads * max(1, width // heads)}"
            )
        self.block = block
        self.tokens = nn.Embedding(vocab, width)
        self.positions = _Positions(block, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(("attention.out", "mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [n, t, vocab] of tokens [n, t]."""
        return self.head(self.states(tokens))

    def states(self, tokens: Tensor) -> Tensor:
        """What the output map reads, [n, t, width]."""
        length = tokens.shape[1]
        if length > self.block:
            raise ValueError(f"GPT reads at most {self.block} tokens; got {length}; build it with block={length}")
        return self.norm(self.blocks(self.positions(self.tokens(tokens))))


class SentenceClassifier(GPT):
    """A GPT whose states, averaged over the words of a sentence, give the logits of its class.

    Maps tokens [n, *input_shape] (int64, 0 after the end of a sentence) to [n, classes]. Attention is causal, so no word
    sees the padding behind it.
    """

    def __init__(
        self, input_shape: Sequence[int], classes: int, vocab: int, layers: int = 2, heads: int = 4, width: int = 64
    ) -> None:
        super().__init__(vocab, input_shape[0], layers, heads, width)
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [n, classes] of tokens [n, t]."""
        said = (tokens != 0).unsqueeze(-1)
        mean = (self.states(tokens) * said).sum(1) / said.sum(1).clamp(min=1)
        return self.head(mean)
