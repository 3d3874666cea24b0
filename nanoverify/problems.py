"""Questions: what a problem is, how its answers are checked, and readers for GSM8K, MATH and plain JSONL.

The built-in puzzles are in puzzles.py.
"""
import ast
import hashlib
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

from nanoverify.answers import extract, grade
from nanoverify.files import InputError, print_skipped, read_jsonl, refuse

# How a question is put to any model; the answer is read after "The answer is".
SOLVE_PROMPT = '{question}\nThink step by step and end with "The answer is ...".'


@dataclass(frozen=True)
class Problem:
    """One question, and how its answers are checked: against the gold answer, or by a rule where many are right.

    `level` is None where a file gives none. `numbers`: the answer is an expression that uses each of these numbers
    once and whose value is `answer`; None: the answer equals `answer`.
    """
    id: str
    question: str
    answer: str
    family: str
    level: int | None
    numbers: tuple[int, ...] | None = None

    def accepts(self, response: str) -> bool:
        """Is the final answer of this response right? An unreadable answer is not."""
        if self.numbers is None:
            return grade(self.answer, response) is True
        return uses_each_once(extract(response), self.numbers, int(self.answer))


def uses_each_once(text: str, numbers: tuple[int, ...], target: int) -> bool:
    """Is the text an expression of +, - and * whose value is `target` and which uses each number once?

    >>> uses_each_once("8 * 3 - 5", (3, 5, 8), 19)
    True

    The text is a model's: it is parsed, at most 100 characters of it, and never evaluated as code.
    """
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("×", "*")
    left, equals, right = text.partition("=")
    if len(text) > 100 or equals and right.strip() != str(target):
        return False
    used = []

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in (ast.Add, ast.Sub, ast.Mult):
            a, b = value(node.left), value(node.right)
            return a + b if isinstance(node.op, ast.Add) else a - b if isinstance(node.op, ast.Sub) else a * b
        raise ValueError("only numbers, +, -, * and brackets")

    try:
        found = value(ast.parse(left.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return found == target and sorted(used) == sorted(numbers)


def split_of(key: str) -> str:
    """'train' (80%), 'valid' (5%) or 'test' (15%), a fixed function of the text."""
    bucket = int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "valid" if bucket < 85 else "test"


# ---- files --------------------------------------------------------------------------------------------------------

def read_problems(paths, bad: list | None = None) -> list[Problem]:
    """Problems from JSONL files: GSM8K (`question`, `answer` ending in `#### n`), MATH (`problem`, `solution` with a
    box, `level`, `type`; MATH-500 adds `answer`, `unique_id`) or plain (`question`, `answer`, optional `level`, `id`, `family`).

    InputError: file:line: what is missing or wrong; or `bad` gets the reasons and the lines are left out.
    """
    problems, seen = [], {}
    for path in paths:
        for number, row in read_jsonl(path, bad=bad):
            where = f"{path}:{number}"
            question = row.get("question", row.get("problem"))
            gold = row.get("answer", row.get("solution"))
            if not isinstance(question, str) or not question.strip():
                refuse(f"{where}: no text in 'question' (or 'problem')", bad)
                continue
            if isinstance(gold, bool) or not isinstance(gold, (str, int, float)) or isinstance(gold, float) and not math.isfinite(gold):
                refuse(f"{where}: 'answer' (or 'solution') is missing or no text", bad)
                continue
            gold = str(gold).strip()
            answer = extract(gold) if "####" in gold or "\\boxed" in gold or "answer" not in row else gold
            if not answer:
                refuse(f"{where}: no final answer in 'answer' (or 'solution')", bad)
                continue
            level = row.get("level")
            digits = re.search(r"[0-9]{1,9}", str(level))  # 3, "3" or "Level 3"
            identity = str(row.get("id", row.get("unique_id", f"{Path(path).stem}-{number}")))
            if identity in seen:
                refuse(f"{where}: id {identity!r} was used before, in {seen[identity]}", bad)
                continue
            seen[identity] = where
            family = str(row.get("family", row.get("type", Path(path).stem)))
            problems.append(Problem(identity, question.strip(), answer, family, int(digits[0]) if digits else None))
    print_skipped(bad)
    if not problems:
        raise InputError(f"{', '.join(map(str, paths))}: no questions in it")
    return problems
