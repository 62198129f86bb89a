"""README and examples are run, so that they cannot be wrong."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from ggnn_ff import cli
from ggnn_ff.training.config import read_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = [ROOT / "README.md", *ROOT.glob("potentials/*/README.md"), *ROOT.glob("benchmarks/*/README.md")]


def commands(text: str) -> set[str]:
    """Those in a line of text, and those on a line of their own."""
    text = re.sub(r"`([^`\n]+)\n([^`\n]+)`", r"`\1 \2`", text)  # over two lines
    inline = re.findall(r"`(?:uv run )?(ggnn-ff [^`]+)`", text)
    return {*inline, *re.findall(r"^ *(?:uv run )?(ggnn-ff [^#\n]+)", text, re.M)}


COMMANDS = sorted({line.strip() for page in PAGES for line in commands(page.read_text(encoding="utf8"))})


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_blocks_of_the_readme_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.random.seed(0)  # noqa: NPY002
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_documents_exist_with_their_options(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    if arguments:
        command.make_context(name, arguments)


def test_readme_has_commands() -> None:
    assert len(COMMANDS) >= 25


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 10


def test_the_example_configuration_is_valid() -> None:
    assert read_config(ROOT / "examples" / "ethanol.yaml").model.name == "painn"


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "potentials").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_recipes_are_valid(recipe: Path) -> None:
    data = read_config(recipe).data
    written = ("difference.xyz", "difference-train.xyz", "xtb.xyz", "many.xyz", "corrected.xyz")  # by the steps before
    assert data.train.name in ("train.xyz", *written)
    assert data.test is None or data.test.name == "test.xyz"
