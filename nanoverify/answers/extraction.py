"""The final answer within a text.

    extract("x = 9, so the answer is $9$.")                              # '9'
    extract("The answer is 5. Let me check my answer: 2 * 5 + 3 = 13.")   # '5'

It is the last \\boxed{}; else what follows the last `####`; else <answer>...</answer>; else what
follows "the answer is"; else the last formula or number.
"""
import itertools
import re
from bisect import bisect_right

from .limits import MAX_ANSWER, MAX_MENTIONS, MAX_RESPONSE, MAX_WORDS
from .spelling import SPACES
from .tokens import KNOWN_WORDS, SPELLED
from .units import UNIT_TABLE
from .words import OPPOSITES, SETS, in_figures, meaning_of

PRONOUNS = frozenset("that this it which what he she there here not".split())
LINES = re.compile(r"(?: ?\n)+ ?")
TURN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</s>")
BRACE = re.compile(r"\\.|[{}]", re.S)
BOX = re.compile(r"\\(?:f|frame)?box(?:ed)?\s*(?=\{)")
OPEN_BOX = re.compile(r"\\(?:f|frame)?box(?:ed)?\s*\{?([^\n$]*)")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;!:]|\\q?quad|\\text\w*\{\s*(?:and|or)\s*\}|and|or"
    r"|[A-Za-z](?:_\{?\w+\}?)? ?=)*")
HEADING = re.compile(r"^ ?####+ ?([^\n]*)", re.M)
STEP = re.compile(
    r"(?:step|part|case|section|method|problem|question|example|solution|check\w*|verif\w+)\b"
    r"|\d{1,2}[.):] [A-Za-z]", re.I)
TAG = re.compile(r"<((?:final_)?answer)>", re.I)
FILLER = (r"(?:[\s*:}]|\b(?:indeed|therefore|thus|simply|just|clearly|exactly|equal to"
          r"|approximately|about)\b)*")
PHRASE = re.compile(rf"""
    (?: (?<!you\ )(?<!they\ )(?<!who\ )(?<!to\ )\banswers?\b  # the answer
        (?: \s[^.\n:=]{{1,80}}? )??                                # to the question
        (?: \s(?:is|are|was|be|equals|becomes|comes(?:\ out)?\ to)\b | \s?(?:=>|->|[:=→])
          | (?<=answer)(?:\s?[-–—]|\])\s )
      | \bans(?:\.\s | \b\.?\s?(?:[:=]|-\s|is\b))                 # Ans: 5
      | \b(?:correct|right|best|my)\s(?:option|choice)(?:\sis\b|:)  # the correct option is (B)
      | \b(?:choose|pick|select)\s(?:option\s|choice\s|answer\s)?(?=\(?(?-i:[A-J])\b)
      | ^[\ \t]*A:
      | (?P<heading> ^[\#*\s]*(?:the\s)?(?:final\s)?answer[\s*]*$ )  # ## Final answer
    ) {FILLER}
    (?! \s | (?:\w+\ )?(?:not\ |in)?(?:correct|right|wrong|valid|verified)\b )
""", re.I | re.M | re.X)
TURNED = re.compile(  # 80 is the answer, option (B) is correct
    r"(?:\b(?:option|choice) |^)(\(?[A-J]\)?) is (?:the )?(?:correct|right)\b"
    r"|(?<!\S)([^\s,;]{1,60}) (?:is|are) (?:indeed |then |therefore )?(?:the|our|my) "
    r"(?:final |correct |right )*(?:answer|option|choice)\b", re.I)
KEYWORD = re.compile(r"nswer|\bans\b|option|choice|choose|pick|select|correct|right|\bA:", re.I)
CHECKING = re.compile(  # let me check my answer: 2 * 5 = 10
    r"\b(?:check|verif|confirm|test|substitut|plug|prov|try|express|multipl"
    r"|convert|divid)\w*\b[^.!?\n]{0,40}$", re.I)
CHECK_LINE = re.compile(
    r"(?:^[#* ]*|(?<=[.!?] ))(?:check(?:ing)?\b|verif|proof\b"
    r"|(?:to|let(?:'s| us| me)|we(?: can| may)?|now,?)"
    r" (?:double-?)?(?:check|verify|confirm)\b)", re.I | re.M)
SENTENCE_END = re.compile(
    r"(?<!\bsq)(?<!\bcu)(?<!\bapprox)(?<!\bi\.e)(?<!\be\.g)[.?](?=\s|$|[A-Z][a-z])"
    r"|(?<![\\)!])!+(?= ?(?:[^\s=*/+-]|$))(?=\s|$)|\n|</")
REASON = re.compile(  # what follows explains; the answer is over
    r",? (?:(?:\d+ |some |half |out )?of (?:which|whom|them|these)|including|such as|due to)\b"
    r"|, (?:the|an?) (?=[a-z]{2})|[,;] (?:note|leaving|namely|using|given|followed by|recall)\b"
    r"|,? \(?(?:because|since|as|so|which|where|whereas|when|while|but|for|after|thus"
    r"|hence|therefore|giving|meaning|making|instead of|rather than|in total|in all|altogether"
    r"|that is|i\.e\.|e\.g\.)(?![\w.])|,? (?:and )?not\b", re.I)
PAUSE = re.compile(r"(?<!\\); | -- | [–—] | - (?=[A-Za-z]{3})")  # perhaps an explanation
BRACKETED = re.compile(r" [(\[]([^()\[\]]{3,200})[)\]][*. ]*$")
ASIDE_SUM = re.compile(  # 8 apples (12 - 4); 70 minutes (1 hour and 10 minutes)
    r"(?<=[a-z]{3}) \((?:[^()]{1,60}\d ?[-+*/×] ?\d[^(),]{0,60}"
    r"|\d+ [a-z]+,? (?:and )?\d+ [a-z]+)\)"
    r"[. ]*$")
EXPLAINS = re.compile(r"=|[A-Za-z]{2,}[^A-Za-z]+[A-Za-z]{2,}"
                      r"|^(?:using|by|from|since|because|as|after|at|or|with|for"
                      r"|given|see)\b", re.I)
NOT_BUT = re.compile(  # not 36 but 42; not 10, it's 12
    r"not [^\n]{1,60}?(?: but (?:rather )?|[,;] (?:it's|it is|rather|instead) )", re.I)
CANNOT = re.compile(r"\b(?:cannot|can't|could not|never) be\W*$", re.I)
CONNECTIVE = re.compile(
    r"(?:so|thus|hence|therefore|then|finally|consequently|overall|in conclusion)\b[,:]? +"
    r"|= ?", re.I)
DURATION = re.compile(  # a total of $240 in 3 days
    r" (?:in|over|within|during) (?:the )?(?:last |first |next )?\d+ "
    r"(?:second|minute|hour|day|week|month|year)s?\b[. ]*$", re.I)
PAID_FOR = re.compile(  # $450 for 3 nights
    r"(?<=\d) for (?:the |all )?\d+ [a-z]+(?: [a-z]+)?[. ]*$")
ODDS = re.compile(r"\d+ (?:in|out of|to) \d+")
SAID_OF = re.compile(  # the larger is 5
    r"(?:the )?([A-Za-z]+) (?:one |number |value )?(?:is|are|was) ([^\n]{1,60})", re.I)
YES = re.compile(r"(yes|no|true|false)\b(?:[,.;:!][^\d\\$]*$|,? (?:because|since|as)\b)", re.I)
THE_ROOTS = re.compile(  # x = 2 and x = 3 are the solutions
    r"(?:^|[.\n] ?|\b(?:so|thus|hence|therefore),? )([^.\n]{1,120}?) (?:is|are) (?:the|our|all) "
    r"(?:only |real ){0,2}(?:solutions?|roots?|zeros?|answers)\b[^.\n]{0,40}\.?$", re.I)
IS_NOT = re.compile(r"\b(is|are|was)n['’]t\b", re.I)
OPENER = re.compile(r"\\\[|\\\(|\$\$|(?<!\\)\$")
CLOSER = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
COMMAND = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
VERB = re.compile(
    r"\b(?:is|are|was|be|equals|we|there|they|has|have|had|will|gets?|got|gives?|finds?|obtains?"
    r"|costs?|earns?|saves?|pays?|paid|makes?|buys|spends?|needs?|takes?)\b", re.I)
AMOUNT = r"(?:\d{1,3}(?:[ ,]\d{3})+(?![\d,])|\d[\d,]*\d|\d)(?:\.\d+)?|\.\d+"
PLAIN = rf"(?:(?<![\w)])[-+])?(?:\\?\$|€|£)?(?:{AMOUNT})(?:/\d+)?%?"
NUMBER = re.compile(rf"(?<![A-Za-z0-9_.,{{^\\]){PLAIN}(?![_^{{}}\\])")
RESULT = re.compile(rf"= ?(-?(?:\\?\$|€|£)? ?-?(?:{AMOUNT})%?)(?! ?[-+*/] ?\d)")
SOLVED = re.compile(rf"(?<![\d.,])({PLAIN}) ?= ?[A-Za-z][.]?$")  # 20 = x
PARTING = re.compile(r"[,;]|\band\b|\bor\b")
STOP = re.compile(r"[.!?] +(?=[A-Z])")
PROSE = re.compile(r"[A-Za-z]{2}|:|^\$?[\d.].*=|^[^A-Za-z(\[]*$")
BECAUSE = re.compile(r",? because\b|,? (?:\d+ |some |half |out )?of (?:which|whom)\b"
                     r"|,? (?:and )?(?:not|instead of|rather than) (?=\W{0,2}\d)", re.I)
MATH = re.compile(r"[\d\\$]")
ENDINGS = (  # (an ending that is dropped, what must come before it)
    (BECAUSE, NUMBER), (ASIDE_SUM, NUMBER), (DURATION, NUMBER),
    (PAID_FOR, re.compile(r"\$ ?[\d,.]*\d$")))


def extract(response: str, join_boxes=False) -> str:
    """The final answer of a text, '' if there is none. Of a longer text only the last MAX_RESPONSE
    characters are searched.

    join_boxes: \\boxed{1} and \\boxed{2} side by side are one list.
    """
    text = SPACES.sub(" ", (response or "")[-MAX_RESPONSE:])
    text = IS_NOT.sub(r"\1 not", LINES.sub("\n", text).strip())
    if "<" in text:
        turns = (turn for turn in TURN.split(text) if turn.strip())
        text = next(turns, "").strip()
        text = text.rpartition("</think>")[2].strip() or text
    if "\\box" in text or "\\fbox" in text or "\\framebox" in text:
        return boxed(text, join_boxes)
    return headed(text) or tagged(text) or after_phrase(text) or final(text)


def boxed(text, join=False):
    """The content of the last box; with `join`, of all boxes side by side with it."""
    spans = boxes(text)
    if not spans:
        return OPEN_BOX.findall(text)[-1].strip()
    _, end, content = spans[-1]
    later = after_phrase(text[end:])
    if MATH.search(later):
        return later
    return ", ".join(dict.fromkeys(beside(text, spans))) if join else content


def beside(text, spans):
    """The contents of the last boxes with nothing but "and" or a comma between them."""
    start, _, content = spans[-1]
    contents = [content]
    for left, right, content in reversed(spans[:-1]):
        if right > start or not BETWEEN_BOXES.fullmatch(text[right:start]):
            break
        contents.insert(0, content)
        start = left
    return contents


def boxes(text):
    """[(start, end, content)] of the boxes whose braces close."""
    opened, closed = [], {}
    for brace in BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closed[opened.pop()] = brace.start()
    return [(box.start(), closed[box.end()] + 1, text[box.end() + 1:closed[box.end()]].strip())
            for box in BOX.finditer(text) if box.end() in closed]


def headed(text):
    """The answer after the last `####`, unless that is the heading of a section."""
    for heading in reversed(list(HEADING.finditer("\n" + text if text[:4] == "####" else text))):
        line = heading[1].strip("# *")
        last = heading.end() >= len(text)
        if line and not STEP.match(line) and (MATH.search(line) or last):
            return after_phrase(line) or final(line)
    _, mark, line = text.rpartition("####")
    line = line.strip("# *")  # 6 * 7 = 42 #### 42
    return final(line) if mark and "\n" not in line and MATH.match(line.lstrip("-")) else ""


def tagged(text):
    """The content of the last <answer>...</answer>."""
    for tag in reversed(list(TAG.finditer(text))):
        inside, closed, _ = text[tag.end():].partition(f"</{tag[1]}>")
        if closed:
            return after_phrase(inside) or final(inside, stated=True)
    return ""


def after_phrase(text):
    """What follows the last "the answer is", up to the end of its sentence; '' if there is none."""
    mentions = [keyword.start() for keyword in KEYWORD.finditer(text)]
    if not mentions:
        return ""
    if len(mentions) > MAX_MENTIONS:
        text = text[mentions[-MAX_MENTIONS]:]

    # 1. the answer is 80
    for phrase in reversed(list(PHRASE.finditer(text))):
        tail = text[phrase.end():]
        if not tail or CHECKING.search(text, max(0, phrase.start() - 60), phrase.start()):
            continue
        if phrase["heading"]:
            lines = [line for line in tail.split("\n") if line.strip("-= *")]  # no ruler
            first = lines[0].strip("* ") if lines else ""
            return first.rstrip(".") if bare(first) else final(tail)
        span = next(iter(formulas(tail[:MAX_ANSWER])), None)
        start = span[1] if span and span[0] == 0 else 0
        end = SENTENCE_END.search(tail, start)
        negated = "not " if CANNOT.search(phrase[0]) else ""
        return final(negated + (tail[:end.start()] if end else tail), stated=True)

    # 2. 80 is the answer
    turned = list(TURNED.finditer(text))
    if not turned:
        return ""
    option, value = turned[-1].groups()
    end = turned[-1].end(2)
    spans = formulas(text[:end]) if value else []
    if spans and spans[-1][1] >= end - 1:
        return spans[-1][2].strip()
    answer = (option or value).strip("*$")
    return "" if answer.lower() in PRONOUNS else answer


def formulas(text):
    """[(start, end, content)] of the formulas between signs such as $. Currency opens no formula:

    formulas("4 cost 4*4 = $16.00, so $x$ is $4 each")   # [(24, 27, 'x')]
    """
    spans, at = [], 0
    dollars = [m.start() for m in OPENER.finditer(text) if m[0] == "$"]
    while opener := OPENER.search(text, at):
        sign, start = opener[0], opener.end()
        if sign == "$" and text[opener.start() - 1:opener.start()].isdigit():
            end = -1  # 20$
        elif sign == "$":
            index = bisect_right(dollars, opener.start())
            end = dollars[index] if index < len(dollars) else -1
        else:
            end = text.find(CLOSER[sign], start)
        content = text[start:end] if end >= 0 else ""
        if end < 0 and sign != "$" or content and sign == "$" and is_currency(content, text[end:]):
            content = ""
        if content:
            spans.append((opener.start(), end + len(sign), content))
            at = spans[-1][1]
        else:
            at = start
    return spans


def is_currency(content, rest):
    """Whether "$5 and 3$..." is an amount of money with another one after it.

    content: between the dollar signs; rest: from the second sign.
    """
    if not re.match(r" ?-?\.?\d", content):
        return False
    words = re.search(r"[A-Za-z]{3}", COMMAND.sub("", content))
    even = content[0].isspace() and content.rstrip()[-1] not in "+-*/=x"  # $ 2x $
    return content[-1].isspace() and not even or rest[1:2].isdigit() or bool(words)


def final(text, stated=False):
    """The answer in a text without a marker: all of it if it is no prose, else the last value.

    stated: it follows "the answer is", so that words may be an answer as well.
    """
    text = text.replace('\\"', '"').strip(' \n*`"✓✔✅')
    if len(text) > MAX_ANSWER:
        return last_value(text)
    for opener, closer in (("\\[", "\\]"), ("\\(", "\\)")):
        if text.endswith(closer) and opener not in text:  # \\[\\text{Answer: } 5\\]
            text = text.removesuffix(closer).rstrip()

    # 1. drop "not 36 but", "so", "therefore"; take yes, no and the roots of "x = 2 are the roots"
    claim = NOT_BUT.sub("", text, count=1) if NOT_BUT.match(text) else text
    if opening := CONNECTIVE.match(claim):
        claim = claim[opening.end():]
    if said := YES.match(claim):
        return said[1]
    if (roots := THE_ROOTS.search(claim[-300:])) and bare(roots[1]):
        return roots[1]

    # 2. all of it, without the reason given, if that is no prose
    head = before_reason(claim)
    first = REASON.search(claim)
    if not stated and ("\n" in claim or first and first[0].strip(" ,").lower() in ("so", "thus")):
        head = claim
    for candidate in (head, claim, *(after_verbs(head, stated) if stated else ())):
        known = stated and candidate is head or candidate in (text, claim)
        if candidate and bare(candidate) and (known or MATH.search(candidate)):
            return candidate

    # 3. an answer in words, or the last value of the prose
    if len(claim) < 80 and in_words(claim):
        return claim
    return last_value(head if stated and MATH.search(head) else claim, stated)


def in_words(claim):
    """Whether it is an answer in words: 3 feet below sea level; any real number except 3."""
    whole = claim.strip(" .")
    if (said := SAID_OF.fullmatch(whole)) and said[1].lower() in OPPOSITES and bare(said[2]):
        return True
    if any(pattern.fullmatch(whole) for pattern, _ in SETS):
        return True
    return not re.search(r"[.\n=]|\bso\b", claim) and not VERB.search(claim) and meaning_of([claim])


def after_verbs(line, stated=False):
    """["$5$"] of "so x is $5$": what follows each of the last verbs. Unless `stated`, only what has
    no words.
    """
    tails = [line[verb.end():].strip(" *.:") for verb in reversed(list(VERB.finditer(line))[-4:])]
    if stated:
        return [tail for tail in (*tails, *map(before_reason, tails)) if ":" not in tail]
    return [tail for tail in tails
            if ODDS.fullmatch(tail) or not PROSE.search(COMMAND.sub("z", tail))]


def before_reason(text):
    """A text up to "because ...", "of which ...", "(that is ...)"."""
    cut = REASON.search(text)
    head = text[:cut.start()] if cut and cut.start() else text
    if head.count("{") != head.count("}"):
        return text
    if head.count("(") > head.count(")") and cut and " (" in head:
        head = head[:head.rindex(" (")]
    for pause in itertools.islice(PAUSE.finditer(head), 8):
        if pause.start() and (pause[0] != "; " or not bare(head[pause.end():])):
            head = head[:pause.start()]
            break
    aside = BRACKETED.search(head)
    if aside and aside.start() and (
            EXPLAINS.search(COMMAND.sub("", aside[1])) or in_figures(aside[1])):  # 4 (four)
        head = head[:aside.start()]
    return head.strip(" *,;—–")


def last_value(text, stated=False):
    """The last formula or number of a prose text; in "10*30 = 300 m in 30 min" the result."""
    # 1. the last line with a digit or formula, before any check
    text = in_one_line(until(CHECK_LINE, NUMBER, text)[-MAX_ANSWER:])
    lines = [line for line in text.split("\n") if MATH.search(line)]
    if not lines:
        return text
    line = lines[-1].strip()
    if not stated and (tail := next(filter(bare, after_verbs(line)), "")):
        return tail

    # 2. without its reason, duration or price
    for ending, needed in ENDINGS:
        line = until(ending, needed, line)

    # 3. its last formula or number
    spans, numbers = formulas(line), list(NUMBER.finditer(line))
    if spans and (not numbers or numbers[-1].start() < spans[-1][1]):
        return spans[-1][2].strip()
    if not numbers:
        return line if len(lines) > 1 or line == text else text
    sentence = last_sentence(line, numbers[-1].start(), spans[-1][1] if spans else 0)
    return result_of(sentence, text) or numbers[-1][0]


def until(ending, needed, text):
    """A text up to the pattern `ending`, if the pattern `needed` comes before that."""
    m = ending.search(text)
    return text[:m.start()] if m and needed.search(text[:m.start()]) else text


def in_one_line(text):
    """Displayed formulas of several lines on one line each."""
    for start, end, _ in formulas(text) if "\n" in text else ():
        if text[start:start + 2] in CLOSER:
            text = text[:start] + text[start:end].replace("\n", " ") + text[end:]
    return text


def result_of(sentence, text):
    """The right side of the last equation of a sentence; '' if the last number is the answer."""
    if " round" in sentence:
        return ""
    if solved := SOLVED.search(sentence):
        return solved[1]
    if results := RESULT.findall(sentence):
        return results[-1].strip()

    # the last result of the whole text, if the sentence repeats it
    results = RESULT.findall(text)
    repeated = [n[0] for n in NUMBER.finditer(sentence)
                if results and n[0].strip("$") == results[-1].strip("$ ")]
    return repeated[-1] if repeated else ""


def last_sentence(line, place, earliest=0):
    """The sentence of a line at the given place; it begins at `earliest` or later."""
    start = max((stop.end() for stop in STOP.finditer(line, 0, place)), default=0)
    start = max(start, earliest)
    end = STOP.search(line, place)
    return line[start:end.start() if end else len(line)]


def bare(text):
    """Whether it is no prose: one line, no verb, few words, none before a formula in dollars."""
    text_only = COMMAND.sub(" ", text)
    words = [word for word in re.findall(r"[A-Za-z]{2,}", text_only)
             if word.lower() not in SPELLED and word.lower() not in KNOWN_WORDS
             and word not in UNIT_TABLE]
    elements = 1 + len(PARTING.findall(text_only))
    if "\n" in text or VERB.search(text_only) or len(words) > MAX_WORDS * elements:
        return False
    spans = formulas(text) if words else []
    return not spans or spans[0][0] == 0
