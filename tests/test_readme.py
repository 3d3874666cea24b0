"""The README says what is so: commands parse, files and flags exist, line counts are true, every logged metric is explained."""
import contextlib
import importlib
import re
import shlex
from pathlib import Path

import pytest

from nanoverify import findings
from nanoverify.evaluate import metrics
from nanoverify.study import read_table
from test_ppo import FOUR

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(part, comments=True) for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
            for line in block.replace("\\\n", " ").splitlines() for part in line.split("&&")]
OURS = sorted({command[2] if command[1] == "-m" else command[1].removesuffix(".py") for command in COMMANDS if command[:1] == ["python"]} - {"pytest"})


def help_of(name: str, capsys) -> str:
    if name.startswith("tests/"):
        return (ROOT / f"{name}.py").read_text(encoding="utf-8")
    with contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    return capsys.readouterr().out


def test_there_are_commands():
    """Bug: the blocks are not found, and everything below passes for want of anything to check."""
    assert {"build_data", "train_sft", "train_rl", "nanoverify.evaluate", "nanoverify.study", "nanoverify.pretrain"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_flags_exist(name, capsys):
    """Bug: a command of the README names a script, module or flag that is gone."""
    text = help_of(name, capsys)
    for command in COMMANDS:
        if command[:1] == ["python"] and name in (command[1].removesuffix(".py"), command[2] if len(command) > 2 else ""):
            for flag in (word for word in command if word.startswith("--")):
                assert re.search(rf"{flag}\b", text), " ".join(command)


def test_flags_in_the_text_exist(capsys):
    """Bug: prose explains a flag that no script has."""
    texts = " ".join(help_of(name, capsys) for name in OURS)
    for flag in set(re.findall(r"`(--[a-z-]+)", README)):
        assert re.search(rf"{flag}\b", texts), flag


def test_files_and_line_counts():
    """Bug: the file table names what is gone, forgets what is there, or its counts have aged."""
    table = dict(re.findall(r"^\| `([\w/.]+\.py)` \| (\d+) \|", README, re.MULTILINE))
    there = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.py"), *ROOT.glob("nanoverify/*.py"))} - {"nanoverify/__init__.py"}
    assert set(table) == there
    for path, count in table.items():
        real = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        assert abs(int(count) - real) <= 0.1 * real, f"{path} has {real} lines"


def test_tables_are_those_of_the_study():
    """Bug: a figure of the results was typed, or is that of an earlier table."""
    known = findings.tables(read_table(ROOT / "results" / "study.csv")).splitlines()
    lines = [line for line in README.split("## What comes out")[1].split("## Run it")[0].splitlines() if line.startswith("| ")]
    assert len(lines) > 30 and [line for line in lines if line not in known] == []


def test_metrics_are_explained():
    """Bug: a metric is logged that the glossary does not know."""
    for name in metrics(FOUR).keys() - {"count"}:
        assert f"`{name}`" in README, name
    logged = re.findall(r'"(\w+)":', (ROOT / "train_rl.py").read_text(encoding="utf-8").split("line = {")[1].split("if args.eval_every")[0])
    for name in set(logged) - {"step"}:
        assert f"`{name}`" in README, name
