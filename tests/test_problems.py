"""Puzzles: who may see them, and whether their answers are right, by arithmetic written for this test; readers of published files."""
import collections
import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanoverify import pretrain
from nanoverify.files import InputError
from nanoverify.problems import CHOICES, FAMILIES, HELD_OUT, LEVELS, SOLVE_PROMPT, TRAINED, make_puzzles, puzzle, read_problems, split_of

ROOT = Path(__file__).parents[1]
LEGS = {"chickens": 2, "rabbits": 4, "beetles": 6}
CELLS = [(family, level) for family in FAMILIES for level in LEVELS]


@pytest.fixture(scope="module")
def puzzles():
    """[(family, level, split, numbers, problem)], 100 of each family and level."""
    return draw_all(random.Random(0), CELLS, 100)


def draw_all(rng, cells, count):
    """Numbers without the answers to choose from."""
    drawn = [(family, level, *puzzle(rng, family, level, CHOICES[level])) for family, level in cells for _ in range(count)]
    return [(family, level, split, {k: v for k, v in numbers.items() if k != "choices"}, problem) for family, level, split, numbers, problem in drawn]


def solutions(family, n):
    """All answers that fit the numbers, by trying everything from 0 to 200."""
    fits = {
        "linear": lambda x: n["a"] + n["b"] * x == n["c"],
        "both_sides": lambda x: n["b"] * x - n["a"] == n["d"] * x + n["e"],
        "rabbits": lambda x: x <= n["n"] and LEGS[n["many"]] * x + LEGS[n["few"]] * (n["n"] - x) == n["v"],
        "stamps": lambda x: x <= n["n"] and n["p"] * x + n["q"] * (n["n"] - x) == n["v"],
        "ages": lambda x: (x + n["t"]) + (x + n["d"] + n["t"]) == n["s"],
        "sum_product": lambda x: x >= n["s"] - x >= 0 and x * (n["s"] - x) + n["b"] == n["p"],
        "rectangle": lambda x: x * (x + n["d"]) + n.get("b", 0) == n["a"],
        "square": lambda x: x ** 2 + n["b"] == n["c"],
        "consecutive": lambda x: x + (x + 1) + (x + 2) + n["b"] == n["c"],
        "shopping": lambda x: n["a"] * x + n["b"] * (x + n["d"]) == n["c"],
    }
    fits["tickets"] = fits["stamps"]
    assert family in fits, f"{family}: add to `fits` which x answer it"
    return [x for x in range(201) if fits[family](x)]


def value(side):
    """'33 - 18' or '17 * 8' -> a number."""
    total = 0
    for sign, product in re.findall(r"([+-]?)\s*(\d+(?: \* \d+)*)", side):
        term = 1
        for factor in product.split(" * "):
            term *= int(factor)
        total += -term if sign == "-" else term
    return total


# ---- the generator --------------------------------------------------------------------------------------------------

def test_answer_is_the_only_one(puzzles):
    """Bug: the gold answer is wrong, or a second number fits as well (the smaller of two numbers)."""
    for family, _, _, numbers, problem in puzzles:
        assert solutions(family, numbers) == [int(problem.answer)], problem


def test_question_shows_the_numbers(puzzles):
    """Bug: a wording leaves out a number that the answer depends on, or a placeholder stays."""
    for family, _, _, numbers, problem in puzzles:
        assert not re.search(r"[{}]", problem.question)
        legs = ("p", "q") if family == "rabbits" else ()  # everybody knows them
        assert {str(value) for key, value in numbers.items() if key not in legs} <= set(re.findall(r"\w+", problem.question)), problem
        question, choices = problem.question.split(" Choose from ")
        assert set(re.findall(r"\d+", question)) <= set(map(str, numbers.values())) and question.endswith("?"), problem
        assert re.fullmatch(r"\d+(, \d+)*\.", choices), problem


def test_choices_do_not_tell(puzzles):
    """Bug: the answer is not among the choices, or its place among them gives it away."""
    ranks = collections.defaultdict(collections.Counter)
    for family, level, _, _, problem in puzzles:
        choices = [int(n) for n in re.findall(r"\d+", problem.question.split(" Choose from ")[1])]
        assert choices == sorted(set(choices)) and len(choices) == CHOICES[level]
        ranks[level][choices.index(int(problem.answer))] += 1
    for level, counts in ranks.items():
        expected = sum(counts.values()) / CHOICES[level]
        assert all(abs(counts[rank] - expected) < 4.5 * expected ** 0.5 for rank in range(CHOICES[level])), (level, counts)


def test_checks_say_what_is_so(puzzles):
    """Bug: a worked check miscalculates, passes answer + 1, or fails the answer; the policy would learn it."""
    for family, _, _, numbers, problem in puzzles:
        if family == "tickets":
            continue  # nobody is taught it
        answer = int(problem.answer)
        for x in (answer, answer + 1, max(answer - 1, 0), answer + 10):
            text = " ".join(pretrain.check_steps(family, numbers, x))
            for statement in re.findall(r"\d[\d +*-]*(?: = [\d +*-]*\d)+", text):
                sides = [value(side) for side in statement.split(" = ")]
                assert len(set(sides)) == 1, text
            *_, last = re.findall(r"= (\d+)\.", text) or [None]
            for wanted, gap, side in re.findall(r"It should be (\d+), (?:(\d+) (more|less)|as it is)\.", text):
                assert int(wanted) == int(last) + int(gap or 0) * (-1 if side == "less" else 1) and gap != "0", text
            if x == answer:
                assert {str(value) for value in numbers.values()} - {*LEGS} <= set(re.findall(r"\d+", text)), text
            fails = bool(re.search(r"more than|\d (more|less)\.", text))
            assert fails == (x != answer), f"{problem}: {text}"


def test_checks_narrow_the_choices(puzzles):
    """Bug: what a failed check leaves to choose from lacks the answer, still holds the number that failed, or lies on both sides of it."""
    for family, _, _, numbers, problem in puzzles:
        if family == "tickets":
            continue
        answer = int(problem.answer)
        numbers = {**numbers, "choices": [int(y) for y in re.findall(r"\d+", problem.question.split(" Choose from ")[1])]}
        assert "Choose" not in pretrain.check_text(family, numbers, answer, answer)
        for given in {*numbers["choices"], 1, 12} - {answer}:
            left = [int(y) for y in re.search(r" Choose from ([\d, ]+)\. Therefore, the answer is incorrect\.$", pretrain.check_text(family, numbers, given, answer))[1].split(", ")]
            assert left == [y for y in numbers["choices"] if min(left) <= y <= max(left)] and answer in left, problem
            assert max(left) < given or min(left) > given, problem


def test_solutions_say_what_is_so(puzzles):
    """Bug: a worked solution miscalculates its written part, or ends with another number."""
    for family, _, _, numbers, problem in puzzles:
        if family == "tickets":
            continue
        text = pretrain.solve_text(family, numbers, int(problem.answer))
        for statement in text.split(". ")[:-1]:
            left, right = statement.replace("x", problem.answer).split(" = ")[::len(statement.split(" = ")) - 1]
            assert value(left) == value(right), text
        assert text.endswith(f" The answer is {problem.answer}.")


def test_times():
    """Bug: a product is wrong, or a one-digit factor comes before a two-digit one."""
    for a in range(0, 130):
        for b in (0, 1, 7, 9, 10, 13, 40, 99):
            sides = pretrain.times(a, b).rstrip(".").split(" = ")
            assert {value(side) for side in sides} == {a * b}
            assert a < 10 or b > 9 or sides[0].startswith(f"{a} *")


def test_splits_are_by_numbers(puzzles):
    """Bug: the same puzzle in other words or with other names is trained on and tested on."""
    seen, wordings = {}, collections.defaultdict(set)
    rng = random.Random(1)
    more = draw_all(rng, [(family, level) for family in FAMILIES for level in (1, 2)], 1000)
    for family, _, split, numbers, problem in puzzles + more:
        key = (family, *sorted(numbers.items()))
        assert seen.setdefault(key, (split, problem.id)) == (split, problem.id)
        wordings[key].add(problem.question)
    ids = collections.Counter(id for _, id in seen.values())
    assert max(ids.values()) == 1  # one id, one puzzle
    assert sum(len(w) > 1 for w in wordings.values()) > 1000


def test_generated_splits_never_meet():
    """Bug: train and test share a puzzle for some pair of seeds."""
    sets = {(split, seed): make_puzzles(split, count, seed) for split, count in (("train", 3000), ("test", 600), ("valid", 200)) for seed in (0, 1)}
    for what in (lambda p: p.id, lambda p: p.question):
        by_split = {split: {what(p) for s in (0, 1) for p in sets[split, s]} for split in ("train", "test", "valid")}
        assert not by_split["train"] & by_split["test"] and not by_split["train"] & by_split["valid"] and not by_split["test"] & by_split["valid"]
    for (split, _), problems in sets.items():
        assert len({p.id for p in problems}) == len(problems)
        assert {p.family for p in problems} == set(TRAINED)


def test_split_shares():
    """Bug: the hash favours one split, or fails on odd text."""
    counts = collections.Counter(split_of(f"text {i}") for i in range(10_000))
    assert abs(counts["train"] - 8000) < 200 and abs(counts["valid"] - 500) < 110 and abs(counts["test"] - 1500) < 180
    assert split_of("\ud800") in ("train", "valid", "test")


def test_generator_is_deterministic():
    """Bug: the same seed gives other puzzles in another process (as with Python's own hash), or reads the global generator."""
    random.seed(1)
    first = make_puzzles("train", 200, seed=3)
    random.seed(2)
    assert make_puzzles("train", 200, seed=3) == first != make_puzzles("train", 200, seed=4)
    code = "from nanoverify.problems import make_puzzles; print(repr(make_puzzles('train', 200, seed=3)))"
    for hash_seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.strip() == repr(first)


def test_shares_of_families_and_levels():
    """Bug: a family or level is missing from a split, or crowds out the others."""
    for split in ("train", "test"):
        counts = collections.Counter((p.family, p.level) for p in make_puzzles(split, 550, seed=0))
        assert set(counts) == {(family, level) for family in TRAINED for level in LEVELS}
        assert max(counts.values()) <= 2.5 * 550 / len(counts)


def test_thousands_exist():
    """Bug: ranges are so small that the generator runs dry, repeats itself, or never ends."""
    problems = make_puzzles("train", 8000, seed=0)
    assert len({p.question for p in problems}) == 8000
    with pytest.raises(InputError, match="distinct test puzzles exist for linear"):
        make_puzzles("test", 10 ** 6, seed=0, families=("linear",))
    found = make_puzzles("test", 10 ** 6, seed=0, families=("linear",), fewer=True)
    assert 100 < len({p.question for p in found}) == len(found) < 10 ** 4


def test_held_out_families():
    """Bug: a family for measuring transfer is trained on."""
    assert len(TRAINED) >= 8 and len(HELD_OUT) >= 1 and not set(TRAINED) & set(HELD_OUT) and set(TRAINED) | set(HELD_OUT) == set(FAMILIES)
    assert "tickets" not in pretrain.FAMILIES  # not even the shipped policy has met it
    assert {p.family for p in make_puzzles("test", 40, seed=0, families=HELD_OUT)} == set(HELD_OUT)


# ---- readers --------------------------------------------------------------------------------------------------------

def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_gsm8k(tmp_path):
    """Bug: the gold answer is the whole solution, or a number from its middle."""
    path = write(tmp_path / "gsm.jsonl", {"question": " Natalia sold 48 clips in April and half as many in May. How many? ",
                                          "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72"})
    (problem,) = read_problems([path])
    assert (problem.answer, problem.family, problem.level, problem.id) == ("72", "gsm", None, "gsm-1")
    assert problem.question.startswith("Natalia") and problem.question.endswith("How many?") and "Natalia" in SOLVE_PROMPT.format(question=problem.question)


def test_math(tmp_path):
    """Bug: the box is cut at its first brace; level and type are lost; the answer field of MATH-500 is passed over."""
    path = write(tmp_path / "math.jsonl",
                 {"problem": "Half?", "level": "Level 5", "type": "Algebra", "solution": "So $x = \\boxed{\\frac{1}{2}}$."},
                 {"problem": "Third?", "level": 3, "subject": "Algebra", "answer": "\\frac{1}{3}", "solution": "\\boxed{9}", "unique_id": "test/a/1.json"},
                 {"problem": "What?", "level": "Level ?", "type": "Geometry", "solution": "\\boxed{4} and so \\boxed{5}"})
    first, second, third = read_problems([path])
    assert (first.answer, first.level, first.family) == ("\\frac{1}{2}", 5, "Algebra")
    assert (second.answer, second.level, second.id) == ("\\frac{1}{3}", 3, "test/a/1.json")
    assert (third.answer, third.level) == ("5", None)


def test_plain(tmp_path):
    """Bug: numbers as answers, a BOM, CRLF, blank lines or a second file upset the reader."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "1 + 1?", "answer": 2}\r\n\r\n{"question": "Zero?", "answer": 0, "id": 7, "family": "f", "level": 2}\r\n')
    found = read_problems([path, write(tmp_path / "b.jsonl", {"question": "é?", "answer": "x = 1"})])
    assert [(p.id, p.answer, p.family, p.level) for p in found] == [("a-1", "2", "a", None), ("7", "0", "f", 2), ("b-1", "x = 1", "b", None)]


GOOD = {"question": "1 + 1?", "answer": "2"}


@pytest.mark.parametrize("row, reason", [
    ("{", "not valid JSON"),
    ("[1]", "expected a JSON object"),
    ('"text"', "expected a JSON object"),
    ({"answer": "2"}, "question"),
    ({"question": "  ", "answer": "2"}, "question"),
    ({"question": ["1"], "answer": "2"}, "question"),
    ({"question": "1?"}, "answer"),
    ({"question": "1?", "answer": None}, "answer"),
    ({"question": "1?", "answer": True}, "answer"),
    ({"question": "1?", "answer": ["2"]}, "answer"),
    ({"question": "1?", "answer": " "}, "answer"),
    ({"problem": "1?", "solution": ""}, "answer"),
    ({"question": "1?", "answer": "2", "id": "same"}, "same"),
    ({"question": "1?", "answer": "2", "ID": "same"}, "same"),
    ({"body": 5, "question": "1?", "answer": "2"}, "body"),
    ({"question": None, "problem": None, "answer": "2"}, "question"),
    ({"question": "1?", "choices": ["2", "3"], "answer": 0}, "choices"),
    ({"question": "1?", "choices": ["4", "5"], "answer": "1"}, "choices"),
    ({"question": "1?", "options": ["A)2", "B)3"], "answer": "B"}, "options"),
    ({"question": "1?", "options": {"A": "2", "B": "3"}, "answer": "(b)"}, "options"),
    ({"question": "1?", "options": ["A)2", "B)3"], "correct": "B"}, "options"),
    ({"Problem": "1?", "options": "a ) 2 , b ) 3", "correct": "a"}, "options"),
])
def test_bad_rows(row, reason, tmp_path):
    """Bug: a bad row is skipped, guessed at, or named by the wrong line."""
    path = write(tmp_path / "bad.jsonl", {**GOOD, "id": "same"}, "", row, GOOD)
    with pytest.raises(InputError) as error:
        read_problems([path])
    assert str(error.value).startswith(f"{path}:3: ") and reason in str(error.value) and "\n" not in str(error.value)


def test_null_is_absent(tmp_path):
    """Bug: published files write null where a field is absent: 'None' becomes an id or a
    family, or the row is refused."""
    path = write(tmp_path / "a.jsonl",
                 {"id": None, "question": None, "problem": "1 + 1?", "answer": None,
                  "solution": "So \\boxed{2}.", "type": None, "level": None},
                 {"id": None, "unique_id": "u", "question": "2?", "answer": 2})
    assert [(p.id, p.question, p.answer, p.family, p.level) for p in read_problems([path])] == [
        ("a-1", "1 + 1?", "2", "a", None), ("u", "2?", "2", "a", None)]


def test_ids_of_several_files(tmp_path):
    """Bug: two published files that both count their rows from 0 cannot be read together; or
    two questions share an id; or a file given twice doubles its questions."""
    (tmp_path / "b").mkdir()
    rows = [{"id": 0, "question": "1?", "answer": "1"}, {"question": "2?", "answer": "2"}]
    paths = [write(folder / "q.jsonl", *rows) for folder in (tmp_path, tmp_path / "b")]
    found = read_problems(paths)
    assert [p.id for p in found] == ["0", "q-2", f"{paths[1]}:0", f"{paths[1]}:q-2"]
    with pytest.raises(InputError, match="q.jsonl: a file is given twice"):
        read_problems([paths[0], paths[0]])


def test_story_and_question(tmp_path):
    """Bug: ASDiv and SVAMP tell the story in `body`, and the model is asked "How many are
    left?" alone; a unit in brackets or a name in capitals hides the answer."""
    path = write(tmp_path / "a.jsonl",
                 {"body": "Seven red and two green apples are in the basket. ",
                  "question": "How many apples are there?", "answer": "9 (apples)"},
                 {"ID": "chal-1", "Body": "A pack costs 76 dollars.",
                  "Question": "What do 2 cost?", "Answer": 152.0, "Type": "Multiplication"},
                 {"question": "Where?", "answer": "(3, 4)"})
    first, second, third = read_problems([path])
    assert first.question == ("Seven red and two green apples are in the basket. "
                              "How many apples are there?")
    assert (first.answer, second.answer, third.answer) == ("9", "152.0", "(3, 4)")
    assert second.question == "A pack costs 76 dollars. What do 2 cost?"
    assert (second.id, second.family) == ("chal-1", "Multiplication")


def test_several_boxes(tmp_path):
    """Bug: of two roots in two boxes only the last is the gold answer, and whoever gives both
    is wrong."""
    answers = {
        "So $x = \\boxed{2}$ or $x = \\boxed{\\frac{1}{3}}$.": "2, \\frac{1}{3}",
        "It is $\\boxed{2}$. Or, by another way, $\\boxed{\\frac{4}{2}}$.": "\\frac{4}{2}",
        "One root is $\\boxed{2}$. We divide by $x - 2$ and find $\\boxed{5}$.": "2, 5",
        "$\\log_2 4 = \\boxed{2}$, so $\\log_2(4^2) = \\boxed{4}$": "4",
        "Our answer is $\\boxed 2$.": "2"}
    rows = [{"problem": "What?", "solution": solution} for solution in answers]
    found = read_problems([write(tmp_path / "a.jsonl", *rows)])
    assert [problem.answer for problem in found] == [*answers.values()]


def test_proofs_are_left_out(tmp_path, capsys):
    """Bug: a number in the middle of a proof, or the word notfound, is the gold answer; or
    nobody is told how many rows went."""
    long = "We add the two equations and see that the 7 terms cancel, which was to be shown."
    path = write(tmp_path / "a.jsonl",
                 {"problem": "Prove it.", "solution": long},
                 {"problem": "1?", "solution": "So it is \\boxed{1}.", "answer": "notfound"},
                 {"problem": "Prove that.", "answer": "Proof", "solution": long},
                 {"problem": "2?", "solution": f"{long} The answer is 2."},
                 {"problem": "3?", "solution": "x = 3"},
                 {"problem": "4?", "solution": long, "answer": "4"})
    found = {problem.question: problem.answer for problem in read_problems([path])}
    assert found == {"2?": "2", "3?": "x = 3", "4?": "4"}
    said = capsys.readouterr().err
    assert said == f"3 rows without an answer, such as proofs, left out; the first: {path}:1\n"


def test_choices_with_the_text_of_the_answer(tmp_path):
    """Bug: every row with choices is refused, also where the answer is written out."""
    path = write(tmp_path / "a.jsonl",
                 {"question": "1?", "choices": ["2", "3"], "answer": "3"},
                 {"question": "2?", "options": {"A": "x", "B": "y"}, "answer": "y"},
                 {"question": "3?", "choices": [], "answer": 3},
                 {"question": "4?", "options": None, "answer": "4"})
    assert [p.answer for p in read_problems([path])] == ["3", "y", "3", "4"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array(indent, tmp_path):
    """Bug: an array of objects, as many sites publish them, is refused; or a bad item is named
    by no number, or skipped."""
    rows = [{"question": f"{n}?", "answer": n} for n in (1, 2)]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=indent), encoding="utf-8")
    found = read_problems([tmp_path / "a.json"])
    assert [(problem.id, problem.answer) for problem in found] == [("a-1", "1"), ("a-2", "2")]
    (tmp_path / "a.json").write_text(json.dumps([*rows, 5], indent=indent))
    with pytest.raises(InputError, match="a.json:3: expected a JSON object, found int"):
        read_problems([tmp_path / "a.json"])
    assert len(read_problems([tmp_path / "a.json"], bad := [])) == 2 and len(bad) == 1
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent)[:-3])
    with pytest.raises(InputError, match="a.json:1: not valid JSON"):
        read_problems([tmp_path / "a.json"])


def test_other_formats_are_named(tmp_path, monkeypatch):
    """Bug: a Parquet or gzip file is "not valid UTF-8" in line 1, and with --skip-bad-lines all
    of its lines are bad; or the command that is shown does not convert it."""
    monkeypatch.chdir(tmp_path)
    content = write(tmp_path / "a.jsonl", {"question": "1?", "answer": "é"}).read_bytes()
    Path("q.jsonl.gz").write_bytes(gzip.compress(content))
    named = "q.jsonl.gz: is a gzip file, not JSONL; convert it: python -c "
    with pytest.raises(InputError, match=named) as error:
        read_problems(["q.jsonl.gz"], [])
    code = str(error.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [p.answer for p in read_problems(["q.jsonl-converted.jsonl"])] == ["é"]
    Path("q.parquet").write_bytes(b"PAR1\x15\x04\x15\x10PAR1")
    named = "q.parquet: is a Parquet file, not JSONL; .*q-converted.jsonl"
    with pytest.raises(InputError, match=named):
        read_problems(["q.parquet"], [])


def test_bad_files(tmp_path):
    """Bug: a missing, empty or binary file gives a traceback, or nothing to train on."""
    for path, reason in ((tmp_path / "none.jsonl", "none.jsonl"), (tmp_path, "cannot be read"), (write(tmp_path / "empty.jsonl", "", " "), "no questions")):
        with pytest.raises(InputError, match=reason):
            read_problems([path])
    (tmp_path / "binary.jsonl").write_bytes(b'{"question": "1?", "answer": "2"}\n{"question": "\xff\xfe"}')
    with pytest.raises(InputError, match="binary.jsonl:2: .*UTF-8"):
        read_problems([tmp_path / "binary.jsonl"])


@pytest.mark.parametrize("row", ['{"question": "\\ud800?", "answer": "2"}', '{"question": "?", "answer": "2", "level": "\\u00b2"}', "[" * 100_000],
                         ids=["half a surrogate pair", "superscript as level", "deep nest"])
def test_hostile_rows_are_no_crash(row, tmp_path):
    """Bug: an odd row ends in a traceback, here or later in the tokenizer."""
    try:
        for problem in read_problems([write(tmp_path / "a.jsonl", row)]):
            problem.question.encode()  # what a tokenizer needs
    except InputError as error:
        assert f"{tmp_path / 'a.jsonl'}:1: " in str(error)
