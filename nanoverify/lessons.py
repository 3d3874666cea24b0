"""What the base reads before the three stages: worked examples of the training puzzles.

    solve     Suppose 4. 4 * 2 = 8. 27 + 8 = 35. It should be 39, 4 more. 4 / 2 = 2.
              The answer is 6.
    check     Put in 6: 6 * 2 = 12. 27 + 12 = 39. It should be 39, as it is. Therefore, ...
    in brief  Suppose 4. 27 + 8 = 35. It should be 39, 4 more. The answer is 6.
    again     solve again, and compare with the answer given
    chat      find the answer it gave some lines above when asked to check it, and give another one
              when told that it is wrong, by a solution that begins with another number
    drills    the arithmetic below all that
    phrase    say one of the phrases of the method when asked to

No document checks or retries unasked, and no phrase that opens these actions is in use: that is
what the stages teach.
"""
import random

from nanoverify.problems import SOLVE_PROMPT
from nanoverify.puzzles import (
    FAMILIES,
    LEVELS,
    UNKNOWN,
    add,
    compare,
    expression,
    minus,
    puzzle,
    steps_of,
    times,
)
from nanoverify.trajectory import RECHECK, RETRY, first_step
from nanoverify.verifier import VERDICTS, VERIFY_PROMPTS

Piece = tuple[str, bool]  # a text, and whether it is learned

KNOWN = tuple(family for family in FAMILIES if family != "tickets")
BRIEF = 0.6  # of the solutions and of the checks leave out steps, as people mostly do
WEIGHTS = {"drills": 8, "solve": 28, "check": 9, "again": 4, "chat": 40, "phrase": 1}
# The words of the phrases are tokens that the base has met.
PHRASES = (RECHECK, RETRY, *VERDICTS.values())
ASK_CHECK = ("Check it.", "Is that right? Put it back into the question.", "Check that answer.")
ASK_AGAIN = ("That is wrong. Give another answer.", "No. What else can it be?",
             "That is not it. Solve it once more.")


def ask(text: str) -> Piece:
    return f"<|user|>{text}<|assistant|>", False


# ---- worked solutions and checks ---------------------------------------------------------------

def in_full(steps: list[str]) -> list[str]:
    """All steps of a solution or a check."""
    return steps


def in_brief(steps: list[str]) -> list[str]:
    """Only the last calculation: '27 + 8 = 35. It should be 39, 4 more.'

    The rest is done in the head, and is often wrong there. Unchanged if nothing is compared.
    """
    for i, step in enumerate(steps):
        if i and step.startswith("It should be"):
            return steps[i - 1: i + 1]
    return steps


def writing(rng):
    """How one solution or one check is written: in_brief or in_full."""
    return in_brief if rng.random() < BRIEF else in_full


def solve_text(family: str, numbers: dict, answer, trial, write=in_full) -> str:
    """A solution that ends with this answer, right or wrong. trial: the number it supposes first.

    A solution of Countdown computes its expression instead, always in full.
    """
    steps = solve_steps(family, numbers, answer, trial, write)
    return " ".join([*steps, f"The answer is {answer}."])


def solve_steps(family: str, numbers: dict, answer, trial, write) -> list[str]:
    if family == "countdown":
        return steps_of(answer)
    kind = FAMILIES[family]
    steps = kind.check(numbers, trial)
    slope = kind.slope(numbers)
    if slope and trial not in (answer, numbers["x"]):
        off = slope * abs(numbers["x"] - trial)
        steps.append(f"{off} / {slope} = {abs(answer - trial)}.")
    return [f"Suppose {trial}.", *write(steps)]


def next_trial(rng, family: str, numbers: dict, used: list[int]):
    """The number that the next solution supposes: any at first, then the one that follows.

    After the largest comes the smallest. None if the family has none.
    """
    if family == "countdown":
        return None
    trials = FAMILIES[family].trials(numbers)
    if not used:
        return rng.choice(trials)
    return trials[(trials.index(used[-1]) + 1) % len(trials)]


def check_text(family: str, numbers: dict, given, write=in_full) -> str:
    steps = FAMILIES[family].check(numbers, given)
    right = steps[-1].endswith("as it is.")
    return " ".join([f"Put in {given}:", *write(steps), VERDICTS[right]])


def again_text(family: str, numbers: dict, given, trial, write=in_full) -> str:
    x = numbers["x"]
    same = "the same." if given == x else "not the same."
    return " ".join(["Solving again:", *solve_steps(family, numbers, x, trial, write),
                     f"It is {x}. The answer above is {given}, {same}", VERDICTS[given == x]])


def near_miss(rng, numbers: dict, level: int, known=()):
    """A wrong answer that a hasty solver could give, none of those `known`."""
    x = numbers["x"]
    while True:
        if "target" in numbers:
            wrong = near_expression(rng, numbers, known)
        elif rng.random() < 0.7:  # off by a little
            size = 1
            while rng.random() < 0.5:
                size += 1
            wrong = x + rng.choice((-size, size))
        elif rng.random() < 0.5:
            wrong = x + rng.choice((-10, 10))
        else:
            wrong = rng.randint(1, UNKNOWN[level][1] + 5)
        if wrong not in (None, x, *known) and (isinstance(wrong, str) or wrong > 0):
            return wrong


def near_expression(rng, numbers: dict, known) -> str | None:
    """An expression that misses the target, the nearest of a few; None if none of them does.

    If it can, it begins with another step than the right one and those `known`.
    """
    target = numbers["target"]
    tries = [expression(rng, numbers["numbers"]) for _ in range(rng.randint(2, 6))]
    wrong = [(text, value) for text, value in tries if value != target]
    if not wrong:
        return None
    begun = {steps_of(text)[0] for text in (numbers["x"], *known)}
    text, _ = min(wrong, key=lambda one: (steps_of(one[0])[0] in begun, abs(one[1] - target)))
    if rng.random() < 0.1:  # one number twice, or none of the list
        text = text.replace(str(rng.choice(numbers["numbers"])), str(rng.randint(2, 12)), 1)
    return text


# ---- documents ---------------------------------------------------------------------------------

def chat(rng, family: str, level: int, numbers: dict, question: str, wrong: int) -> list[Piece]:
    """A conversation: an answer, its check on demand, another answer on demand, and so on.

    The first `wrong` answers are wrong. Of them only the beginning is learned, where it has a trial
    or is not the first: it nearly always differs from the one before.
    """
    trials = [next_trial(rng, family, numbers, [])]
    answers = []
    for _ in range(wrong):
        answers.append(near_miss(rng, numbers, level, answers))
        trials.append(next_trial(rng, family, numbers, trials))
    answers.append(numbers["x"])
    pieces = [ask(SOLVE_PROMPT.format(question=question))]
    for i, (answer, trial) in enumerate(zip(answers, trials)):
        right = answer == numbers["x"]
        text = solve_text(family, numbers, answer, trial, writing(rng))
        opening = first_step(text) if trial or i else ""
        pieces += [(opening, True), (text.removeprefix(opening) + "<|end|>", right)]
        if rng.random() < 0.6:
            check = check_text(family, numbers, answer, writing(rng))
            pieces += [ask(rng.choice(ASK_CHECK)), (check + "<|end|>", True)]
        if not right:
            pieces.append(ask(rng.choice(ASK_AGAIN)))
    return pieces


def drills(rng) -> list[Piece]:
    """Several exercises. Only their results are learned, for nobody can foresee what is asked."""
    pieces = [ask("Calculate.")]
    for _ in range(rng.randint(4, 12)):
        pieces += drill(rng)
    return [*pieces, ("<|end|>", True)]


def drill(rng) -> list[Piece]:
    kind = rng.choice(("add", "add", "minus", "minus", "times", "times", "compare", "divide"))
    big, small = rng.choice((20, 50, 99, 200, 360)), rng.choice((10, 20, 40, 40))
    a, b = rng.randint(1, big), rng.randint(1, small)
    if kind == "compare":
        near, off_by_digit = a + rng.randint(-12, 12), a + rng.choice((-100, -10, 10, 100))
        b = abs(rng.choice((a, a, near, off_by_digit, rng.randint(1, big))))
        wanted, how_far = compare(a, b).split(", ")
        return [(f" The result is {a}. {wanted},", False), (f" {how_far} {VERDICTS[a == b]}", True)]
    if kind == "divide":
        a, b = rng.randint(2, rng.choice((9, 18))), rng.randint(2, 9)
        return [(f" {a * b} / {b} =", False), (f" {a}.", True)]
    if kind == "times":
        text = times(rng.randint(2, rng.choice((9, 18))), rng.randint(2, rng.choice((9, 9, 9, 28))))
    elif kind == "add":
        text = add(a, b) if rng.random() < 0.5 else add(b, a)
    else:
        text = minus(max(a, b), min(a, b))
    statement, result = text.split(" = ")
    return [(f" {statement} =", False), (f" {result}", True)]


def train_puzzle(rng: random.Random):
    """(family, level, numbers, problem) of the training split.

    Countdown, the hardest, comes twice as often.
    """
    while True:
        family, level = rng.choice((*KNOWN, "countdown")), rng.choice(LEVELS)
        split, numbers, problem = puzzle(rng, family, level)
        if split == "train":
            return family, level, numbers, problem


def document(rng: random.Random, weights: dict = WEIGHTS) -> list[Piece]:
    """One document, of a random kind, as pieces."""
    kind = rng.choices(list(weights), list(weights.values()))[0]
    if kind == "drills":
        return drills(rng)
    if kind == "phrase":
        phrase = rng.choice(PHRASES)
        return [ask(f"Say: {phrase}"), (phrase + "<|end|>", True)]
    family, level, numbers, problem = train_puzzle(rng)
    if kind == "chat":
        return chat(rng, family, level, numbers, problem.question, rng.choice((0, 1, 2, 3)))
    trial, write = next_trial(rng, family, numbers, []), writing(rng)
    if kind == "solve":
        return [ask(SOLVE_PROMPT.format(question=problem.question)),
                (solve_text(family, numbers, numbers["x"], trial, write) + "<|end|>", True)]
    given = numbers["x"] if rng.random() < 0.5 else near_miss(rng, numbers, level)
    if kind == "check":
        style, text = "confirmative", check_text(family, numbers, given, write)
    else:
        style, text = "problem-solving", again_text(family, numbers, given, trial, write)
    prompt = VERIFY_PROMPTS[style].format(question=problem.question, answer=given)
    return [ask(prompt), (text + "<|end|>", True)]
