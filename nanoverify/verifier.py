"""Two judges of an answer: the rule (`answers.grade`), and a model that writes a verification which
ends in a verdict.

The model sees the question and the answer only, never the solution. It is asked in one of two
styles:

    problem-solving   Solving again: Suppose 4. 4 * 2 = 8. 27 + 8 = 35. It should be 39, 4 more.
                      4 / 2 = 2. It is 6. The answer above is 6, the same. Therefore, the answer is
                      correct.
    confirmative      Put in 6: 6 * 2 = 12. 27 + 12 = 39. It should be 39, as it is.
                      Therefore, the answer is correct.
"""
from dataclasses import dataclass

from nanoverify.answers import verdict
from nanoverify.sampler import Sampling, generate
from nanoverify.support.kernels import autocast

VERDICTS = {True: "Therefore, the answer is correct.",
            False: "Therefore, the answer is incorrect."}
ENDING = 'and end with "Therefore, the answer is correct." or "incorrect."'
VERIFY_PROMPTS = {  # the answer comes last, as it does in a response before its verification
    "problem-solving": "{question}\nSolve this again, compare with the answer below, " + ENDING
                       + "\nThe answer is {answer}.",
    "confirmative": "{question}\nPut the answer below back into the question, check, " + ENDING
                    + "\nThe answer is {answer}.",
}


@dataclass(frozen=True)
class Verification:
    """What a model wrote about one answer.

    verdict     True: correct; False: incorrect; None: it gives none
    finished    False: cut by the token limit
    """
    text: str
    verdict: bool | None
    finished: bool


def verify(model, tokenizer, claims: list[tuple[str, str]], style: str, sampling: Sampling,
           progress: str = "") -> list[list[Verification]]:
    """Verifications in one style of each claim (question, answer): [claim][sample].

    Any model can be the judge.
    """
    prompts = [tokenizer.prompt(VERIFY_PROMPTS[style].format(question=question, answer=answer))
               for question, answer in claims]
    with autocast(model.lm_head.weight.device):
        samples = generate(model, prompts, sampling.with_tokenizer(tokenizer), progress)

    def verification(sample):
        text = tokenizer.decode(sample.ids).strip()
        return Verification(text, verdict(text), sample.finished)
    return [[verification(sample) for sample in row] for row in samples]


def agreement(pairs: list[tuple[bool | None, bool]]) -> dict:
    """How well verdicts agree with the rule. A missing verdict agrees with nothing.

    pairs: (verdict, whether the answer is right). tpr: right answers called correct; tnr: wrong
    answers called incorrect. None if there are no such answers.
    """
    on_right = [verdict is True for verdict, right in pairs if right]
    on_wrong = [verdict is False for verdict, right in pairs if not right]

    def mean(hits):
        return sum(hits) / len(hits) if hits else None
    return {"accuracy": mean(on_right + on_wrong), "tpr": mean(on_right), "tnr": mean(on_wrong),
            "count": len(pairs)}
