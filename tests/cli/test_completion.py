"""Completion in the shells themselves, where they are installed."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metagradient.cli.completion import script
from metagradient.cli.errors import check_flags
from metagradient.errors import UserError

NAMES = ["selection", "schedule", "cost"]


def shell(name: str, program: str) -> list[str]:
    """What the program prints, word by word, with this environment's `metagradient` on the path."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on this machine")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [name, "-c", program], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def bash(*words: str) -> list[str]:
    line = " ".join(words)
    quoted = " ".join(f"'{word}'" for word in words)
    state = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}"
    return shell("bash", f'{script(NAMES)}\n{state}\n_metagradient\necho "${{COMPREPLY[@]}}"')


def test_bash_completes_experiments_groups_and_settings() -> None:
    assert sorted(bash("metagradient", "s")) == ["schedule", "selection"]
    assert bash("metagradient", "comp") == ["compare"]
    assert {"data=digits", "data=mnist"} <= set(bash("metagradient", "selection", "data="))
    assert "learner.optimizer.momentum=" in bash("metagradient", "selection", "learner.optimizer.mom")


def test_fish_completes_experiments_and_groups() -> None:
    source = f"{script(NAMES, 'fish')}\n"
    assert set(shell("fish", f"{source}complete -C 'metagradient s'")) >= {"schedule", "selection"}
    assert "data=mnist" in shell("fish", f"{source}complete -C 'metagradient selection data='")


def test_zsh_reads_the_script() -> None:
    assert shell("zsh", f"{script(NAMES, 'zsh')}\necho $_comps[metagradient]") == ["_metagradient"]


def test_zsh_completes_a_line_that_is_typed(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh on this machine")
    (tmp_path / "script").write_text(script(NAMES, "zsh"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process, terminal = pty.fork()
    if process == 0:  # a terminal of its own, as the line editor wants one
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "PATH": path, "TERM": "dumb", "HOME": str(tmp_path)})
    try:
        os.write(terminal, f"source {tmp_path / 'script'}; echo read''y\n".encode())
        shown = typed(terminal, "ready")
        for line, whole in (("sel\t", "selection"), (" data=mni\t", "data=mnist")):
            os.write(terminal, f"{'' if line[0] == ' ' else 'metagradient '}{line}".encode())
            shown += typed(terminal, whole)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def typed(terminal: int, wanted: str) -> str:
    """What a terminal shows until it shows `wanted`."""
    shown, end = "", time.monotonic() + 40
    while wanted not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_other_shells_are_told_which_there_are() -> None:
    with pytest.raises(UserError, match="bash, zsh, fish, not 'tcsh'"):
        script(NAMES, "tcsh")


def test_a_setting_written_as_a_flag_is_told_how_it_is_written() -> None:
    with pytest.raises(UserError, match="written key=value: seed=3"):
        check_flags(["--seed", "3"])
