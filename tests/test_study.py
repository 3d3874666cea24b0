"""The study's own arithmetic; the scripts it runs have tests of their own."""
import csv
import json

import pytest

import build_data
import train_rl
from nanoverify import study
from nanoverify.evaluate import COLUMNS
from nanoverify.files import write_json, write_jsonl
from nanoverify.problems import Problem
from nanoverify.trajectory import Action, Trajectory


def test_every_variant_parses():
    """Bug: an arm's flag was renamed, and the study stops after hours."""
    for flags in study.VARIANTS.values():
        train_rl.flags(["--seed", "1", "--model", "sft", *map(str, flags)])
    for styles in study.STYLES.values():
        build_data.flags(["--styles", *styles])
    assert set(study.CONTROLS) < set(study.ARMS)


def test_majority(monkeypatch, tmp_path):
    """Bug: the vote counts right answers, a tie goes to the last one, or the number of votes is not what RL's tokens pay for."""
    write_json(tmp_path / "evaluation.json", {"asked": {"test_count": 3}, "columns": {"base": {"tokens_per_response": 10.0}, "RL": {"tokens_per_response": 42.0}}})
    answers = {"a": "1212", "b": "3211", "c": "2233"}  # the right answer is 1: a tie won by the earliest, won, lost
    asked = []

    def respond(model, tokenizer, problems, votes, *rest):
        asked.append(votes)
        return [[Trajectory(Problem(name, "?", "1", "f", level), [1] * 10, True, [Action("solve", 0, 10, "", answer=x, right=x == "1")]) for x in row]
                for level, (name, row) in enumerate(answers.items(), 1)]
    monkeypatch.setattr(study, "respond", respond)
    found = study.majority(tmp_path, seed=0)
    assert asked == [4] and found["final_accuracy"] == pytest.approx(2 / 3) and found["first_accuracy"] == pytest.approx(1 / 3)
    assert found["tokens_per_response"] == 40 and [found["by_level"][level]["final_accuracy"] for level in (1, 2, 3)] == [1, 1, 0]


def test_correct_only_takes_right_answers_one_a_question_first(tmp_path):
    """Bug: wrong or cut answers get in, an easy question fills the data set, or it is larger than the trajectories'."""
    row = lambda name, right, finished=True: {"id": name, "finished": finished, "actions": [{"right": right}]}
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "trajectories.jsonl", [{}] * 4)
    write_jsonl(tmp_path / "data" / "samples.jsonl", [row("a", True)] * 5 + [row("b", True), row("b", False), row("c", True), row("d", True, finished=False)])
    study.correct_only(tmp_path / "data", tmp_path / "out", seed=0)
    names = [json.loads(line)["id"] for line in (tmp_path / "out" / "trajectories.jsonl").read_text().splitlines()]
    assert sorted(names[:3]) == ["a", "b", "c"] and names[3:] == ["a"]


def test_table(monkeypatch, tmp_path, capsys):
    """Bug: seeds are averaged across arms, levels are lost, or a missing value becomes 0."""
    def run_arm(arm, root, seed):
        level = {"first_accuracy": 0.5, "final_accuracy": 0.25 * seed, "trials": 2.0}
        values = {**dict.fromkeys(COLUMNS, 0.5), "final_accuracy": 0.25 * seed, "tpr": None, "seconds": 1, "by_level": {"1": level}}
        return {"base": values, "RL": {**values, "final_accuracy": 1.0}} if arm == "main" else {arm: values}
    monkeypatch.setattr(study, "run_arm", run_arm)
    study.main(["--seeds", "1", "3", "--arms", "main", "lr0", "--results", str(tmp_path / "r" / "s.csv")])
    lines = capsys.readouterr().out.splitlines()
    assert "| | base | RL | lr0 |" in lines and "| `tpr` | - | - | - |" in lines
    assert "| `final_accuracy` | 50.0% (25.0% to 75.0%) | 100.0% | 50.0% (25.0% to 75.0%) |" in lines
    rows = list(csv.DictReader(open(tmp_path / "r" / "s.csv")))
    assert [(row["arm"], row["seed"], row["final_level_1"]) for row in rows] == [
        ("base", "1", "0.25"), ("RL", "1", "0.25"), ("base", "3", "0.75"), ("RL", "3", "0.75"), ("lr0", "1", "0.25"), ("lr0", "3", "0.75")]
