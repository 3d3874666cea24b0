"""Responses as alternating actions: solve, verify, solve, verify, ..., end.

A response is one assistant message. Plain phrases open its actions, there are no special tokens:

    Suppose 10. 10 * 2 = 20. 27 + 20 = 47. It should be 39, 8 less. 8 / 2 = 3. The answer is 7.

    Wait, let me recheck my solution.

    Put in 7: 7 * 2 = 14. 27 + 14 = 41. It should be 39, 2 less. Therefore, the answer is incorrect.

    Let me try again.

    Suppose 2. 2 * 2 = 4. 27 + 4 = 31. It should be 39, 8 more. 8 / 2 = 4. The answer is 6.

    Wait, let me recheck my solution.

    Put in 6: 6 * 2 = 12. 27 + 12 = 39. It should be 39, as it is. Therefore, the answer is
    correct.<end>

`parse` is the only reader, of composed and of sampled responses. It works on the ids themselves:
spans are token positions, an action's span begins with the phrase that opens it, and the last span
holds the end token.
"""
import math
import re
from bisect import bisect_left
from dataclasses import asdict, dataclass, field

from nanoverify.answers import extract, grade, verdict
from nanoverify.problems import SOLVE_PROMPT, Problem
from nanoverify.verifier import VERDICTS, Verification

RECHECK = "Wait, let me recheck my solution."
RETRY = "Let me try again."
OPENING = re.compile(rf"\s*(?:({re.escape(RECHECK)})|{re.escape(RETRY)})\s*")


@dataclass
class Action:
    """One solve or verify: tokens start..stop of the response."""
    kind: str  # "solve" or "verify"
    start: int
    stop: int
    text: str  # without the phrase that opens it
    answer: str = ""  # solve: the answer it ends with
    right: bool = False  # does the answer equal the gold one? verify: that of the solve before it
    verdict: bool | None = None  # verify: True correct, False incorrect, None if it gives none


@dataclass
class Trajectory:
    problem: Problem
    ids: list[int]  # the response, the end token included if `finished`
    finished: bool  # False: cut by the token limit
    actions: list[Action]
    logprobs: list[float] = field(default_factory=list)  # sampled: of each id, as it was drawn

    @property
    def solves(self):
        return [action for action in self.actions if action.kind == "solve"]

    @property
    def verifies(self):
        return [action for action in self.actions if action.kind == "verify"]


def parse(problem: Problem, ids: list[int], finished: bool, tokenizer) -> Trajectory:
    """Cut a response into actions.

    A token that lies across a boundary belongs to the action in which it begins.
    """
    text = tokenizer.decode(ids)
    openings = list(OPENING.finditer(text))
    kinds = ["solve"] + ["verify" if match[1] else "solve" for match in openings]
    # where an action's own text begins and ends, in characters
    starts = [0] + [match.end() for match in openings]
    stops = [match.start() for match in openings] + [len(text)]

    def length(n):
        """Characters that the first n tokens make.

        One that is cut in the middle decodes to replacement marks, and does not count yet.
        """
        return len(tokenizer.decode(ids[:n]).rstrip("\ufffd"))

    first_tokens = [bisect_left(range(len(ids)), match.start(), key=length) for match in openings]
    cuts = [0, *first_tokens, len(ids)]
    actions, right = [], False
    for i, kind in enumerate(kinds):
        action = Action(kind, cuts[i], cuts[i + 1], text[starts[i]: stops[i]].strip())
        if kind == "solve":
            action.answer = extract(action.text)
            right = problem.accepts(action.text)
        else:
            action.verdict = verdict(action.text)
        action.right = right
        actions.append(action)
    return Trajectory(problem, ids, finished, actions)


def in_turn(trajectory: Trajectory) -> bool:
    """solve, verify, solve, verify, ...; a verify that a solve follows says incorrect.

    The end may be missing.
    """
    actions = trajectory.actions
    alternate = all(action.kind == ("verify" if i % 2 else "solve")
                    for i, action in enumerate(actions))
    return alternate and all(action.verdict is False for action in actions[1:-1:2])


def well_formed(trajectory: Trajectory) -> bool:
    """In turn to the end, which follows a verify that says correct."""
    return trajectory.finished and in_turn(trajectory) and trajectory.actions[-1].verdict is True


def loss_mask(trajectory: Trajectory) -> list[int]:
    """1 on each token that SFT learns: on every verify and the last solve."""
    last = trajectory.solves[-1]
    mask = []
    for action in trajectory.actions:
        learned = action.kind == "verify" or action is last
        mask += [int(learned)] * (action.stop - action.start)
    return mask


def training_ids(row: dict, tokenizer) -> tuple[list[int], list[int], list[int]]:
    """(prompt ids, response ids, loss mask) of a line of trajectories.jsonl.

    The spans are found by parsing the text again.
    """
    numbers = tuple(row["numbers"]) if row.get("numbers") else None
    problem = Problem(row["id"], row["question"], row["answer"], str(row.get("family")),
                      row.get("level"), numbers)
    prompt = tokenizer.prompt(SOLVE_PROMPT.format(question=problem.question))
    ids = tokenizer.encode(row["response"]) + [tokenizer.end_id]
    return prompt, ids, loss_mask(parse(problem, ids, True, tokenizer))


# ---- composing for SFT -------------------------------------------------------------------------

def attempts_for(wrong_share: float, longest: int) -> int:
    """How many attempts a question of this difficulty gets, 1 to `longest`.

    With 4 this is the table of the paper's code: 0, 1, 2-3, 4-5 wrong answers of 5 give 1, 2, 3, 4
    attempts.
    """
    if wrong_share == 0:
        return 1
    more = (longest - 2) * (wrong_share - 0.2) / 0.8
    return max(2, 2 + math.ceil(more - 1e-9))


def choose_attempts(texts: list[str], right: list[bool], count: int, rng) -> list[str]:
    """Solutions for one trajectory of at most `count` attempts; [] if no sample is right.

    Wrong ones with different answers come first, the answer given most often before the others,
    and a right one comes last. The most frequent wrong answer is what the policy believes. Where a
    trajectory begins with it, SFT shows how to give up a belief.

    Each attempt begins with another first step than those before it, where there is one. So SFT
    shows how to begin anew.
    """
    goods = [text for text, good in zip(texts, right) if good]
    if not goods:
        return []
    groups = []  # wrong solutions, those with equal answers together
    for text, good in zip(texts, right):
        if good:
            continue
        answer = extract(text)
        same = next((group for group in groups if grade(extract(group[0]), answer)), None)
        if same:
            same.append(text)
        elif answer:
            groups.append([text])
    groups.sort(key=len, reverse=True)
    chosen, steps = [], set()
    for group in [*groups[: count - 1], goods]:
        new = [text for text in group if first_step(text) not in steps]
        chosen.append(rng.choice(new or group))
        steps.add(first_step(chosen[-1]))
    return chosen


def first_step(text: str) -> str:
    """The first sentence or line of a solution."""
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def usable(verification: Verification, right: bool) -> bool:
    """The rule checks the model's verification of an answer that is `right` or not.

    It is used if it ended by itself, agrees with the rule and contains none of our phrases.
    """
    agrees = verification.finished and verification.verdict is right
    return agrees and not OPENING.search(verification.text)


def compose(solves: list[str], verifications: list[Verification]) -> str:
    """The response {s1, v1, ..., sk, vk} as one text."""
    text = ""
    for i, (solve, verification) in enumerate(zip(solves, verifications)):
        ending = VERDICTS[verification.verdict]
        check = verification.text
        if not check.endswith(ending):
            check = f"{check}\n{ending}"
        text += f"\n\n{RETRY}\n\n" if i else ""
        text += f"{solve.strip()}\n\n{RECHECK}\n\n{check}"
    return text


def as_row(trajectory: Trajectory, tokenizer) -> dict:
    """A trajectory as one readable JSON line."""
    return {**asdict(trajectory.problem),
            "response": tokenizer.decode(trajectory.ids),
            "finished": trajectory.finished,
            "well_formed": well_formed(trajectory),
            "actions": [asdict(action) for action in trajectory.actions]}
