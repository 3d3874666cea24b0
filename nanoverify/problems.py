"""Questions: what a problem is, how its answers are checked, and readers for GSM8K, MATH and plain
JSONL.

The built-in puzzles are in puzzles.py.
"""
import ast
import hashlib
import math
import operator
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from nanoverify.answers import extract, grade
from nanoverify.support.files import InputError, print_skipped, read_jsonl, refuse

# How a question is put to any model; the answer is read after "The answer is".
SOLVE_PROMPT = '{question}\nThink step by step and end with "The answer is ...".'


@dataclass(frozen=True)
class Problem:
    """One question, and how its answers are checked.

    level      None if the file gives none
    numbers    None: a right answer equals `answer`. Else it is an expression that uses each of
               these numbers once and whose value is `answer`
    """
    id: str
    question: str
    answer: str
    family: str
    level: int | None
    numbers: tuple[int, ...] | None = None

    def accepts(self, response: str) -> bool:
        """Whether the final answer of this response is right. An unreadable answer is not."""
        if self.numbers is None:
            return grade(self.answer, response) is True
        return uses_each_once(extract(response), self.numbers, int(self.answer))


EXPRESSION = re.compile(r"[0-9 +*()-]+")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def uses_each_once(text: str, numbers: tuple[int, ...], target: int) -> bool:
    """Whether the text is an expression of +, - and * that uses each number once and has the value
    `target`.

    >>> uses_each_once("8 * 3 - 5", (3, 5, 8), 19)
    True

    The text comes from a model: it is parsed if it has at most 100 characters, and never run.
    """
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("×", "*")
    left, equals, right = text.partition("=")
    if len(text) > 100 or not EXPRESSION.fullmatch(left) or equals and right.strip() != str(target):
        return False
    used = []

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError("only numbers, +, -, * and brackets")

    try:
        result = value(ast.parse(left.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return result == target and sorted(used) == sorted(numbers)


def split_of(key: str) -> str:
    """'train' (80%), 'valid' (5%) or 'test' (15%), a fixed function of the text."""
    bucket = int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "valid" if bucket < 85 else "test"


# ---- files ---------------------------------------------------------------------------------------

NO_ANSWER = ("proof", "notfound")  # NuminaMath's answers to questions without one
# words before an answer; words after a box that is only a step to the next one
MARKED = re.compile(r"####|\\f?box|\banswers?\b.{0,80}?(?:\b(?:is|are)\b|[:=])", re.I)
STEP = re.compile(r"[}$,\s]*(?:and\s+)?so\b")


def read_problems(paths, bad: list | None = None) -> list[Problem]:
    """Problems from JSONL files of these forms. Capital letters do not matter; null means absent.

        question, answer                  plain, or GSM8K, whose answer ends in `#### n`;
                                          all forms may also have: id, level, family
        problem, solution, level, type    MATH: the answer is in boxes; others add `answer`
        body, question, answer            ASDiv and SVAMP: the body comes before the question

    bad: the reasons of unusable lines; None: the first one is an InputError "file:line: reason".
    Proofs have no answer: they are left out and counted on stderr.
    """
    problems, proofs, seen = [], [], set()
    if len(set(map(str, paths))) < len(paths):
        raise InputError(f"{', '.join(map(str, paths))}: a file is given twice")
    for path in paths:
        stem, here = Path(path).stem, {}  # id -> file:line
        for number, row in read_jsonl(path, bad=bad):
            where = f"{path}:{number}"
            row = {key.lower(): value for key, value in row.items()} | row
            row = {key: value for key, value in row.items() if value is not None}
            name = str(row.get("id", row.get("unique_id", f"{stem}-{number}")))
            try:
                if name in here:
                    raise ValueError(f"id {name!r} was used before, in {here[name]}")
                question, answer = question_of(row), answer_of(row)
            except ValueError as error:
                refuse(f"{where}: {error}", bad)
                continue

            here[name] = where
            if answer is None:
                proofs.append(where)
                continue
            identity = f"{path}:{name}" if name in seen else name  # two files may count from 0
            seen.add(identity)
            family = str(row.get("family", row.get("type", stem)))
            problems.append(Problem(identity, question, answer, family, level_of(row)))
    print_skipped(bad)
    if proofs:
        print(f"{len(proofs)} rows without an answer, such as proofs, left out; the first: "
              f"{proofs[0]}", file=sys.stderr)
    if not problems:
        raise InputError(f"{', '.join(map(str, paths))}: no questions in it")
    return problems


def level_of(row: dict) -> int | None:
    """3 of 3, "3" or "Level 3"."""
    digits = re.search(r"[0-9]{1,9}", str(row.get("level")))
    return int(digits[0]) if digits else None


def question_of(row: dict) -> str:
    """The question, after its body. ValueError: no text."""
    question, body = row.get("question", row.get("problem")), row.get("body", "")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("no text in 'question' (or 'problem')")
    if not isinstance(body, str):
        raise ValueError("no text in 'body'")
    return f"{body.strip()} {question.strip()}".strip()


def answer_of(row: dict) -> str | None:
    """The bare gold answer; None: a proof. ValueError: no answer, or the index of a choice."""
    options = row.get("choices") or row.get("options")
    if options and is_index(row.get("answer"), options):
        raise ValueError("'choices' or 'options': multiple choice with the index or the letter of "
                         "the right one; write its text into 'answer' and remove the choices")
    given = "answer" in row
    gold = row["answer"] if given else row.get("solution")
    finite = isinstance(gold, (int, float)) and math.isfinite(gold)
    if isinstance(gold, bool) or not isinstance(gold, str) and not finite:
        raise ValueError("'answer' (or 'solution') is missing or no text")
    gold = str(gold).strip()
    prose = len(re.findall(r"[A-Za-z]{2,}", gold)) > 2  # a number in it is any number
    if gold.lower() in NO_ANSWER or not given and prose and not MARKED.search(gold):
        return None
    if "body" in row:
        gold = re.sub(r"(?<=\w)\s*\([^()\d]*\)$", "", gold)  # "9 (apples)", as in ASDiv
    bare = given and "####" not in gold and "\\boxed" not in gold
    answer = gold if bare else boxed(gold) or extract(gold)
    if not answer:
        raise ValueError("no final answer in 'answer' (or 'solution')")
    return answer


def is_index(answer, options) -> bool:
    """Whether the answer only names one of the options, by letter or number."""
    texts = list(options.values()) if isinstance(options, dict) else options
    if isinstance(answer, str) and isinstance(texts, list) and answer in texts:
        return False
    letter_or_number = r"\(?([A-Za-z]|\d+)[).]?"
    return not isinstance(answer, str) or bool(re.fullmatch(letter_or_number, answer.strip()))


def boxed(solution: str) -> str:
    """The values of several boxes as a list, as in some answers of MATH; '' of a single value."""
    values, texts = [], re.split(r"(?=\\boxed\b)", solution)[1:]
    for text in texts:  # each begins with a box
        value = extract(text)
        if text is not texts[-1] and STEP.match(text.partition(value)[2]):
            continue  # "2^2 = \boxed{4}, so 2^3 = \boxed{8}"
        if not any(grade(other, value) for other in values):
            values.append(value)
    return ", ".join(values) if len(values) > 1 else ""
