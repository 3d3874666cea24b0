"""Stage 0's wiring: one run of build_data.main in which answers and verifications are given,
checked by hand."""
import json

import pytest
from test_sampler import save_policy

import build_data
from nanoverify.answers import verdict
from nanoverify.trajectory import RECHECK, RETRY, parse
from nanoverify.verifier import VERDICTS, Verification

ANSWERS = {  # of each question: (answer, did it end by itself?)
    "easy": [("6", True)] * 6,
    "hard": [("9", True), ("7", True), ("6", True), ("7", True), ("8", False), ("6", True)],
    "never": [("5", True)] * 6}


@pytest.fixture
def stage_0(tmp_path, monkeypatch):
    """run(*flags) -> (trajectories, samples, statistics, what was asked of whom)."""
    policy, asked = save_policy(tmp_path / "policy"), []
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"id": name, "question": f"{name}?", "answer": "6"})
                                 + "\n" for name in ANSWERS))

    def respond(model, tokenizer, problems, sampling, progress):
        asked.append(("answer", sampling.samples, sampling.max_new_tokens, sampling.temperature,
                      sampling.seed))
        rows = []
        for problem in problems:
            texts = [f"Way {i}. The answer is {answer}{'.' * ended}"
                     for i, (answer, ended) in enumerate(ANSWERS[problem.id])]
            ids = [tokenizer.encode(text) + [tokenizer.end_id] * ended
                   for text, (_, ended) in zip(texts, ANSWERS[problem.id])]
            rows.append([parse(problem, row, ended, tokenizer)
                         for row, (_, ended) in zip(ids, ANSWERS[problem.id])])
        return rows

    def verify(model, tokenizer, claims, style, sampling, progress):
        count = sampling.samples
        asked.append((style, claims, count, sampling.temperature, sampling.seed))
        # a check of 9 is wrong, and so is everything by solving again
        said = [VERDICTS[(answer in "69") == (style == "confirmative")] for _, answer in claims]
        texts = [f"Check of {answer}. {text}" for (_, answer), text in zip(claims, said)]
        return [[Verification(text, verdict(text), True)] * count for text in texts]

    monkeypatch.setattr(build_data, "respond", respond)
    monkeypatch.setattr(build_data, "verify", verify)

    def run(*flags):
        out = tmp_path / f"out{len(asked)}"
        build_data.main(["--model", policy, "--questions", str(questions), "--test-questions",
                         str(questions), "--device", "cpu", "--samples", "6", "--temperature",
                         "0.7", "--verify-temperature", "0.4", "--seed", "3", "--max-new-tokens",
                         "50", "--keep-easy", "1", "--out", str(out), *flags])

        def read(name):
            return [json.loads(line) for line in (out / name).read_text().splitlines()]
        statistics = json.loads((out / "statistics.json").read_text())
        return read("trajectories.jsonl"), read("samples.jsonl"), statistics, asked
    return run


def test_stage_0_by_hand(stage_0):
    """Bugs: difficulty is the share of right answers; a cut sample becomes an attempt; the verifier
    sees the solution; the wrong attempt gets the right one's check; a check that the rule
    contradicts is kept; agreement counts every answer as right."""
    rows, samples, statistics, asked = stage_0()
    rows = {row["id"]: row for row in rows}
    assert set(rows) == {"easy", "hard"}
    easy, hard = rows["easy"]["response"], rows["hard"]["response"]
    checks = {answer: f"Check of {answer}. {VERDICTS[answer == '6']}" for answer in "67"}
    way = hard[: hard.index("\n")]
    # what was said most often comes first
    assert way in ("Way 1. The answer is 7.", "Way 3. The answer is 7.")
    right = hard.split(f"{RETRY}\n\n")[1].split("\n")[0]
    assert right in ("Way 2. The answer is 6.", "Way 5. The answer is 6.")
    parts = (way, RECHECK, checks["7"], RETRY, right, RECHECK, checks["6"])
    assert hard == "\n\n".join(parts)
    assert easy.count(RECHECK) == 1 and easy.endswith(checks["6"])
    assert [action["trained"] for action in rows["hard"]["actions"]] == [False, True, True, True]
    assert (rows["hard"]["difficulty"], rows["easy"]["difficulty"]) == (pytest.approx(4 / 6), 0)
    assert statistics["attempts"] == {"1": 1, "2": 1}
    assert statistics["dropped"] == {"no right answer among the samples": 1,
                                     "wrong attempts without a kept verification": 1}
    assert statistics["wrong_answers_histogram"] == {**{str(w): 0 for w in range(7)}, "0": 1,
                                                     "4": 1, "6": 1}
    by_style = {what: rest for what, *rest in asked}
    claims = [("easy?", "6"), *(("hard?", answer) for answer in "796")]
    assert by_style["confirmative"][0] == claims
    found = statistics["verifier"]  # right: 6, 6; wrong: 7 (called incorrect), 9 (called correct)
    assert found["confirmative"] == {"accuracy": 0.75, "tpr": 1.0, "tnr": 0.5, "count": 4}
    assert found["problem-solving"] == {"accuracy": 0.25, "tpr": 0.0, "tnr": 0.5, "count": 4}
    # the end token belongs to a sample that ended
    assert [row["actions"][-1]["stop"] - len(row["response"])
            for row in samples if row["id"] == "hard"] == [1, 1, 1, 1, 0, 1]


def test_stage_0_asks_as_it_is_told(stage_0):
    """Bug: answers are drawn at the verifications' temperature, styles or seeds share their random
    numbers."""
    *_, asked = stage_0("--verifications", "2")
    (answer,), checks = [row for row in asked
                         if row[0] == "answer"], [row for row in asked if row[0] != "answer"]
    assert answer[:4] == ("answer", 6, 50, 0.7)
    assert [row[2:4] for row in checks] == [(2, 0.4)] * 2
    first = {answer[4], *(row[4] for row in checks)}
    assert len(first) == 3
    *_, asked = stage_0("--seed", "4")
    assert not first & {row[-1] for row in asked[3:]}


def test_keep_easy(stage_0):
    """Bug: hard questions are thinned, or easy ones kept."""
    rows, _, statistics, _ = stage_0("--keep-easy", "0")
    assert [row["id"] for row in rows] == ["hard"]
    assert statistics["dropped"]["easy, thinned by --keep-easy"] == 1


def test_alarms_are_heard(stage_0, monkeypatch):
    """Bug: stage 0 does not ask whether its data are any good."""
    heard = []
    monkeypatch.setattr(build_data, "say_of_data", heard.append)
    statistics = stage_0()[2]
    assert [each["trajectories"] for each in heard] == [statistics["trajectories"]] == [2]


def test_both_styles_go_in(stage_0):
    """Bug: --styles is ignored, or only the first style is used."""
    rows, *_ = stage_0("--styles", "problem-solving", "confirmative", "--verifications", "3")
    assert {row["id"] for row in rows} == {"easy", "hard"}
    rows, *_ = stage_0("--styles", "problem-solving", "confirmative")
    assert all(row["well_formed"] for row in rows)
