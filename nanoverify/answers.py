"""First working version; the full grammar follows."""
import re
from fractions import Fraction

MAX_CHARS = 20_000
BOX = re.compile(r'\\f?boxed\s*\{|\\fbox\s*\{')
TAGGED = re.compile(r'<answer>(.*?)</answer>', re.S | re.I)
HASHES = re.compile(r'####[ \t]*([^\n]+)')
PHRASE = re.compile(r'(?:\banswer(?:\s+to\s+[^.\n]{1,80}?)?\s*(?:\s(?:is|are|was|should\s+be|must\s+be|equals|becomes)\b\s*:?|:|=)|^\s*A:)'
                    r'(?:\s|\*)*(?!\s*(?:definitely\s+|indeed\s+|not\s+)*(?:in)?correct\b|wrong\b|right\b)', re.I | re.M)
SENTENCE_END = re.compile(r'[.!?]?\s*(?:\n|$|<\||</)|[.!?](?=\s)')
SPAN = re.compile(r'\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$([^$]+?)(?<!\\)\$', re.S)
NUMBER = re.compile(r'(?<![\w.])[-+]?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?')
WORD = re.compile(r'(?<![\\A-Za-z])[A-Za-z]{2,}')
VALUE = re.compile(r'([-+]?)\s*(\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*([-+]?\d+))?$')
FRAC = re.compile(r'\\[dtc]?frac\s*(?:\{([-+\d.]+)\}|(\d))\s*(?:\{([-+\d.]+)\}|(\d))')


def closing(text, start):
    """Index of the brace that closes the group whose inside begins at `start`; -1 if none does."""
    depth = 1
    for i in range(start, len(text)):
        if text[i] == '{': depth += 1
        elif text[i] == '}':
            depth -= 1
            if not depth: return i
    return -1


def extract(response):
    text = (response or '')[-MAX_CHARS:].strip()
    boxes = [m.end() for m in BOX.finditer(text)]
    for start in reversed(boxes[-20:]):
        end = closing(text, start)
        if end >= 0: return text[start:end].strip()
    if boxes: return text[boxes[-1]:].split('\n')[0].strip(' $')
    for found in (HASHES.findall(text), TAGGED.findall(text)):
        if found: return found[-1].strip()
    phrases = list(PHRASE.finditer(text))
    if phrases:
        tail = text[phrases[-1].end():].strip()
        end = SENTENCE_END.search(tail)
        return final(tail[:end.start()] if end else tail)
    return final(text)


def final(text):
    if '\n' not in text and len(WORD.findall(re.sub(r'\\text\w*\{[^}]*\}', '', text))) < 4: return text.strip(' *')
    spans, numbers = list(SPAN.finditer(text)), list(NUMBER.finditer(text))
    if spans and (not numbers or numbers[-1].start() < spans[-1].end()): return next(g for g in spans[-1].groups() if g).strip()
    return numbers[-1].group() if numbers else text


def read(text):
    s = text.strip().replace('−', '-').replace('{,}', ',').replace('\\,', '').replace('\\!', '')
    s = re.sub(r'\\(?:text|mbox|mathrm|textbf)\{[^}]*\}(?:\^\d|\^\{\d\})?', '', s) if re.search(r'\d', s) else s
    s = FRAC.sub(lambda m: '%s/%s' % (m[1] or m[2], m[3] or m[4]), s)
    s = re.sub(r'\\?[$%°]|\^\{?\\circ\}?|\s+$', '', s).strip(' .*')
    s = re.sub(r'(?<=\d),(?=\d{3}(?!\d))', '', s)
    if '=' in s: s = s.split('=')[-1].strip()
    s = re.sub(r'(?<=\d)\s*[A-Za-z ]+$', '', s)
    m = VALUE.match(s)
    if not m: return None
    value = Fraction(m[2]) / (Fraction(m[3]) if m[3] and int(m[3]) else 1)
    return -value if m[1] == '-' else value


def grade(gold, response):
    if not gold or not gold.strip(): return False
    a, b = extract(gold), extract(response)
    if not a: return False
    if not b: return None
    if a == b: return True
    x, y = read(a), read(b)
    if x is not None and y is not None: return x == y
    if x is not None: return None if re.search(r'\d', b) else False
    return a.replace(' ', '') == b.replace(' ', '') or (None if re.search(r'\d', a) else False)


SUBJECT = r'(?:answer|solution|result|calculation|conclusion)'
GOOD, BAD = r'(?:correct|right|accurate|valid|verified)', r'(?:incorrect|wrong|inaccurate|invalid|not\s+(?:\w+\s+)?(?:correct|right)|cannot\s+be\s+correct)'
VERDICT = re.compile(rf'\b{SUBJECT}\b[^.!?\n]{{0,60}}?\b(?:(?P<bad>{BAD})|(?P<good>{GOOD}))\b', re.I)


def verdict(text):
    last = None
    for m in VERDICT.finditer(re.sub(r'\\text\w*\{|[*_`]', '', text or '')):
        if not re.search(r'\b(?:if|is)\s+(?:the|my|this)\s*$', text[max(0, m.start() - 20):m.start()], re.I): last = m['good'] is not None
    return last
