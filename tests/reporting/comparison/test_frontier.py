"""The figure of a sweep over rules: a panel for each preset, a curve for each seed."""

from pathlib import Path

from omegaconf import OmegaConf

from metagradient.reporting.comparison import frontier


def test_a_sweep_is_read_and_drawn(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for job, preset in enumerate(["digits", "digits", "network"]):
        (tmp_path / str(job) / "artifacts").mkdir(parents=True)
        (tmp_path / str(job) / ".hydra").mkdir()
        (tmp_path / str(job) / "artifacts" / "frontier.csv").write_text(
            f"rule,setting,saved,error_ratio\nperiod,2,2,{100 + job}\nperiod,5,4,20\ntarget,.1,3,50\ntarget,.2,5,9\n"
        )
        choices = {"hydra": {"runtime": {"choices": {"experiment": preset}}}}
        OmegaConf.save(OmegaConf.create(choices), tmp_path / str(job) / ".hydra" / "hydra.yaml")
    seen, draw = [], frontier.frontier
    monkeypatch.setattr(frontier, "frontier", lambda panels: (seen.append(panels), draw(panels))[1])
    frontier.SweepFrontier().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    fixed, adaptive = [(2.0, 100.0), (4.0, 20.0)], [(3.0, 50.0), (5.0, 9.0)]
    assert seen[0]["digits"] == {
        "fixed period": [fixed, [(2.0, 101.0), (4.0, 20.0)]],
        "adaptive": [adaptive, adaptive],
    }
    assert list(seen[0]) == ["digits", "network"]
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def test_a_sweep_without_frontiers_draws_nothing(tmp_path: Path) -> None:
    frontier.SweepFrontier().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert not list(tmp_path.iterdir())
