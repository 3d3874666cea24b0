"""The study's own arithmetic; the scripts it runs have tests of their own."""
import csv
import json
import os
import re

import pytest

import build_data
import train_rl
from nanoverify.answers import grade
from nanoverify.evaluate import COLUMNS
from nanoverify.problems import Problem
from nanoverify.puzzles import make_puzzles
from nanoverify.study import study
from nanoverify.support.files import InputError, write_json, write_jsonl
from nanoverify.trajectory import Action, Trajectory
from nanoverify.verifier import Verification


def test_every_variant_parses():
    """Bug: an arm's flag was renamed, and the study stops after hours."""
    for flags in study.VARIANTS.values():
        train_rl.flags(["--seed", "1", "--model", "sft", *map(str, flags)])
    for styles in study.STYLES.values():
        build_data.flags(["--styles", *styles])
    assert set(study.SEEDS) == {"main", *study.CHOICES, "weak", "gold", "correct-only",
                                *study.VARIANTS, *study.STYLES}


def test_majority(monkeypatch, tmp_path):
    """Bug: the vote counts right answers, a tie goes to the last one, or the number of votes is not
    what RL's tokens pay for."""
    write_json(tmp_path / "evaluation.json",
               {"asked": {"test_count": 3},
                "columns": {"base": {"tokens_per_response": 10.0},
                            "RL": {"tokens_per_response": 42.0}}})
    # the right answer is 1: a tie won by the earliest, won, lost
    answers = {"a": "1212", "b": "3211", "c": "2233"}
    asked = []

    def respond(model, tokenizer, problems, sampling):
        asked.append(sampling.samples)
        return [[Trajectory(Problem(name, "?", "1", "f", level), [1] * 10, True,
                            [Action("solve", 0, 10, "", answer=x, right=x == "1")]) for x in row]
                for level, (name, row) in enumerate(answers.items(), 1)]
    monkeypatch.setattr(study, "respond", respond)
    found = study.majority(tmp_path, seed=0)
    assert asked == [4] and found["final_accuracy"] == pytest.approx(2 / 3)
    assert found["first_accuracy"] == pytest.approx(1 / 3)
    assert found["tokens_per_response"] == 40
    assert [found["by_level"][level]["final_accuracy"] for level in "123"] == [1, 1, 0]


def test_best_of_n(monkeypatch, tmp_path):
    """Bug: the gold answer chooses instead of the base's check, a later accepted answer wins,
    checks cost no tokens, or a question without an accepted answer is left out."""
    columns = {"base": {"tokens_per_response": 10.0}, "RL": {"tokens_per_response": 61.0}}
    write_json(tmp_path / "evaluation.json", {"asked": {"test_count": 3}, "columns": columns})
    answers = {"a": "211", "b": "323", "c": "133"}  # the right answer is 1
    accepted = {("a", "1"), ("b", "2"), ("b", "3"), ("c", "3")}
    counts, gold = [], {"a": 1, "b": 2, "c": 3}

    def respond(model, tokenizer, problems, sampling):
        counts.append(sampling.samples)
        return [[Trajectory(Problem(name, name, "1", "f", gold[name]), [1] * 10, True,
                            [Action("solve", 0, 10, "", answer=x, right=x == "1")])
                 for x in row[: sampling.samples]] for name, row in answers.items()]

    def verify(model, tokenizer, claims, style, *rest):
        assert style == "confirmative"
        return [[Verification("0123456789", claim in accepted, True)] for claim in claims]
    monkeypatch.setattr(study, "respond", respond)
    monkeypatch.setattr(study, "verify", verify)
    monkeypatch.setattr(study.Tokenizer, "encode", lambda self, text: list(text))
    found = study.best_of_n(tmp_path, seed=0)
    # an answer and its check cost 20
    assert counts == [1, 3] and found["tokens_per_response"] == 60
    assert found["first_accuracy"] == pytest.approx(1 / 3)
    assert found["final_accuracy"] == pytest.approx(1 / 3)
    assert [found["by_level"][level]["final_accuracy"] for level in "123"] == [1, 0, 0]


def test_arms_run_what_they_say(monkeypatch, tmp_path):
    """Bug: an arm starts from another seed's model or data, or the row is that of another stage."""
    ran, column = [], {"by_level": {}, "final_accuracy": 0.25}
    monkeypatch.setattr(
        study, "stage",
        lambda script, out, *flags, arm="": ran.append(
            (arm or script, out.name, [getattr(flag, "name", flag) for flag in flags])))
    monkeypatch.setattr(study, "beyond", lambda model, at: {"final_within_1": at.name})
    monkeypatch.setattr(study, "row_of_folder", lambda out, values: {"out": out.name, **values})
    monkeypatch.setattr(
        study, "read_json",
        lambda path: {"columns": {"base": column, "SFT": {**column, "final_accuracy": 0.5},
                                  "RL": {**column, "final_accuracy": 0.75}}})
    root = tmp_path / "seed3"
    rows = study.run_arm("main", root, 3)
    assert ran == [("build_data", "data", ["--seed", 3]),
                   ("train_sft", "sft", ["--seed", 3, "--data", "trajectories.jsonl"]),
                   ("train_rl", "rl", ["--seed", 3, "--model", "sft"])]
    values = [(name, row.get("out"), row["final_accuracy"]) for name, row in rows.items()]
    assert values == [("base", None, 0.25), ("SFT", "sft", 0.5), ("both", "rl", 0.75)]
    ran.clear()
    rows = study.run_arm("process", root, 3)
    assert ran == [("train_rl", "process",
                    ["--seed", 3, "--model", "sft", *study.VARIANTS["process"]])]
    assert rows["process"]["final_accuracy"] == 0.75
    assert "final_within_1" in rows["process"]
    assert "final_within_1" not in study.run_arm("lr0", root, 3)["lr0"]
    ran.clear()
    study.run_arm("weak", root, 3)
    study.run_arm("weak-process", root, 3)
    assert ran == [
        ("train_sft", "weak", ["--seed", 3, "--data", "trajectories.jsonl", "--steps", 150]),
        ("train_rl", "weak-process", ["--seed", 3, "--model", "weak", "--reward", "process"])]
    ran.clear()
    study.run_arm("shuffled", root, 3)
    assert ran == [("shuffled", "shuffled", ["--seed", 3, "--model", "sft"])]
    ran.clear()
    study.run_arm("both-styles", root, 3)
    assert ran == [("build_data", "both-styles-data",
                    ["--seed", 3, "--styles", "problem-solving", "confirmative"]),
                   ("train_sft", "both-styles", ["--seed", 3, "--data", "trajectories.jsonl"])]


def test_stage(monkeypatch, tmp_path):
    """Bug: a finished stage is run again, one made with other flags is taken, or an interrupted one
    starts again."""
    ran = []
    monkeypatch.setattr(study.subprocess, "run",
                        lambda command, check: ran.append(command[1:]))
    for name in ("out", "arm"):
        (tmp_path / name).mkdir()
    study.stage("train_rl", tmp_path / "out", "--lr", 0)
    assert ran == [["train_rl.py", "--out", str(tmp_path / "out"), "--lr", "0"]]
    assert study.seconds(tmp_path / "out") is not None
    study.stage("train_rl", tmp_path / "arm", "--lr", 0, arm="shuffled")
    assert ran.pop() == ["-m", "nanoverify.study.arms", "shuffled",
                         "--out", str(tmp_path / "arm"), "--lr", "0"]
    (tmp_path / "out.part").mkdir()
    study.stage("train_rl", tmp_path / "out", "--lr", 0)
    assert ran[1][-1] == "--resume"
    write_json(tmp_path / "out" / "arguments.json",
               vars(train_rl.flags(["--lr", "0", "--seed", "1"])))
    study.stage("train_rl", tmp_path / "out", "--lr", 0, "--seed", 1)
    assert len(ran) == 2
    (tmp_path / "old").mkdir()
    write_json(tmp_path / "old" / "arguments.json", {})  # of a version that did not know some flags
    for wrong, flags, out in (
        ("lr 0.0, not 0.1", ["--lr", 0.1], "out"),
        ("reward both, not outcome", ["--lr", 0, "--reward", "outcome"], "out"),
        ("model out/sft, not seed2/sft", ["--lr", 0, "--model", "seed2/sft"], "out"),
        ("None, not ", ["--lr", 0], "old")):
        with pytest.raises(InputError, match=f"made with .*{wrong}"):
            study.stage("train_rl", tmp_path / out, "--seed", 1, *flags)


def test_correct_only_takes_right_answers_one_a_question_first(tmp_path):
    """Bug: wrong or cut answers get in, an easy question fills the data set, or it is larger than
    the trajectories'."""
    def row(name, right, finished=True):
        return {"id": name, "finished": finished, "actions": [{"right": right}]}
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "trajectories.jsonl", [{}] * 4)
    write_jsonl(tmp_path / "data" / "samples.jsonl", [row("a", True)] * 5
                + [row("b", True), row("b", False), row("c", True), row("d", True, finished=False)])
    study.correct_only(tmp_path / "data", tmp_path / "out", seed=0)
    names = [json.loads(line)["id"]
             for line in (tmp_path / "out" / "trajectories.jsonl").read_text().splitlines()]
    assert sorted(names[:3]) == ["a", "b", "c"] and names[3:] == ["a"]


def test_gold_solutions_are_right(tmp_path):
    """Bug: the numbers of another puzzle, or of another seed, are solved; a response keeps its
    verifications."""
    (tmp_path / "data").mkdir()
    problems = make_puzzles("train", 60, seed=3)
    write_json(tmp_path / "data" / "arguments.json", {"count": 60, "seed": 3})
    write_jsonl(tmp_path / "data" / "trajectories.jsonl",
                [{**vars(problem), "response": "The answer is 0."} for problem in problems[7:]])
    study.gold(tmp_path / "data", tmp_path / "out")
    rows = [json.loads(line)
            for line in (tmp_path / "out" / "trajectories.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [problem.id for problem in problems[7:]]
    for row in rows:
        assert grade(row["answer"], row["response"])
        if row["family"] != "countdown":  # theirs say what the question's number should be
            wanted = re.match(r"Suppose \d+\. .* It should be (\d+), ", row["response"])[1]
            assert wanted in re.findall(r"\d+", row["question"])


def test_baseline_and_tokens(tmp_path):
    """Bug: the always-\"correct\" baseline counts solutions nobody verified, or the answers instead
    of the verifications."""
    def act(kind, right):
        return {"kind": kind, "right": right}
    write_jsonl(tmp_path / "responses.jsonl",
                [{"actions": [act("solve", False), act("verify", False), act("solve", True),
                              act("verify", True)]}, {"actions": [act("solve", True)]},
                 {"actions": [act("solve", False), act("verify", False)]}])
    assert study.always_correct(tmp_path) == pytest.approx(1 / 3)
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "tokens": 5}, {"step": 2, "tokens": 7}])
    assert study.trained_tokens(tmp_path) == 12
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "learned_tokens": 3}])
    assert study.trained_tokens(tmp_path) == 3


def test_failures(tmp_path):
    """Bug: a response that recovers counts as failed, one counts twice, or one that is cut at a
    right answer does not count."""
    def solve(right):
        return {"kind": "solve", "right": right, "verdict": None}

    def check(right, said):
        return {"kind": "verify", "right": right, "verdict": said}
    rows = [[solve(True), check(True, False), solve(True), check(True, True)],
            [solve(False), check(False, True)],
            [solve(True), check(True, False), solve(False), check(False, True)],
            [solve(True), check(True, False), solve(False), check(False, False)],
            [solve(False), check(False, False), solve(True)]]
    write_jsonl(tmp_path / "responses.jsonl",
                [{"finished": i < 4, "actions": row} for i, row in enumerate(rows)])
    assert study.failures(tmp_path) == {"failed_missed": 2 / 5, "failed_rejected": 1 / 5,
                                        "failed_otherwise": 1 / 5}


def test_beyond(monkeypatch, tmp_path):
    """Bug: with k attempts allowed, a later one counts, or a response that stopped before counts as
    wrong; the file of an earlier call is not used."""
    def solve(right):
        return Action("solve", 0, 1, "", right=right)
    check = Action("verify", 1, 2, "", verdict=False)

    def evaluate(model, tokenizer, problems, sampling):
        assert sampling.temperature == study.TEST_TEMPERATURE
        rights = {"a": [True], "b": [False, True], "c": [False, False, False, True]}
        return [Trajectory(problems[0], [1], True,
                           [action for right in row for action in (solve(right), check)])
                for row in rights.values()]
    monkeypatch.setattr(study, "evaluate", evaluate)
    monkeypatch.setattr(study, "load_model", lambda *rest: None)
    monkeypatch.setattr(study.Tokenizer, "load", lambda *rest: None)
    (tmp_path / "model.safetensors").write_text("")
    write_json(tmp_path / "old.json", {})
    os.utime(tmp_path / "old.json", (0, 0))  # older than the model
    assert study.beyond(str(tmp_path), tmp_path / "old.json") != {}
    found = study.beyond(str(tmp_path), tmp_path / "b.json")
    within = [found[f"final_within_{k}"] for k in study.ALLOWED]
    assert within == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert found["first_tickets"] == pytest.approx(1 / 3) and found["final_tickets"] == 1
    assert set(found) <= set(study.HEADER)
    monkeypatch.setattr(study, "evaluate", None)
    assert study.beyond(str(tmp_path), tmp_path / "b.json") == found


def test_table(monkeypatch, tmp_path):
    """Bug: rows of other arms and seeds are lost, or a row is there twice; a stop in the middle
    loses what was found; a missing value becomes 0."""
    asked = []

    def run_arm(arm, root, seed):
        asked.append((arm, root.name))
        if seed == 9:
            raise InputError("stopped")
        values = {**dict.fromkeys(COLUMNS, 0.5), "tpr": None,
                  "by_level": {"1": {"final_accuracy": 0.25 * seed}}}
        if arm == "main":
            return {"base": study.row_of(values), "both": study.row_of(values, seconds=1)}
        return {arm: study.row_of(values)}
    monkeypatch.setattr(study, "run_arm", run_arm)
    flags = ["--results", str(tmp_path / "r" / "s.csv"), "--out", str(tmp_path)]
    study.main(["--arms", "majority", "main", "--seeds", "3", "1", *flags])
    study.main(["--arms", "majority", "main", "--seeds", "1", *flags])
    with pytest.raises(InputError, match="stopped"):
        study.main(["--arms", "lr0", "--seeds", "2", "9", *flags])
    assert asked == [("majority", "seed3"), ("majority", "seed1"), ("main", "seed3"),
                     ("main", "seed1"), ("majority", "seed1"), ("main", "seed1"), ("lr0", "seed2"),
                     ("lr0", "seed9")]
    rows = list(csv.DictReader(open(tmp_path / "r" / "s.csv")))
    order = [("base", "1"), ("base", "3"), ("both", "1"), ("both", "3"), ("majority", "1"),
             ("majority", "3"), ("lr0", "2")]
    assert [(row["arm"], row["seed"]) for row in rows] == order
    for row in rows:
        assert row["final_accuracy_level_1"] == str(0.25 * int(row["seed"])) and row["tpr"] == ""
    asked.clear()
    study.main(["--arms", "lr0", "main", *flags[:2], "--out", str(tmp_path)])
    assert asked == [(arm, f"seed{seed}") for arm in ("lr0", "main")
                     for seed in range(study.SEEDS[arm])]
    (tmp_path / "r" / "s.csv").write_text("arm,seed\nbase,1\n")
    with pytest.raises(InputError, match="other columns"):
        study.main(["--arms", "lr0", *flags])
