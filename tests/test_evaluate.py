"""The metrics of the paper, counted by hand; the table and the command line."""
import argparse
import json
import random

import pytest
from test_sampler import byte_tokenizer, save_policy, tiny_model

from nanoverify import evaluate
from nanoverify.evaluate import by, correction, metrics, report, respond, table
from nanoverify.problems import Problem
from nanoverify.puzzles import make_puzzles
from nanoverify.sampler import Sampling
from nanoverify.support import stage
from nanoverify.trajectory import Action, Trajectory
from nanoverify.verifier import agreement

NAMED = ("first_accuracy", "final_accuracy", "verification_accuracy", "error_recall",
         "correct_precision", "incorrect_to_correct", "correct_to_incorrect", "trials",
         "well_formed", "tokens_per_response")


def made(form: str, finished=True, level=1, family="linear", tokens=2) -> Trajectory:
    """'s+ vy s-7 vn v?' -> solve right or wrong, with this answer; verify saying yes, no or
    nothing."""
    actions, right = [], False
    for i, word in enumerate(form.split()):
        right = word[1] == "+" if word[0] == "s" else right
        actions.append(Action("solve" if word[0] == "s" else "verify", i * tokens, (i + 1) * tokens,
                              "", word[2:], right=right,
                              verdict={"y": True, "n": False}.get(word[1])))
    return Trajectory(Problem("p", "?", "6", family, level), [5] * tokens * len(actions), finished,
                      actions)


def test_metrics_by_hand():
    """Bug: a share is taken of the wrong whole, or a response without the thing counted counts as
    one."""
    group = [made("s+ vy"), made("s+ vn s- vy"), made("s- vn s+ vy"), made("s- vy"),
             made("s- v? s- vn", finished=False), made("s+"), made("s+ vn s+ vn s+ vy")]
    assert metrics(group) == {
        "count": 7, "first_accuracy": 4 / 7, "final_accuracy": 4 / 7,
        "verification_accuracy": pytest.approx(5 / 11),  # y; n, y; n, y; y; ?, n; n, n, y
        "error_recall": pytest.approx(2 / 5),  # wrong solves: y, n, y, ?, n
        "correct_precision": pytest.approx(3 / 5),  # said yes: right, wrong, right, wrong, right
        "incorrect_to_correct": pytest.approx(1 / 3), "correct_to_incorrect": pytest.approx(1 / 4),
        # the first verify of six responses
        "tpr": pytest.approx(1 / 3), "tnr": pytest.approx(1 / 3),
        "trials": 12 / 7, "repeats": 4 / 5, "well_formed": 5 / 7, "within_2": 4 / 7,
        "within_4": 4 / 7, "within_8": 4 / 7,
        "follows_verdict": 1.0,  # the cut response's last verify says nothing
        "tokens_per_response": 46 / 7, "truncated": 1 / 7}


def test_recall_is_not_precision():
    """Bug: error recall is taken of the solves called incorrect, correct precision of the right
    ones."""
    found = metrics([made("s- vn s- vn s+ vy"), made("s+ vy"), made("s+ vy"), made("s+ vn s- vy"),
                     made("s- v? s+ v?")])
    # wrong: n, n, y, ?; of the three called incorrect two are wrong
    assert found["error_recall"] == pytest.approx(2 / 4)
    # said yes: right, right, right, wrong; of five right ones three
    assert found["correct_precision"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("form, finished, moves",
                         [("s+ vy", True, [1]), ("s+ vn", True, [0]), ("s+ vy s+ vy", True, [0, 1]),
                          ("s- vn s+ vy", True, [1, 1]), ("s- vn vy", True, [0, 1]),
                          ("s- v? s+ vy", True, [1]), ("s- vn s+ vn", False, [1]),
                          ("s+ vy s+", True, [0]), ("s+", True, []), ("s- v?", True, [])])
def test_follows_verdict(form, finished, moves):
    """Bug: a stop after 'incorrect' or a retry after 'correct' counts as following the verdict."""
    expected = sum(moves) / len(moves) if moves else None
    assert metrics([made(form, finished)])["follows_verdict"] == expected


@pytest.mark.parametrize("form, repeats",
                         [("s-7 vn s-7 vy", [1]), ("s-7 vn s+6 vy", [0]),
                          ("s-7 vn s-8 vn s-7 vn s-8 vn s+6 vy", [0, 1, 1, 0]),
                          ("s-7 vn vn s-7 vy", [1]), ("s-7 v? s-7 vy", [0]), ("s+6 vy s+6 vy", [0]),
                          ("s-7 vn s+6 vn s+6", [0, 1]), ("s-7 vn vn s- vy", [0]), ("s+6 vy", [])])
def test_repeats(form, repeats):
    """Bug: only the answer just before counts, an answer that nobody rejected counts, or a first
    solve counts as a retry."""
    assert metrics([made(form)])["repeats"] == (sum(repeats) / len(repeats) if repeats else None)


@pytest.mark.parametrize("form, within", [
    ("s+ vy", (1, 1, 1)), ("s+ vn s- vy", (0, 0, 0)), ("s- vn s+ vn s- vy", (1, 0, 0)),
    ("s- vn s- vn s+ vy", (0, 1, 1)), ("s- vn s- vn s- vn s- vn s+ vy", (0, 0, 1))])
def test_accuracy_within_attempts(form, within):
    """Bug: the first or the very last attempt counts, or any right one among those allowed."""
    found = metrics([made(form)])
    assert tuple(found[f"within_{k}"] for k in (2, 4, 8)) == within


def test_nothing_to_count():
    """Bug: a model that never verifies, or no response at all, divides by zero or scores 0 instead
    of None."""
    found = metrics([made("s+")])
    assert all(found[name] is None
               for name in ("verification_accuracy", "error_recall", "correct_precision",
                            "incorrect_to_correct", "tpr", "tnr"))
    assert metrics([])["first_accuracy"] is None and table({"none": metrics([])})


def test_agreement():
    """Bug: a missing verdict agrees with wrong answers; rates are taken of all answers."""
    pairs = [(True, True), (False, True), (None, True), (False, False), (True, False),
             (None, False), (None, False), (False, False)]
    assert agreement(pairs) == {"accuracy": 3 / 8, "tpr": 1 / 3, "tnr": 2 / 5, "count": 8}
    assert agreement([(True, True)]) == {"accuracy": 1.0, "tpr": 1.0, "tnr": None, "count": 1}
    assert agreement([])["accuracy"] is None


def test_groups():
    """Bug: levels are sorted as text, mixed up, or a question without a level makes one."""
    group = [made("s+ vy", level=2, family="a"), made("s+ vy", level=10, family="a"),
             made("s+ vy", level=None, family="b"), made("s- vy", level=2, family="b")]
    assert {k: (v["count"], v["first_accuracy"])
            for k, v in by(group, "level").items()} == {"2": (2, 0.5), "10": (1, 1.0)}
    assert list(by(group, "level")) == ["2", "10"]
    assert list(report(group)["by_family"]) == ["a", "b"]


def test_table():
    """Bug: a column shows another group's numbers, shares are not in percent, None is not a
    dash."""
    lines = table({"base": metrics([made("s+")]),
                   "RL": metrics([made("s- vn s+ vy"), made("s+ vy")])}).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert lines[0].split() == ["base", "RL"] and cells["first_accuracy"] == ["100.0%", "50.0%"]
    assert cells["verification_accuracy"] == ["-", "100.0%"] and cells["trials"] == ["1.00", "1.50"]
    assert cells["tokens_per_response"] == ["2", "6"]


def test_respond_pairs_questions_with_answers():
    """Bug: responses come back in the sampler's order and are graded against another question."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer.vocab_size, context=512)
    problems = [Problem(str(n), "why " * n, "6", "f", None) for n in (3, 1, 8, 2)]

    def run(problems, **more):
        return [[t.ids for t in row]
                for row in respond(model, tokenizer, problems, Sampling(8, 0.0, samples=2, **more))]
    rows = respond(model, tokenizer, problems, Sampling(8, 0.0, samples=2, batch_size=4))
    assert [[t.problem for t in row] for row in rows] == [[p, p] for p in problems]
    assert [[t.ids for t in row] for row in rows] == [run([p])[0] for p in problems]
    assert len({tuple(row[0].ids) for row in rows}) > 1


def test_evaluations_sample_alike():
    """Bug: the figures of a stage depend on --seed or on the temperature of its rollouts."""
    def sampling(**more):
        flags = dict(max_new_tokens=70, test_temperature=0.3, batch_size=40, seed=4, temperature=1)
        return stage.test_sampling(argparse.Namespace(**flags | more))
    assert sampling() == Sampling(70, 0.3, samples=1, seed=0, batch_size=40)
    assert sampling(seed=5, temperature=0.9, samples=8) == sampling()


def test_evaluation_asks_what_no_stage_learns(tmp_path):
    """Bug: test questions depend on the seed, are training puzzles, or the 15% of --questions kept
    for testing are trained on."""
    def args(seed, **more):
        return argparse.Namespace(
            **{**dict(model=stage.POLICY, max_new_tokens=400, questions=None, test_questions=None,
                      test_count=40, split="test", skip_bad_lines=False, seed=seed), **more})
    asked = stage.test_problems(args(0))
    assert asked == stage.test_problems(args(1))

    def questions(problems):
        return {problem.question for problem in problems}
    assert not questions(asked) & questions(stage.train_problems(args(0), 3000))
    assert questions(asked) <= questions(make_puzzles("test", 40, 1))
    chosen_by = stage.test_problems(args(0, split="valid"))
    assert questions(chosen_by) <= questions(make_puzzles("valid", 40, 1)) and len(chosen_by) == 40
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": "1"}) + "\n"
                            for n in range(200)))
    learned = questions(stage.train_problems(args(0, questions=[str(path)]), 500))
    kept = questions(stage.test_problems(args(0, questions=[str(path)], test_count=500)))
    assert not learned & kept and len(learned) > 100 and 10 < len(kept) < 60


def test_command_line(tmp_path, capsys, monkeypatch):
    """Bug: --json prints something else as well, lacks a promised name, changes from run to run, or
    the responses are not those counted."""
    policy = save_policy(tmp_path / "policy", vocab_padding=3)
    outputs = []
    for _ in range(2):
        random.random()
        evaluate.main(["--model", policy, "--json", "--test-count", "6", "--max-new-tokens", "5",
                       "--device", "cpu", "--responses", str(tmp_path / "responses.jsonl")])
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == outputs[1] and {*NAMED, "by_level", "by_family"} <= outputs[0].keys()
    assert all({*NAMED} <= values.keys() for values in outputs[0]["by_level"].values())
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert len(rows) == outputs[0]["count"] == 6 == sum(
        values["count"] for values in outputs[0]["by_level"].values())
    assert all(row["actions"][-1]["stop"] <= 5
               and {"question", "response", "well_formed", "finished"} <= row.keys()
               for row in rows)
    evaluate.main(["--model", policy, "--test-count", "3", "--max-new-tokens", "5", "--device",
                   "cpu"])
    assert "first_accuracy" in capsys.readouterr().out


def test_columns_of_other_questions_are_not_reused(tmp_path, monkeypatch):
    """Bug: a family was added, or the question file edited, and the table sets the old SFT model's
    figures beside the new RL model's."""
    args = argparse.Namespace(questions=None, test_questions=None, test_count=3, split="test",
                              max_new_tokens=9, model=str(tmp_path), test_temperature=0.5)
    stage.save_evaluations(tmp_path, {"base": {"count": 3}}, args)
    assert stage.earlier_evaluations(args) == {"base": {"count": 3}}
    args.test_count = 4
    assert stage.earlier_evaluations(args) == {}
    args.test_count, args.test_temperature = 3, 0.6
    assert stage.earlier_evaluations(args) == {}
    args.test_temperature = 0.5
    assert stage.earlier_evaluations(args) == {"base": {"count": 3}}
    monkeypatch.setattr(stage, "make_puzzles", lambda *rest, **named: make_puzzles("valid", 3, 0))
    assert stage.earlier_evaluations(args) == {}


def test_correction_shows_two_different_rejected_answers():
    """Bug: the example that ends the main job repeats a rejected answer, or is a longer one than
    need be."""
    def said(text, answers):
        trajectory = made(text)
        for solve, answer in zip(trajectory.solves, answers):
            solve.answer = answer
        return trajectory

    once = said("s- vn s+ vy", "76")
    repeated = said("s- vn s- vn s+ vy", "776")
    twice = said("s- vn s- vn s+ vy", "786")
    longer = said("s- vn s- vn s- vn s+ vy", "7856")
    wrong = said("s- vn s- vn s- vy", "785")
    assert correction([once, repeated, longer, twice, wrong]) is twice
    twice.actions[1].text = "Put in 7: 7 * 2 = 15. It should be 12."
    assert correction([once, twice]) is twice
    assert correction([once, longer, twice]) is longer
    assert correction([repeated, once]) is once
    assert correction([wrong, made("s+ vy")]) is None


def test_equations_hold():
    """Bug: a worked example with a false equation passes for a sound one."""
    assert evaluate.equations_hold("Put in 7: 7 * 2 = 14. 27 + 14 = 41. It should be 39, 2 less.")
    assert evaluate.equations_hold("8 - (6 - 3) = 5. 3 - 8 = -5. 6 / 3 = 2. The answer is 5.")
    assert not evaluate.equations_hold("7 * 2 = 14. 27 + 14 = 40.")
    assert not evaluate.equations_hold("3 - 8 = 5.")
