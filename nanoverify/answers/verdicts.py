"""What a verification concludes: the last "the answer is (in)correct" of a text.

    verdict("I don't think the answer is correct.")   # False
    verdict("Is the answer correct?")                 # None
"""
import re

from .limits import MAX_VERIFICATION
from .spelling import SPACES

MARKUP = re.compile(r"\\text\w*\{|\\boxed\{|[*_`$]")
SUBJECT = r"(?:answer|solution|result|calculation|conclusion|problem|response)"
FAULT = (r"(?:contains?|has|have|makes?|made)\s+(?:an?|some|several|the)\s+(?:\w+\s+)?"
         r"(?:error|mistake)s?")
GOOD = r"correct(?:ly)?|right|accurate|valid|verified|confirmed|true|sound"
BAD = r"incorrect(?:ly)?|wrong|inaccurate|invalid|false|mistaken|erroneous|flawed|fails?"
VERDICT = re.compile(rf"""
    (?P<doubt> \b(?:can(?:\s?not|'t)|could\s?n[o']t|unable\s+to|not\s+able\s+to)\s+(?:be\s+)?
              (?:verify|verified|confirm|confirmed)\b (?:[^.!?\n]|\.\d){{0,200}}
             | \bcorrect\s+{SUBJECT}\s+(?:is|should\s+be|would\s+be)\b[^.!?\n]{{1,40}}?
               (?:,\s+not\b|\binstead\s+of\b|\brather\s+than\b) )
  | (?P<flawless> (?: \bnothing\s+(?:is\s+)?(?:{BAD})\s+(?:with|in|about)\b
                    | \bno\s+(?:mistakes?|errors?|faults?)\s+(?:in|with)\b )
                  [^.!?\n]{{0,20}}?\b{SUBJECT}\b )
  | \b{SUBJECT}\b                                               # the answer, 12, is (not) correct
    (?P<middle> (?: [^.!?\n,;] | \.\d | ,\d | ,\s[^,.!?;\n]{{1,40}},
                  | ,\s+(?=which|but|indeed|therefore|in\s+fact) ){{0,80}}? )
    \b(?: (?P<good>{GOOD} | checks?\s+out | holds?(?:\s+up)?(?=\W*(?:[.!\n]|$))
                 | indeed(?=\s+[-\d\\(]) )
      | (?:{BAD}|{FAULT}) )\b
  | (?P<it> (?:\b(?:but|so|hence|thus|therefore|yet|and)\b|;),?\s+(?:it|this|that)\s?(?:is|'s)\s+)
    (?P<it_not> not\s+|n't\s+ )? \b(?:(?P<it_good>correct|right|valid)|incorrect|wrong|invalid)\b
    (?=\s*(?:[.!,;\n]|$))
  | (?P<before> \b(?:is|are|was|be|n[o']t|seems|being)\s+(?:\w+\s+){{0,2}}?)
    (?:(?P<good_one>correct|right|valid)|incorrect|wrong|invalid)\s+(?:final\s+)?{SUBJECT}\b
""", re.I | re.X)
NEGATION = re.compile(
    r"(?:\balmost|\bnearly),?\s+but\s+not\b|(?:n't|\bnot)\s+(?:even\s+)?close\s+to\b"
    r"|\b(?:not|never|no\s+longer|cannot|neither|hardly|fails?\s+to|far\s+from|almost|nearly|partly"
    r"|partially|only\s+half|close\s+to|by\s+no\s+means|in\s+no\s+way|anything\s+but"
    r"|nowhere\s+near)\b|n't\b", re.I)
DISBELIEF = re.compile(
    r"(?:\b(?:do|does|did|ca|can|could|would)(?:n't|\s+not)|\bcannot)\s+(?:\w+\s+)?"
    r"(?:think|believe|agree|say|see|find|accept)\b[^.!?\n,;]{0,20}$"
    r"|(?<!\bno )(?<!\bnot )(?<!n't )\bdoubt\b[^.!?\n,;]{0,20}$", re.I)
CONDITION = re.compile(r"\b(?:if|whether|is|suppose|assum\w+|unless|was|check|verify|see|does)\s+"
                       r"(?:that\s+|if\s+)?"
                       r"(?:(?:the|my|this|your|our|given|final|proposed)\s+)*$", re.I)
UNREAL = re.compile(r"\b(?:would|could|might|may|should)\s+(?:\w+\s+)?be\b", re.I)
ASIDE = re.compile(r"\b(?:which|what|that)\s+$", re.I)
QUESTION = re.compile(r"[^.!?\n]{0,200}\?")


def verdict(text: str):
    """True: the text concludes that the answer is correct. False: that it is not. None: neither.

    Of a longer text only the last MAX_VERIFICATION characters are read.
    """
    text = SPACES.sub(" ", MARKUP.sub("", (text or "")[-MAX_VERIFICATION:]).replace("’", "'"))
    last, mentioned = None, False
    for m in VERDICT.finditer(text):
        conclusion = concluded(text, m, mentioned)
        last = last if conclusion is None else conclusion
        mentioned = True
    return last


def concluded(text, m, mentioned):
    """The conclusion of one match of VERDICT; None if it is a question, a condition or an aside.

    mentioned: an earlier match named the answer, so "it is wrong" refers to it.
    """
    if m["doubt"] or m["flawless"]:
        return bool(m["flawless"])
    if m["it"]:
        about = mentioned or re.search(rf"\b{SUBJECT}\b", text[:m.start()], re.I)
        return bool(m["it_good"]) != bool(m["it_not"]) if about else None

    start = max(0, m.start() - 60)
    if CONDITION.search(text, start, m.start()) or QUESTION.match(text, m.end()):
        return None
    if UNREAL.search(m["middle"] or m["before"] or ""):
        return None
    if m["before"] and ASIDE.search(text, start, m.start()):
        return None

    # an even number of negations cancels
    negations = len(NEGATION.findall(m["middle"] or m["before"] or ""))
    negations += bool(DISBELIEF.search(text, start, m.start()))
    return bool(m["good"] or m["good_one"]) == (negations % 2 == 0)
