"""The notebook of the lesson runs from top to bottom, and shows what its text says."""
import ast
import json
from pathlib import Path

NOTEBOOK = json.loads((Path(__file__).parents[1] / "docs" / "lesson.ipynb").read_text("utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_only_calls_the_package():
    """Bug: the notebook has code of its own, which ages; outputs of an old run are in it."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
    for cell in CELLS:
        assert not [node for node in ast.walk(ast.parse(cell)) if isinstance(node, kinds)]
        assert max(map(len, cell.splitlines())) <= 100
    assert NOTEBOOK["nbformat"] == 4 and len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(
        NOTEBOOK["cells"])
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"])


def test_the_notebook_runs(elsewhere, capsys):
    """Bug: a name of the package is gone; no puzzle is corrected; the table has nothing to compare;
    a step makes what was worse than expected the likelier."""
    names, shown = {}, []
    for cell in CELLS:
        exec(cell, names)
        shown.append(capsys.readouterr().out)
    _, asked, compared, weighed, stepped, curve = shown
    assert "checks: 0" in asked
    assert "Let me try again." in compared and "final_accuracy" in compared
    table = [line.split() for line in weighed.splitlines()[2:] if line]
    assert {line[0] for line in table} == {"solve", "verify"} and len(table) >= 8
    advantages = [float(line[-1]) for line in table]
    assert min(advantages) < 0 < max(advantages)
    better, worse, _ = stepped.splitlines()
    assert float(better.split()[-1]) > float(worse.split()[-1])
    assert [line.split()[1] for line in curve.splitlines()] == ["1", "2", "3"]
