"""Spans against byte counts: which action a token belongs to, known independently of the decoder;
masks and composing by hand."""
import itertools
import random

import pytest
from test_sampler import byte_tokenizer
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers

from nanoverify import pretrain
from nanoverify.problems import Problem
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import (
    OPENING,
    RECHECK,
    RETRY,
    Action,
    Trajectory,
    as_row,
    attempts_for,
    choose_attempts,
    compose,
    loss_mask,
    parse,
    usable,
    well_formed,
)
from nanoverify.verifier import VERDICTS, Verification

PROBLEM = Problem("linear-1", "27 increased by 2 times a number is 39. What is the number?", "6",
                  "linear", 1)
SETTINGS = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
# as in GPT-2's alphabet: Ċ is a newline, Ġ a space
CROSSING = [(".", "Ċ"), (".Ċ", "Ċ"), ("Ċ", "Ċ"), ("Ċ", "W"), ("ĊW", "a"), ("n", "."), ("n.", "Ċ"),
            ("l", "e"), ("L", "e")]


def fallback_tokenizer():
    """As Llama 2's: characters, and bytes for all others, which decode to one replacement mark each
    while they are incomplete."""
    pieces = ["<unk>", *map("<0x{:02X}>".format, range(256)), "▁", *map(chr, range(33, 127))]
    raw = Raw(models.BPE({piece: id for id, piece in enumerate(pieces)}, [], byte_fallback=True,
                         unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                     decoders.Fuse()])
    raw.add_special_tokens(list(pretrain.SPECIAL))
    return Tokenizer(raw, SETTINGS, {}, {}, None)


@pytest.fixture(scope="module", params=["bytes", "crossing", "byte fallback", "as shipped"])
def tokenizer(request):
    if request.param == "byte fallback":
        return fallback_tokenizer()
    if request.param == "as shipped":
        return Tokenizer(pretrain.train_tokenizer(random.Random(0), 1024), SETTINGS, {}, {},
                         pretrain.CHAT_TEMPLATE)
    return byte_tokenizer(CROSSING if request.param == "crossing" else ())


def bytes_of(tokenizer, id):
    """How many bytes of text a token stands for."""
    piece = tokenizer.raw.id_to_token(id)
    if piece in pretrain.SPECIAL:
        return 0
    if tokenizer.raw.token_to_id("<0x00>") is None:
        return len(piece)  # one character of the byte alphabet for each byte
    return 1 if piece.startswith("<0x") else len(piece.replace("▁", " ").encode())


def spans_by_bytes(tokenizer, ids, text):
    """A token belongs to the last action that has begun at its first byte."""
    boundaries = [len(text[: match.start()].encode()) for match in OPENING.finditer(text)]
    begins = itertools.accumulate((bytes_of(tokenizer, id) for id in ids), initial=0)
    owner = [sum(boundary <= begin for boundary in boundaries) for begin, _ in zip(begins, ids)]
    cuts = [0] + [sum(o < i for o in owner) for i in range(1, len(boundaries) + 1)] + [len(ids)]
    return list(zip(cuts, cuts[1:]))


def check_partition(trajectory):
    actions = trajectory.actions
    assert actions[0].kind == "solve" and actions[0].start == 0
    assert actions[-1].stop == len(trajectory.ids)
    assert all(a.stop == b.start and a.start <= a.stop for a, b in zip(actions, actions[1:]))


SOLVES = ["We need 27 + 2 * x = 39, so x = 7. The answer is 7.",
          "x = 9, naïve “guess” ≠ right: The answer is 9 🙂", "So x = 6. The answer is 6."]
CHECKS = [
    "Put in 7: 14. 27 + 14 = 41. It should be 39, not 41. Therefore, the answer is incorrect.",
    "é 日本語 − Therefore, the answer is incorrect.",
    "27 + 12 = 39, as it is. Therefore, the answer is correct."]


def three_attempts():
    return compose(SOLVES, [Verification(text, "incorrect" not in text, True) for text in CHECKS])


# ---- spans -------------------------------------------------------------------------------------

def test_composed_text_comes_back(tokenizer):
    """Bug: parse loses or shifts an action, its text, its answer, its verdict or whether it is
    right."""
    ids = tokenizer.encode(three_attempts()) + [tokenizer.end_id]
    t = parse(PROBLEM, ids, True, tokenizer)
    check_partition(t)
    assert [a.kind for a in t.actions] == ["solve", "verify"] * 3
    assert [a.text for a in t.solves] == SOLVES and [a.text for a in t.verifies] == CHECKS
    assert [a.answer[:1] for a in t.solves] == ["7", "9", "6"]
    assert [a.right for a in t.actions] == [False, False, False, False, True, True]
    assert [a.verdict for a in t.verifies] == [False, False, True]
    assert t.ids is ids and ids[t.actions[-1].stop - 1] == tokenizer.end_id and well_formed(t)


def test_spans_begin_with_the_phrase(tokenizer):
    """Bug: a span is a token early or late; a character of several tokens in front of the phrase
    (naïve, ≠, 🙂) shifts it."""
    text = three_attempts()
    ids = tokenizer.encode(text) + [tokenizer.end_id]
    t = parse(PROBLEM, ids, True, tokenizer)
    assert [(a.start, a.stop) for a in t.actions] == spans_by_bytes(tokenizer, ids, text)
    for action, phrase in zip(t.actions[1:], [RECHECK, RETRY] * 3):
        begin = tokenizer.decode(ids[action.start: action.stop]).lstrip()
        # a token such as "\nWa" stays with the action before
        assert any(begin.startswith(phrase[cut:]) for cut in (0, 1, 2)), begin
    assert [tokenizer.decode(ids[a.start: a.stop])
            for a in t.actions[:1]][0].strip()[:20] == SOLVES[0][:20]


def test_crossing_token_belongs_to_where_it_begins():
    """Bug: a token such as '.\\n\\n' goes to the phrase after it, so that the solution's full stop
    is trained with the verification."""
    tokenizer = byte_tokenizer([(".", "Ċ"), (".Ċ", "Ċ")])
    text = f"The answer is 6.\n\n{RECHECK}\n\nAs it is. Therefore, the answer is correct."
    ids = tokenizer.encode(text) + [tokenizer.end_id]
    solve, verify = parse(PROBLEM, ids, True, tokenizer).actions
    assert tokenizer.decode(ids[solve.start: solve.stop]) == "The answer is 6.\n\n"
    assert tokenizer.decode(ids[verify.start: verify.stop]).startswith("Wait,")
    assert solve.text == "The answer is 6."


PIECES = [RECHECK, RETRY, "\n\n" + RECHECK + "\n\n", "\n\n" + RETRY + "\n", "Wait, let me",
          "The answer is 6.", "The answer is 7", "\n", " ", "", "é", "日", "🙂", " \u00a0",
          "\n\u3000", VERDICTS[True], VERDICTS[False], "<", "2 + 2"]


def test_spans_of_any_text(tokenizer):
    """Bug: repeated, empty, glued or unfinished phrases, or odd spaces and characters beside them,
    break the cut."""
    rng = random.Random(0)
    # with byte fallback, the first byte of such a space spoils the whole character before it, and
    # the cut may be a character early or late
    pieces = [piece for piece in PIECES if tokenizer.raw.token_to_id("<0x00>") is None
              or piece.isascii() or not piece.isspace()]
    for _ in range(150):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 12)))
        finished = rng.random() < 0.5
        ids = tokenizer.encode(text) + [tokenizer.end_id] * finished
        text = tokenizer.decode(ids)
        t = parse(PROBLEM, ids, finished, tokenizer)
        check_partition(t)
        assert [(a.start, a.stop)
                for a in t.actions] == spans_by_bytes(tokenizer, ids, text), repr(text)
        assert sum(a.kind == "verify" for a in t.actions) == text.count(RECHECK)
        if finished and ids:
            assert t.actions[-1].start < t.actions[-1].stop  # it holds the end token


def test_spans_of_any_ids(tokenizer):
    """Bug: invalid UTF-8 and special tokens in the middle, as an untrained model writes them, raise
    or leave tokens without an action."""
    rng = random.Random(0)
    phrases = [tokenizer.encode("\n\n" + phrase + "\n\n") for phrase in (RECHECK, RETRY)]
    for _ in range(150):
        ids = []
        for _ in range(rng.randint(0, 5)):
            ids += [rng.randrange(tokenizer.vocab_size)
                    for _ in range(rng.randint(0, 12))] + rng.choice([[], *phrases])
        t = parse(PROBLEM, ids, False, tokenizer)
        check_partition(t)
        assert len(loss_mask(t)) == len(ids)
        as_row(t, tokenizer)


def test_ids_are_not_encoded_again():
    """Bug: spans are found by encoding the text again; sampled ids need not be the ones the
    tokenizer would choose."""
    tokenizer = byte_tokenizer(CROSSING)
    text = three_attempts()
    ids = [tokenizer.raw.token_to_id(byte_char(byte)) for byte in text.encode()]
    assert tokenizer.decode(ids) == text and ids != tokenizer.encode(text)
    t = parse(PROBLEM, ids, False, tokenizer)
    assert t.ids == ids
    assert [(a.start, a.stop) for a in t.actions] == spans_by_bytes(tokenizer, ids, text)


def byte_char(byte):
    """The character that GPT-2's byte alphabet writes for a byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in shown else chr(
        256 + [b for b in range(256) if b not in shown].index(byte))


# ---- masks and form ----------------------------------------------------------------------------

def made(form: str, finished=True, tokens=3) -> Trajectory:
    """'s+ vy s- vn v?' -> actions: solve right or wrong; verify saying yes, no or nothing."""
    actions, right = [], False
    for i, word in enumerate(form.split()):
        if word[0] == "s":
            right = word[1] == "+"
        actions.append(Action("solve" if word[0] == "s" else "verify", i * tokens, (i + 1) * tokens,
                              "", right=right, verdict={"y": True, "n": False}.get(word[1])))
    return Trajectory(PROBLEM, list(range(tokens * len(actions))), finished, actions)


@pytest.mark.parametrize("form, mask", [
    ("s- vn s- vn s+ vy", [0, 1, 0, 1, 1, 1]),
    ("s- vn s+ vy", [0, 1, 1, 1]),
    ("s+ vy", [1, 1]),
    ("s+", [1]),
    ("s- vn", [1, 1]),
])
def test_loss_mask(form, mask):
    """Bug: wrong solutions are learned, or a verification, the last solution or the end token is
    not."""
    assert loss_mask(made(form)) == [m for m in mask for _ in range(3)]


def test_loss_mask_follows_the_spans(tokenizer):
    """Bug: the phrases and the end token are not learned with the action they open or close."""
    ids = tokenizer.encode(three_attempts()) + [tokenizer.end_id]
    mask = loss_mask(parse(PROBLEM, ids, True, tokenizer))
    expected = [m for m, (start, stop) in zip([0, 1, 0, 1, 1, 1],
                                              spans_by_bytes(tokenizer, ids, three_attempts()))
                for _ in range(start, stop)]
    assert mask == expected and len(mask) == len(ids) and mask[-1] == 1


@pytest.mark.parametrize("form, finished, expected", [
    ("s+ vy", True, True),
    ("s- vy", True, True),  # form, not truth
    ("s- vn s+ vy", True, True),
    ("s- vn s- vn s- vy", True, True),
    ("s+ vy", False, False),
    ("s+", True, False),
    ("s+ vn", True, False),  # rejects and stops
    ("s+ v?", True, False),
    ("s+ vy s+ vy", True, False),  # accepts and continues
    ("s- v? s+ vy", True, False),
    ("s- vn s+", True, False),
    ("s- s+ vy", True, False),
    ("s- vn vn", True, False),
    ("s+ vy vy", True, False),
    ("s- vn vn s+ s+ vy", True, False),
])
def test_well_formed(form, finished, expected):
    """Bug: a response whose next move contradicts its verdict, or that was cut, counts as
    well-formed."""
    assert well_formed(made(form, finished)) is expected


# ---- composing ---------------------------------------------------------------------------------

def test_attempts_for():
    """Bug: the table of the released code (w wrong of 5: 0 -> 1, 1 -> 2, 2-3 -> 3, 4-5 -> 4) is off
    by one, or falls somewhere."""
    assert [attempts_for(w / 5, 4) for w in range(6)] == [1, 2, 3, 3, 4, 4]
    assert [attempts_for(w / 5, 6) for w in range(6)] == [1, 2, 3, 4, 5, 6]
    for K in range(2, 17):
        for longest in range(2, 9):
            counts = [attempts_for(w / K, longest) for w in range(K + 1)]
            assert counts == sorted(counts) and counts[0] == 1 and counts[1] > 1
            assert counts[-1] == longest


def test_choose_attempts():
    """Bug: two attempts give the same answer, the right one is not last, there is more than one, or
    too many are taken; a rare wrong answer comes before a frequent one, so that SFT is not shown
    what the policy believes."""
    texts = [f"Way {i}. The answer is {answer}."
             for i, answer in enumerate((8, 7, 7, "7.0", 9, 6, 8, 6))]
    right = [text.endswith(" 6.") for text in texts]
    chosen_texts = set()
    for seed in range(40):
        for count in range(1, 7):
            chosen = choose_attempts(texts, right, count, random.Random(seed))
            numbers = [float(text.split()[-1].rstrip(".")) for text in chosen]
            assert numbers == [*[7, 8, 9][: count - 1], 6]
            assert set(chosen) <= set(texts)
        chosen_texts |= set(chosen)
    assert chosen_texts == set(texts)  # no solution is always left out


def test_choose_attempts_begin_anew():
    """Bug: a trajectory shows the same first step again although another one was sampled."""
    texts = ["Suppose 2. The answer is 7.", "Suppose 2. The answer is 8.",
             "Suppose 4. The answer is 8.", "Suppose 2.\nThe answer is 6.",
             "Suppose 4. The answer is 6.", "Suppose 10. The answer is 6."]
    right = [text.endswith(" 6.") for text in texts]
    two, three = ({tuple(choose_attempts(texts, right, count, random.Random(seed)))
                   for seed in range(40)} for count in (2, 3))
    assert two == {(texts[1], texts[4]), (texts[1], texts[5]), (texts[2], texts[3]),
                   (texts[2], texts[5])}
    assert three == {(texts[1], texts[0], texts[4]), (texts[1], texts[0], texts[5]),
                     (texts[2], texts[0], texts[5])}


def test_choose_attempts_without_choice():
    """Bug: a question without a right sample gets a trajectory, or one without a wrong sample gets
    none."""
    assert choose_attempts(["The answer is 7."] * 3, [False] * 3, 3, random.Random(0)) == []
    assert choose_attempts([], [], 3, random.Random(0)) == []
    assert choose_attempts(["The answer is 6."], [True], 4,
                           random.Random(0)) == ["The answer is 6."]


def test_usable():
    """Bug: a verification that contradicts the rule, was cut, gives no verdict or holds an opening
    phrase gets into the data."""
    for said, right, finished in itertools.product((True, False, None), (True, False),
                                                   (True, False)):
        text = VERDICTS[said] if said is not None else "Hm."
        assert usable(Verification(text, said, finished), right) is (finished and said is right)
    for phrase in (RECHECK, RETRY):
        assert not usable(Verification(f"{phrase} {VERDICTS[True]}", True, True), True)


def test_compose_ends_each_check_with_the_sentence():
    """Bug: a verification whose verdict is worded otherwise stays so, or the sentence is written
    twice."""
    text = compose(["The answer is 7.", " The answer is 6.\n"],
                   [Verification("It is not correct: the answer is wrong.", False, True),
                    Verification(f"Yes. {VERDICTS[True]}", True, True)])
    assert text == (f"The answer is 7.\n\n{RECHECK}\n\nIt is not correct: the answer is wrong.\n"
                    f"{VERDICTS[False]}\n\n{RETRY}\n\n"
                    f"The answer is 6.\n\n{RECHECK}\n\nYes. {VERDICTS[True]}")
