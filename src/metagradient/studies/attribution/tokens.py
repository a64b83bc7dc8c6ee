"""Texts token by token: the exact scores of single tokens, and how pages show them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient import attribution as at
from metagradient.data import TextSplits
from metagradient.evaluation import run_digest, take, token_losses_of
from metagradient.reporting import Record
from metagradient.reporting.pages.report import Example, Tokens
from metagradient.studies.attribution.methods import replays_of, settings_of
from metagradient.studies.attribution.task import Task
from metagradient.training.run import Progress
from metagradient.training.tokens import target_counts, target_mask


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Exact scores of the training texts' target tokens, [sum L_i, q], text after text, and what they cost in trainings."""

    values: Tensor
    counts: Tensor
    cost: float

    def of(self, rows: Iterable[int], query: int) -> dict[int, list[float]]:
        """Those of some texts for one query, by text."""
        starts = (self.counts.cumsum(0) - self.counts).tolist()
        ends = self.counts.cumsum(0).tolist()
        return {i: self.values[starts[i] : ends[i], query].tolist() for i in rows}


def score_tokens(cfg: DictConfig, task: Task, folder: Path, progress: Progress) -> TokenScores:
    """Exact scores of single tokens at w = 1, in `token_scores.safetensors`: found again where a run was cut short."""
    exact = replace(
        at.Method(at.MethodSpec.parse("exact"), replace(settings_of(cfg), store=None)).exact(task, progress=progress),
        **replays_of(cfg, folder),
    )
    weights = exact.token_weights()
    about = f"{run_digest(task.learner, task.batches, task.queries)} tokens"
    asked = len(task.queries["tokens"])
    file = at.ScoreFile(folder / "token_scores.safetensors", len(weights.value), asked, about)
    if not file.complete:
        for block, cost in exact.token_columns(task.queries, file.done):
            file.write_columns(block, cost)
    return TokenScores(file.scores, weights.counts, file.cost)


def tell(record: Record, splits: TextSplits) -> None:
    """token_rows.csv: what each row of token_scores.safetensors is of."""
    rows = []
    for i, one in tokens_of(splits, "train", range(len(splits.train["tokens"]))).items():
        rows += [[i, j, piece] for j, (piece, target) in enumerate(zip(one.pieces, one.targets, strict=True)) if target]
    record.csv("token_rows", ["train_index", "position", "token"], rows)


def tokens_of(splits: TextSplits, split: str, rows: Sequence[int]) -> dict[int, Tokens]:
    """Texts of a split by their place in it, without their padding; line breaks are shown as a mark."""
    table = take(getattr(splits, split), torch.tensor(list(rows), dtype=torch.int64))
    targets = target_mask(table)
    lengths = table["mask"].sum(1).tolist() if "mask" in table else [table["tokens"].shape[1]] * len(rows)
    found = {}
    for row, tokens, there, length in zip(rows, table["tokens"], targets, lengths, strict=True):
        pieces = splits.tokenizer.pieces(tokens[:length].tolist())
        found[row] = Tokens(tuple(piece.replace("\n", "⏎") for piece in pieces), tuple(there[:length].tolist()))
    return found


def by_tokens(
    splits: TextSplits, task: Task, train: Mapping[int, Example], queries: Mapping[int, Example]
) -> tuple[dict[int, Example], dict[int, Example]]:
    """Training texts and queries, by index, as pages show them token by token; those of the queries with their losses."""
    read, asked = tokens_of(splits, "train", list(train)), tokens_of(splits, "test", list(queries))
    if isinstance(task.learner, mg.LanguageModel):
        fields = take(task.queries, torch.tensor(list(queries)))
        losses = token_losses_of(task.learner, task.state, fields)[target_mask(fields)]
        for i, own in zip(queries, losses.split(target_counts(fields).tolist()), strict=True):
            asked[i] = replace(asked[i], losses=tuple(own.tolist()))
    return (
        {i: replace(one, tokens=read[i]) for i, one in train.items()},
        {i: replace(one, tokens=asked[i]) for i, one in queries.items()},
    )
