"""Weights are read from every usual kind of file, into the model that they belong to and no other."""

import json
import os
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metagradient.models import load_weights, read_weights


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


class Lit(lightning.LightningModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = net(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def held(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: x.clone() for name, x in model.state_dict().items()}


def safetensors(folder: Path) -> Path:
    save_file(held(net(1)), folder / "w.safetensors")
    return folder / "w.safetensors"


def torch_file(folder: Path) -> Path:
    torch.save(held(net(1), "module."), folder / "w.pt")
    return folder / "w.pt"


def huggingface(folder: Path) -> Path:
    save_file(held(net(1), "network."), folder / "model.safetensors")
    return folder


def shards(folder: Path) -> Path:
    tensors = held(net(1))
    first = dict(list(tensors.items())[:3])
    save_file(first, folder / "model-1.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in first}, folder / "model-2.safetensors")
    where = {name: f"model-{1 if name in first else 2}.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def run_directory(folder: Path) -> Path:
    (folder / "artifacts").mkdir()
    save_file(held(net(1), "model."), folder / "artifacts" / "model.safetensors")
    return folder


def lightning_file(folder: Path) -> Path:
    module, quiet = Lit(1), {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=0, accelerator="cpu", enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, [torch.zeros(2, 3)])
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.parametrize("write", [safetensors, torch_file, huggingface, shards, run_directory, lightning_file])
def test_every_kind_of_checkpoint_fills_the_model(write: Any, tmp_path: Path) -> None:
    path, model = write(tmp_path), net(0)
    load_weights(model, path)
    for x, y in zip(model.state_dict().values(), net(1).state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_a_learner_takes_the_weights_of_its_model(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net(0)

    outer = Outer()
    load_weights(outer, safetensors(tmp_path))
    assert torch.equal(outer.model[0].weight, net(1)[0].weight)


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": held(net(1)), "extra": Harmful()}, "w.ckpt")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_weights("w.ckpt")
    assert not Path("harmed").exists()


def test_wrong_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
        load_weights(net(), tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="folder without weights"):
        load_weights(net(), tmp_path)
    with pytest.raises(ValueError, match=r"'0\.bias' has shape \[4\].*\[5\]"):
        load_weights(net(width=5), safetensors(tmp_path))
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"of another model: it lacks 0\.bias.*and 6 more; it has other\.weight"):
        load_weights(net(), tmp_path / "x.safetensors")
    broken = held(net(1))
    broken["0.weight"][0, 0] = torch.nan
    save_file(broken, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"'0\.weight' has numbers that are not finite"):
        load_weights(net(), tmp_path / "nan.safetensors")
    whole = safetensors(tmp_path).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(net(), tmp_path / "cut.safetensors")
