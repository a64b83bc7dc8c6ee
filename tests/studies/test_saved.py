"""A run directory is read back; what its configuration names is called only where it is ours, or trusted."""

from pathlib import Path

import pytest
import torch
import yaml

import metagradient as mg
from metagradient.errors import UserError
from metagradient.models.weights import load_weights, read_weights, save_weights

DIGITS = {"_target_": "metagradient.data.digits", "train": 40, "validation": 10, "test": 10, "seed": 0}


def folder(place: Path, **config: object) -> Path:
    (place / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "data": DIGITS, **config}))
    return place


@pytest.mark.parametrize(
    "data",
    [
        {"_target_": "os.system", "command": "touch pwned"},
        {"_target_": "metagradient.studies.setup.os.system", "command": "touch pwned"},  # by way of a module of ours
        {
            "_target_": "metagradient.files.write_text",
            "path": {"_target_": "pathlib.Path", "_args_": ["pwned"]},
            "text": "",
        },
        {**DIGITS, "corruption": [{"_target_": "os.system", "command": "touch pwned"}]},
        {**DIGITS, "seed": "${oc.decode:'{_target_: os.system, command: touch pwned}'}"},
        "${oc.decode:'{_target_: os.system, command: touch pwned}'}",
    ],
    ids=["a program", "by way of ours", "a file", "deep inside", "worked out", "worked out whole"],
)
def test_nothing_foreign_is_called_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: object) -> None:
    monkeypatch.chdir(tmp_path)
    saved = mg.load(folder(tmp_path, data=data))
    with pytest.raises(UserError, match=r"if you trust it, mg\.load\(\.\.\., trust=True\)"):
        saved.data()
    assert not (tmp_path / "pwned").exists()


def test_a_program_elsewhere_in_the_configuration_is_seen(tmp_path: Path) -> None:
    saved = mg.load(folder(tmp_path, model={"_target_": "os.system"}))
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(UserError, match=r"names os\.system"):
        saved.learner()


def test_ours_is_called_and_others_where_they_are_trusted(tmp_path: Path) -> None:
    assert len(mg.load(folder(tmp_path)).data().train["y"]) == 40
    data = {"_target_": "builtins.dict", "a": 1}
    assert mg.load(folder(tmp_path, data=data), trust=True).data() == {"a": 1}


@pytest.mark.parametrize("content", ["[1]", "a: &a [*a]", "a: !!python/name:os.system x"])
def test_a_damaged_folder_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        mg.load(tmp_path)


def test_a_damaged_model_is_seen(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    path = tmp_path / "artifacts" / "model.safetensors"
    save_weights(model.state_dict(), path)
    assert read_weights(path).keys() == {"weight", "bias"}
    assert torch.equal(mg.load(folder(tmp_path)).tensors(path.name)["weight"], model.weight)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        load_weights(model, path)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        mg.load(tmp_path).tensors(path.name)
