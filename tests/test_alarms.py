"""Alarms: each is raised by what it names, once, and by nothing else."""
import json

import pytest

import train_rl
from nanoverify.support import alarms
from nanoverify.support.files import InputError, write_json, write_jsonl
from nanoverify.tools import report

GOOD = {"reward": 0.5, "groups_without_spread": 0.6, "tpr": 0.95, "tnr": 0.65, "repeats": 0.5,
        "truncated": 0.08, "approx_kl": 0.001, "ratio_max": 6.0, "final_accuracy": 0.75}


def steps(count: int, **changes) -> list[dict]:
    """Lines of metrics.jsonl. In the last 6 steps some values are others."""
    return [{"step": step, **GOOD, **(changes if step > count - 6 else {})}
            for step in range(1, count + 1)]


RAISED = [
    ({"tpr": 1.0, "tnr": 0.0}, "says 'correct'", 15),
    ({"tpr": 0.0, "tnr": 0.99}, "says 'incorrect'", 15),
    ({"repeats": 0.9}, "rose from 50% to 74%", 13), ({"truncated": 0.4}, "rose from 8% to 21%", 12),
    ({"groups_without_spread": 1.0}, "same outcome", 15), ({"reward": -0.8}, "fell from", 12),
    ({"approx_kl": 0.3}, "very far", 11), ({"ratio_max": 1e5}, "ratio_max 1e+05", 11),
    ({"final_accuracy": 0.004}, "hardly any answer is right", 11)]


@pytest.mark.parametrize("changes, words, first", RAISED)
def test_each_is_raised_once(changes, words, first):
    """Bug: a run goes wrong for hours and its log says nothing; it says so at every step, or does
    not say what to try."""
    rows, heard = steps(16, **changes), []
    for count in range(1, 17):
        heard += [(count, text) for text in alarms.of_step(rows[:count])]
    (step, text), = heard
    assert words in text and step == first and ("try" in text or "look at" in text)
    assert alarms.of_run(rows) == [f"from step {first} on: {text}"]


def test_a_good_run_is_quiet():
    """Bug: an alarm that one odd step raises, that a base without checks raises, or stage 1."""
    rows = steps(12)
    rows[4] |= {"reward": -0.5, "truncated": 0.5, "repeats": 1.0, "tpr": 1.0, "tnr": 0.0,
                "groups_without_spread": 1.0}
    assert alarms.of_run(rows) == alarms.of_run([]) == []
    assert alarms.of_run([{**row, "tpr": None, "tnr": None, "repeats": None} for row in rows]) == []
    assert alarms.of_run([{"step": step, "loss": 1.0} for step in range(20)]) == []


STATISTICS = {"questions": 100, "trajectories": 50, "attempts": {1: 20, 2: 30},
              "verifier": {"confirmative": {"tpr": 0.7, "tnr": 0.6}}, "dropped": {}}


@pytest.mark.parametrize("changes, words", [
    ({}, None), ({"trajectories": 9}, "only 9 trajectories came out of 100"),
    ({"attempts": {"1": 50}}, "no trajectory has a wrong attempt"),
    ({"verifier": {"a": {"tpr": 0.99, "tnr": 0.01}}}, "the a verifier says 'correct'"),
    ({"verifier": {"a": {"tpr": None, "tnr": 0.01}}}, None)])
def test_stage_0(changes, words, capsys):
    """Bug: hours of training on data from which nothing can be learned."""
    alarms.say_of_data({**STATISTICS, **changes})
    shown = capsys.readouterr().err
    assert shown == "" if words is None else words in shown and shown.count("\n") == 1


def test_the_log_says_so(tmp_path, capsys):
    """Bug: train_rl.py does not hear of its alarms, or hears of those of another step."""
    write_jsonl(tmp_path / "metrics.jsonl", steps(8, final_accuracy=0.0)[:3])
    alarms.say_of_step(tmp_path)
    assert capsys.readouterr().err.startswith("look out, step 3: hardly any answer is right")
    write_jsonl(tmp_path / "metrics.jsonl", steps(8, final_accuracy=0.0)[:4])
    alarms.say_of_step(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_run_says_so(policy, elsewhere, capsys):
    """Bug: no script asks for its alarms."""
    train_rl.main(["--model", policy, "--out", "rl", "--steps", "2", "--prompts", "2", "--samples",
                   "2", "--max-new-tokens", "6", "--test-count", "2", "--device", "cpu"])
    assert capsys.readouterr().err.count("look out, step 1: hardly any answer is right") == 1


def test_the_report_says_so(tmp_path):
    """Bug: the page of a broken run looks like that of any other."""
    write_jsonl(tmp_path / "metrics.jsonl", steps(8, approx_kl=0.5))
    write_json(tmp_path / "statistics.json", {**STATISTICS, "trajectories": 3})
    page = report.page([report.read_run(str(tmp_path))])
    assert page.count("Look out") == 2
    assert "from step 3 on: one step moved" in page and "only 3 trajectories" in page
    (tmp_path / "statistics.json").write_text(json.dumps({"questions": 3}))
    with pytest.raises(InputError, match="statistics.json"):
        report.read_run(str(tmp_path))
