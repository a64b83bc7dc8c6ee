"""What is read is data: no way of reading a file that can run what it holds."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPE = "evaluation/pool.py"
"""Jobs go from our own process to our own workers by a pipe of theirs, the one pickle there is."""
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    "read_pickle", "to_pickle", "unsafe_load", "full_load", "load_all", "load_from_checkpoint",
}  # fmt: skip


def dangers(text: str) -> Iterator[str]:
    """What a source could run of a file's content, a line each."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False":
                yield f"{name} with what a file may run"
            if name == "yaml.load" and given.get("Loader") != "_Loader":
                yield "yaml.load with another loader"
            if name in ("eval", "exec", "compile") or name.rpartition(".")[2] in CALLS:
                yield name


def found(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.match("models/weights.py"):  # torch.load's own refusal is a class of pickle's
        text = text.replace("import pickle\n", "")
        assert text.count("pickle.") == text.count("pickle.UnpicklingError")
    return list(dangers(text))


def test_no_source_reads_what_can_run() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    guilty = {path.name: found(path) for path in files if not path.match(PIPE) and found(path)}
    assert guilty == {}
    assert found(ROOT / "src" / "metagradient" / PIPE) == ["import pickle"]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_such_a_way_is_seen(line: str) -> None:
    assert list(dangers(line))


def test_a_way_that_reads_data_is_none() -> None:
    text = "torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\nre.compile('x')\nmodel.eval"
    assert list(dangers(text)) == []
