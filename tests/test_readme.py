"""README and docs/ say what is so: commands parse, files, links and flags exist, line counts are
true, every logged metric is explained."""
import contextlib
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from test_ppo import FOUR

from nanoverify.evaluate import metrics
from nanoverify.study import findings
from nanoverify.study.study import read_table

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())
COMING = {"docs/data.md", "docs/checkpoints.md", "docs/grading.md"}  # pages that may be missing
UNNAMED = {"nanoverify/tour.py"}  # files that the README may leave out
READ = 4200  # lines of the files to read, as the README says

BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
INLINE = re.findall(r"`(python [^`\n]+)`", TEXT)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()] + INLINE
ALL = [shlex.split(part, comments=True) for line in LINES for part in line.split("&&")]
# /usr/bin/time python ...
COMMANDS = [words[words.index("python"):] for words in ALL if "python" in words]


def program(command: list[str]) -> str:
    """'train_rl' or 'nanoverify.ask'; 'pytest'."""
    return command[2] if command[1] == "-m" else command[1].removesuffix(".py")


OURS = sorted({program(command) for command in COMMANDS} - {"pytest"})


def help_of(name: str, capsys) -> str:
    if name == "nanoverify.bench.handover":  # it imports packages of another extra
        return (ROOT / "nanoverify" / "bench" / "handover.py").read_text(encoding="utf-8")
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # a package
        module = importlib.import_module(f"{name}.__main__")
    with contextlib.suppress(SystemExit):
        module.main(["--help"])
    return capsys.readouterr().out


def test_there_are_commands():
    """Bug: the blocks are not found, and everything below passes because there is nothing to
    check."""
    assert {"build_data", "train_sft", "train_rl"} <= set(OURS)
    modules = ("ask", "report", "evaluate", "pretrain", "study", "findings", "study.figures",
               "bench", "bench.kill", "export")
    assert {f"nanoverify.{module}" for module in modules} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_flags_exist(name, capsys):
    """Bug: a command of a page names a script, module or flag that is gone."""
    text = help_of(name, capsys)
    for command in COMMANDS:
        if program(command) == name:
            for flag in (word for word in command if word.startswith("--")):
                assert re.search(rf"{flag}\b", text), " ".join(command)


def test_the_menu_is_complete(capsys):
    """Bug: `python -m nanoverify` names a command that is gone, or leaves one of the README out."""
    commands = re.findall(r"python (?:-m )?([\w.]+)", help_of("nanoverify", capsys))
    named = {command.removesuffix(".py") for command in commands}
    assert len(named) == 13 and all(importlib.util.find_spec(command) for command in named)
    assert set(re.findall(r"python -m (nanoverify\.\w+)", README)) <= named


def test_flags_in_the_text_exist(capsys):
    """Bug: prose explains a flag that no script has."""
    texts = " ".join(help_of(name, capsys) for name in OURS)
    for flag in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        assert re.search(rf"{flag}\b", texts), flag


def test_quick_start_comes_first():
    """Bug: the three commands move down after results or explanations."""
    before = README.split("correction.svg)")[1].split("python train_rl.py")[0]
    assert len(before.split()) <= 80
    assert "python build_data.py" in before and "python train_sft.py" in before


def test_readme_stays_short():
    """Bug: results and details creep back from docs/ into the README."""
    assert len(README.split()) <= 1800
    assert len(re.findall(r"^\|---", README, re.MULTILINE)) <= 2


def test_the_test_command_is_that_of_ci():
    """Bug: the README and continuous integration test in different ways."""
    command = "pip install -q -e '.[test]' && python -m pytest -q"
    assert command in README and command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_files_and_line_counts():
    """Bug: the file table names what is gone, its counts have aged, or a module is nowhere
    mentioned."""
    table = dict(re.findall(r"^\| `([\w/.]+\.py)` \| (\d+) \|", README, re.MULTILINE))
    assert {"build_data.py", "train_sft.py", "train_rl.py"} < set(table) and len(table) == 15
    real = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in table}
    for path, count in table.items():
        assert abs(int(count) - real[path]) <= 0.1 * real[path], f"{path} has {real[path]} lines"
    assert f"about {READ:,} lines" in README and abs(sum(real.values()) - READ) <= 0.05 * READ
    for path in (*ROOT.glob("*.py"), *ROOT.glob("nanoverify/*.py")):
        if path.name != "__init__.py" and str(path.relative_to(ROOT)) not in UNNAMED:
            assert f"`{path.relative_to(ROOT)}`" in README, path.name


def test_paths_exist():
    """Bug: a page names a file of this project that is gone or was moved."""
    named = set(re.findall(r"`((?:nanoverify|tests|docs)/[\w/.-]+|\w+\.py)`", TEXT))
    assert "tests/test_puzzles.py" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    for test in re.findall(r"`(test_\w+)` in `(tests/\w+\.py)`", TEXT):
        assert f"def {test[0]}(" in (ROOT / test[1]).read_text(encoding="utf-8"), test


def test_details_name_their_tests():
    """Bug: a detail of PPO has no test, or one in a form that the test above passes over."""
    page = PAGES["docs/details.md"]
    details = re.split(r"^### \d+\. ", page, flags=re.MULTILINE)[1:]
    pair = r"`test_\w+` in `tests/\w+\.py`"
    assert len(details) == 29
    assert [detail.splitlines()[0] for detail in details if not re.search(pair, detail)] == []
    assert len(re.findall(pair, page)) == len(re.findall(r"`test_\w+`", page)) >= 29


def test_links_exist():
    """Bug: a link leads to a page, picture or file that is not there."""
    links = {str(((ROOT / page).parent / link).resolve().relative_to(ROOT))
             for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert {"correction.svg", "docs/results.md"} <= links
    assert [link for link in sorted(links - COMING) if not (ROOT / link).exists()] == []
    assert {page for page in PAGES if page != "README.md"} <= links, "a page that nothing links to"


def test_the_grader_does_what_the_readme_says():
    """Bug: the three lines of Python fail, or give something else than the comments say."""
    importing, *lines = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].splitlines()
    names = {}
    exec(importing, names)
    assert [str(eval(line, names))
            for line in lines] == [line.split("# ")[1].split(";")[0] for line in lines]


def test_tables_are_those_of_the_study():
    """Bug: what is between these two comments was typed, or is from an earlier study."""
    for block in re.findall(r"<!-- findings -->\n(.*?)<!-- end -->", TEXT, re.DOTALL):
        known = findings.tables(read_table(ROOT / "results" / "study.csv")).splitlines()
        assert [line for line in block.splitlines() if line.startswith("| ")
                and line not in known] == []


def test_metrics_are_explained():
    """Bug: a metric is logged that the glossary does not know."""
    explained = PAGES["docs/metrics.md"]
    for name in metrics(FOUR).keys() - {"count"}:
        assert f"`{name}`" in explained, name
    for script in ("train_rl.py", "train_sft.py"):
        source = (ROOT / script).read_text(encoding="utf-8")
        logged = re.findall(r'"(\w+)":', source.split("line = {")[1].split("}\n")[0])
        for name in set(logged) - {"step"}:
            assert f"`{name}`" in explained, name


def test_lines_are_short():
    """Bug: text that a terminal or a diff shows badly. Table rows cannot be wrapped."""
    assert [line for line in TEXT.splitlines() if len(line) > 100
            and not line.startswith("|")] == []
