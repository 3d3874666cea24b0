"""Problems: how answers are checked, who may see a question, and readers of published files."""
import collections
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanoverify.problems import SOLVE_PROMPT, Problem, read_problems, split_of, uses_each_once
from nanoverify.support.files import InputError


def test_accepts_compares_with_the_gold_answer():
    """Bug: a response is compared as a whole, a wrong answer is right, or an unreadable one is."""
    problem = Problem("1", "2 x = 12?", "6", "f", 1)
    assert problem.accepts("12 / 2 = 6. The answer is 6.") and problem.accepts("The answer is 6.0.")
    assert not problem.accepts("12 / 2 = 6. The answer is 7.")
    assert not problem.accepts("") and not problem.accepts("I do not know.")


def test_accepts_by_rule():
    """Bug: an expression is compared with one gold text, so that other right ones are wrong; a
    number is left out, used twice or invented; only the value, or the right side of an equation,
    is believed."""
    problem = Problem("1", "Make 19 from 3, 5 and 8.", "19", "countdown", 1, (3, 5, 8))
    for right in ("3 * 8 - 5", "8 * 3 - 5", "(8)*3-5", "3 * 8 - 5 = 19", "3 \\times 8 - 5",
                  "(3 * 8) - 5"):
        assert problem.accepts(f"The answer is {right}."), right
    for wrong in ("19", "3 + 8 + 8", "3 * 8 - 5 + 0", "3 * 8 - 5 = 20", "5 - 3 * 8", "8 + 5 + 3",
                  "19 = 3 * 8 - 5", "24 - 5", "3 * 8 - 5 - 5", "38 - 19", ""):
        assert not problem.accepts(f"The answer is {wrong}."), wrong
    twice = Problem("2", "Make 9 from 4, 4 and 1.", "9", "countdown", 1, (1, 4, 4))
    assert twice.accepts("The answer is 4 + 4 + 1.") and not twice.accepts("The answer is 4 + 5.")


@pytest.mark.parametrize(
    "text", ["5and 3", "0x8 * 3 - 5", "8 * 3 - 5 if 1 else 0", "8 *\n3 - 5", "8 3", ""])
def test_rule_reads_plain_expressions_only(text, recwarn):
    """Bug: Python warns about a model's text on the screen, or reads numbers nobody writes."""
    assert not uses_each_once(text, (3, 5, 8), 19)
    assert not recwarn.list


def test_rule_never_runs_text():
    """Bug: a model's text is evaluated, or a hostile one raises, hangs or takes all memory."""
    for text in ("__import__('os').getcwd()", "9**9**9**9", "9 // 3", "6 / 2", "[x for x in (3,)]",
                 "True", "1e3", "3.0", "-3", "(" * 90 + "3" + ")" * 90, "3" * 99, "3 +", "\x00",
                 "\ud800", "3 @ 5", "lambda: 3", "(3, 5)", "3; 5", "3\n5", "~3"):
        assert not uses_each_once(text, (3, 5), 8), text
    assert uses_each_once("3 + 5", (5, 3), 8)


def test_split_shares():
    """Bug: the hash favours one split, or fails on odd text."""
    counts = collections.Counter(split_of(f"text {i}") for i in range(10_000))
    assert abs(counts["train"] - 8000) < 200 and abs(counts["valid"] - 500) < 110
    assert abs(counts["test"] - 1500) < 180
    assert split_of("\ud800") in ("train", "valid", "test")


# ---- readers -----------------------------------------------------------------------------------

def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows),
                    encoding="utf-8")
    return path


def test_gsm8k(tmp_path):
    """Bug: the gold answer is the whole solution, or a number from its middle."""
    path = write(tmp_path / "gsm.jsonl", {
        "question": " Natalia sold 48 clips in April and half as many in May. How many? ",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
                  "Altogether 48+24 = <<48+24=72>>72.\n#### 72"})
    (problem,) = read_problems([path])
    assert (problem.answer, problem.family, problem.level,
            problem.id) == ("72", "gsm", None, "gsm-1")
    assert problem.question.startswith("Natalia") and problem.question.endswith("How many?")
    assert "Natalia" in SOLVE_PROMPT.format(question=problem.question)


def test_math(tmp_path):
    """Bug: the box is cut at its first brace; level and type are lost; the answer field of MATH-500
    is passed over."""
    path = write(tmp_path / "math.jsonl",
                 {"problem": "Half?", "level": "Level 5", "type": "Algebra",
                  "solution": "So $x = \\boxed{\\frac{1}{2}}$."},
                 {"problem": "Third?", "level": 3, "subject": "Algebra", "answer": "\\frac{1}{3}",
                  "solution": "\\boxed{9}", "unique_id": "test/a/1.json"},
                 {"problem": "What?", "level": "Level ?", "type": "Geometry",
                  "solution": "\\boxed{4} and so \\boxed{5}"})
    first, second, third = read_problems([path])
    assert (first.answer, first.level, first.family) == ("\\frac{1}{2}", 5, "Algebra")
    assert (second.answer, second.level, second.id) == ("\\frac{1}{3}", 3, "test/a/1.json")
    assert (third.answer, third.level) == ("5", None)


def test_plain(tmp_path):
    """Bug: numbers as answers, a BOM, CRLF, blank lines or a second file upset the reader."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "1 + 1?", "answer": 2}\r\n\r\n'
                     b'{"question": "Zero?", "answer": 0, "id": 7, "family": "f", "level": 2}\r\n')
    found = read_problems([path,
                           write(tmp_path / "b.jsonl", {"question": "é?", "answer": "x = 1"})])
    assert [(p.id, p.answer, p.family, p.level)
            for p in found] == [("a-1", "2", "a", None), ("7", "0", "f", 2),
                                ("b-1", "x = 1", "b", None)]


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
    assert str(error.value).startswith(f"{path}:3: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


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
    """Bug: of two roots in two boxes only the last is the gold answer, and an answer with both
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
    for path, reason in ((tmp_path / "none.jsonl", "none.jsonl"), (tmp_path, "cannot be read"),
                         (write(tmp_path / "empty.jsonl", "", " "), "no questions")):
        with pytest.raises(InputError, match=reason):
            read_problems([path])
    (tmp_path / "binary.jsonl").write_bytes(
        b'{"question": "1?", "answer": "2"}\n{"question": "\xff\xfe"}')
    with pytest.raises(InputError, match="binary.jsonl:2: .*UTF-8"):
        read_problems([tmp_path / "binary.jsonl"])


@pytest.mark.parametrize("row",
                         ['{"question": "\\ud800?", "answer": "2"}',
                          '{"question": "?", "answer": "2", "level": "\\u00b2"}', "[" * 100_000],
                         ids=["half a surrogate pair", "superscript as level", "deep nest"])
def test_hostile_rows_are_no_crash(row, tmp_path):
    """Bug: an odd row ends in a traceback, here or later in the tokenizer."""
    try:
        for problem in read_problems([write(tmp_path / "a.jsonl", row)]):
            problem.question.encode()  # what a tokenizer needs
    except InputError as error:
        assert f"{tmp_path / 'a.jsonl'}:1: " in str(error)
