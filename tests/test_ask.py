"""One response, watched: the stream is what the sampler gives, and each verdict is shown once,
after its answer."""
import re
from xml.etree import ElementTree

import pytest
from test_sampler import byte_tokenizer, tiny_model

from nanoverify.checkpoint import load_model
from nanoverify.evaluate import correction, evaluate
from nanoverify.problems import Problem
from nanoverify.puzzles import make_puzzles
from nanoverify.sampler import Sampling, generate
from nanoverify.support import stage
from nanoverify.support.files import InputError, write_jsonl
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools import ask, picture
from nanoverify.trajectory import as_row, parse

RESPONSE = ("It is 7€. The answer is 7.\n\nWait, let me recheck my solution.\n\n"
            "Put in 7: 41. Therefore, the answer is incorrect.\n\n"
            "Let me try again.\n\nThe answer is 6.\n\nWait, let me recheck my solution.\n\n"
            "Put in 6: 39. Therefore, the answer is correct.")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stream_is_what_the_sampler_gives(temperature):
    """Bug: the stream reads its cache one token late, or draws otherwise than the sampler."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer.vocab_size, 256)
    prompt = tokenizer.prompt("What is 2 + 2?")
    (wanted,), = generate(model, [prompt], Sampling(30, temperature, stop_ids=tokenizer.stop_ids,
                                                    vocab_size=tokenizer.vocab_size, seed=3))
    assert list(ask.stream(model, tokenizer, prompt, 30, temperature, seed=3)) == wanted.ids


@pytest.mark.parametrize("gold, first, second",
                         [("6", "; the rule says wrong", "; the rule says right"), ("", "", "")])
def test_verdicts_stand_behind_their_answers(gold, first, second):
    """Bug: a verdict is shown twice, late, or for another answer; text is lost or repeated; a
    character of several bytes is torn."""
    tokenizer, out = byte_tokenizer(), []
    trajectory = ask.show(tokenizer, Problem("", "?", gold, "", None),
                          iter(tokenizer.encode(RESPONSE) + [tokenizer.end_id]), out.append,
                          colour=False)
    shown = "".join(out)
    assert re.sub(r" \[[^]]*\]", "", shown) == RESPONSE + "\n" and trajectory.finished
    assert f"is incorrect. [rejected: 7{first}]\n" in shown
    assert f"is correct. [accepted: 6{second}]\n" in shown and shown.count("[") == 2


def test_colours():
    """Bug: a colour continues after its text, or marks the wrong kind."""
    tokenizer, out = byte_tokenizer(), []
    ask.show(tokenizer, Problem("", "?", "", "", None), iter(tokenizer.encode(RESPONSE)),
             out.append, colour=True)
    shown = "".join(out).replace(f"{ask.PLAIN}{ask.BLUE}", "")
    assert f"{ask.RED} [rejected: 7]" in shown and f"{ask.GREEN} [accepted: 6]{ask.PLAIN}" in shown
    blue = re.findall(re.escape(ask.BLUE) + "(.*?)" + re.escape(ask.PLAIN), shown, re.DOTALL)
    assert any("Put in 7: 41." in text for text in blue)
    assert not any("The answer is 6." in text for text in blue)
    assert shown.endswith("(cut by --max-new-tokens)\n")


def test_questions(monkeypatch, capsys):
    """Bug: an empty line ends a session in a terminal, or goes on for ever in a pipe; the rule's
    answer of a puzzle is lost; a puzzle of the world is taken for another question."""
    assert [p.question for p in ask.questions("Why?", "4")] == ["Why?"]
    for terminal, wanted in ((True, 3), (False, 1)):
        lines = iter(["Why?", "", ""])
        monkeypatch.setattr("builtins.input", lambda _, lines=lines: next(lines, None) or "")
        monkeypatch.setattr(ask.sys.stdin, "isatty", lambda terminal=terminal: terminal)
        asked = [problem for problem, _ in zip(ask.questions(None, "4"), range(3))]
        assert len(asked) == wanted and asked[0].answer == "4"
        assert all(ask.is_puzzle(problem.question) for problem in asked[1:])
    assert asked[1:] == [] and not ask.is_puzzle("Why?")


def test_puzzles_are_known():
    """Bug: the word of warning stands before questions that the model knows."""
    assert all(ask.is_puzzle(problem.question) for problem in make_puzzles("test", 300, 0))
    assert not ask.is_puzzle("Make me a sandwich.")


def test_the_shipped_model_corrects_itself(elsewhere):
    """Bug: without out/rl there is nothing to ask; the shipped model is not that of the stages."""
    assert stage.latest_model() == stage.TRAINED
    model, tokenizer = load_model(stage.TRAINED), Tokenizer.load(stage.TRAINED)
    answers = evaluate(model, tokenizer, make_puzzles("test", 60, 2), Sampling(400, 0.0))
    assert correction(answers)
    (elsewhere / "out" / "rl").mkdir(parents=True)
    assert stage.latest_model() == "out/rl"


def test_picture(tmp_path):
    """Bug: the picture shows a response that corrects nothing, colours an answer by the rule
    instead of the verdict on it, loses text, or is no XML."""
    tokenizer = byte_tokenizer()

    def row(text, gold, question="Is 1 < 2 & 3?"):
        return as_row(parse(Problem("", question, gold, "", None), tokenizer.encode(text), True,
                            tokenizer), tokenizer)
    once = ("The answer is 6.\n\nWait, let me recheck my solution.\n\n"
            "Therefore, the answer is correct.")
    (tmp_path / "run").mkdir()
    write_jsonl(tmp_path / "run" / "responses.jsonl",
                [row(once, "6"), row(RESPONSE, "7"), row(RESPONSE, "6")])
    picture.main([str(tmp_path / "run"), "--out", str(tmp_path / "a.svg")])
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    drawn = [(text.get("fill"), text.text)
             for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for _, text in drawn] == ["Is 1 < 2 & 3?", *RESPONSE.split("\n\n")]
    styles = ["question", "rejected", "phrase", "verify", "phrase", "accepted", "phrase", "verify"]
    assert [colour for colour, _ in drawn] == [picture.COLOURS[style] for style in styles]
    with pytest.raises(InputError, match="3 attempts"):
        picture.main([str(tmp_path / "run"), "--attempts", "3"])
