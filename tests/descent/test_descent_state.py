"""A descent's saves survive kills at any moment and damage to the newest."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from metagradient.descent.state import DescentState
from metagradient.errors import UserError

N = 200_000  # long enough to be killed within


def state(metastep: int) -> DescentState:
    x = torch.full((N,), float(metastep))
    made = DescentState(
        x, metastep, {"m": -x}, accepted_x=x + 1, accepted_memory={"m": x}, cost=0.1 * metastep, identity="a"
    )
    made.offer(0.5)
    return made


def equal(a: DescentState, b: DescentState) -> bool:
    def parts(made: DescentState) -> dict[str, object]:
        return {k: str(v) for k, v in dataclasses.asdict(made).items()}

    return parts(a) == parts(b) and torch.equal(a.x, b.x)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state(3).save(tmp_path / "d.safetensors")
    assert equal(DescentState.load(tmp_path / "d.safetensors"), state(3))


@pytest.mark.parametrize("damage", ["one bit", "cut short", "missing"])
def test_a_damaged_newest_save_falls_back_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.safetensors"
    state(1).save(path)
    state(2).save(path)
    content = bytearray(path.read_bytes())
    match damage:
        case "one bit":
            content[-5] ^= 1
            path.write_bytes(content)
        case "cut short":
            path.write_bytes(content[: len(content) // 2])
        case "missing":  # killed between the two renamings
            path.unlink()
    assert DescentState.saved_at(path)
    assert equal(DescentState.load(path), state(1))
    assert "going on from the save before it" in caplog.text


def test_two_damaged_saves_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    state(1).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="start anew with resume=null"):
        DescentState.load(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kill", range(10))
def test_a_kill_while_it_saves_leaves_a_whole_state(tmp_path: Path, kill: int) -> None:
    path = tmp_path / "d.safetensors"
    state(0).save(path)
    child = os.fork()
    if child == 0:
        for metastep in range(1, 100_000):
            state(metastep).save(path)
        os._exit(0)
    time.sleep(0.011 * (kill + 1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = DescentState.load(path)
    assert equal(found, state(found.metastep))
