"""Bad input to the scripts: exit code 2, one line on stderr that names the thing, no traceback,
nothing half-written."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import build_data
import train_rl
import train_sft
from nanoverify import evaluate
from nanoverify.problems import SOLVE_PROMPT, read_problems, split_of
from nanoverify.support import files, stage
from nanoverify.support.files import InputError, output_folder, read_json, write_json, write_jsonl
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import RECHECK
from nanoverify.verifier import VERDICTS, Verification

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).parents[1]
SMALL = ["--device", "cpu", "--max-new-tokens", "5", "--test-count", "2"]
GOOD = {"id": "1", "question": "1 + 1?", "answer": "2",
        "response": f"The answer is 2.\n\n{RECHECK}\n\n{VERDICTS[True]}"}


def refusal(main, argv, capsys) -> str:
    """The one line a script says before it leaves with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        files.run(lambda: main([str(word) for word in argv]))
    shown = capsys.readouterr().err.split("\r")[-1].strip()  # progress bars are overwritten
    assert exit.value.code == 2 and shown.startswith("error: ") and "\n" not in shown, shown
    return shown


def left_behind(folder):
    return sorted(path.name for path in folder.rglob("*"))


# ---- as a user meets it: real processes --------------------------------------------------------

@pytest.mark.parametrize("command, named", [
    (["build_data.py", "--model", "no/such/folder"], "no/such/folder"),
    (["train_sft.py", "--model", "POLICY", "--data", "bad.jsonl"], "bad.jsonl:2: not valid JSON"),
    (["train_rl.py", "--samples", "1"], "--samples 1"),
    (["-m", "nanoverify.evaluate", "--model", "POLICY", "--questions", "none.jsonl"], "none.jsonl"),
])
def test_as_a_process(command, named, policy, elsewhere):
    """Bug: a traceback, exit code 0 or 1, a second line, or a folder left behind."""
    (elsewhere / "bad.jsonl").write_text(
        '{"id": "1", "question": "?", "answer": "2", "response": "2"}\n{"id": ')
    command = [str(ROOT / word) if word.endswith(".py") else policy if word == "POLICY" else word
               for word in command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True,
                          env=environment, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count(
        "\n") == 1 and named in done.stderr, done.stderr
    assert left_behind(elsewhere) == ["bad.jsonl"]


# ---- the same through main() -------------------------------------------------------------------

@pytest.mark.parametrize("main", [build_data.main, train_sft.main, train_rl.main, evaluate.main])
def test_model_is_no_checkpoint(main, policy, elsewhere, capsys):
    """Bug: a missing folder, a file, an empty folder or another architecture is no one-line
    error."""
    write_jsonl(elsewhere / "data.jsonl", [GOOD])
    data = ["--data", "data.jsonl"] if main is train_sft.main else []
    (elsewhere / "empty").mkdir()
    (elsewhere / "other").mkdir()
    write_json(elsewhere / "other" / "config.json",
               {**read_json(f"{policy}/config.json"), "architectures": ["GPT2LMHeadModel"]})
    for model, named in (("missing", "missing"), ("data.jsonl", "data.jsonl"), ("empty", "empty"),
                         ("other", "GPT2LMHeadModel")):
        assert named in refusal(main, ["--model", model, *SMALL, *data], capsys)
    assert "nonsense" in refusal(main, ["--model", policy, *SMALL, *data, "--device", "nonsense"],
                                 capsys)
    assert left_behind(elsewhere) == ["config.json", "data.jsonl", "empty", "other"]


@pytest.mark.parametrize("main", [build_data.main, train_rl.main])
def test_flags_that_make_no_sense(main, policy, elsewhere, capsys):
    """Bug: K = 1 divides by zero in leave-one-out; temperature 0 gives K equal answers; an endless
    search for questions."""
    for flags, named in ((["--samples", "1"], "--samples 1"), (["--samples", "0"], "--samples 0"),
                         (["--samples", "-3"], "--samples -3"),
                         (["--temperature", "0"], "--temperature"),
                         (["--temperature", "-1"], "--temperature")):
        assert named in refusal(main, ["--model", policy, *SMALL, *flags], capsys)
    for flag in ("--count", "--max-new-tokens", "--batch-size", "--test-count"):
        with pytest.raises(SystemExit) as exit:
            main(["--model", policy, flag, "0"])
        assert exit.value.code == 2 and flag in capsys.readouterr().err
    assert left_behind(elsewhere) == []


@pytest.mark.parametrize("main", [build_data.main, train_rl.main, evaluate.main])
def test_questions(main, policy, elsewhere, capsys):
    """Bug: a bad line of the questions file is not named, or the built-in puzzles are taken
    instead."""
    (elsewhere / "bad.jsonl").write_text(
        '{"question": "1?", "answer": "1"}\n\n{"question": 5, "answer": "1"}\n')
    (elsewhere / "empty.jsonl").write_text("\n")
    for name, reason in (("bad.jsonl", "bad.jsonl:3: "), ("empty.jsonl", "empty.jsonl: "),
                         ("none.jsonl", "none.jsonl: ")):
        assert reason in refusal(main, ["--model", policy, *SMALL, "--questions", name], capsys)
    assert left_behind(elsewhere) == ["bad.jsonl", "empty.jsonl"]


@pytest.mark.parametrize("main", [build_data.main, train_rl.main, evaluate.main])
def test_prompt_longer_than_the_context(main, policy, elsewhere, capsys):
    """Bug: positions beyond the context are used, or half a result is written before the error."""
    write_jsonl(elsewhere / "long.jsonl",
                [{"question": f"{n} " + "very " * 250, "answer": "1"} for n in range(40)])
    flags = ["--prompts", "2"] if main is train_rl.main else []
    said = refusal(main, ["--model", policy, *SMALL, "--questions", "long.jsonl", *flags], capsys)
    assert "1024" in said and "tokens" in said
    assert set(left_behind(elsewhere)) <= {"long.jsonl", "out"}


@pytest.mark.parametrize("main", [build_data.main, train_rl.main, evaluate.main])
def test_one_prompt_that_is_too_long(main, policy, elsewhere, capsys):
    """Bug: one long question stops stage 2 at the step that draws it, and every resume there;
    or is not named; or cannot be skipped."""
    rows = [{"question": f"{n}?", "answer": "1", "id": f"q{n}"} for n in range(60)]
    long = {"question": "Long " + "very " * 250, "answer": "1", "id": "the long one"}
    write_jsonl(elsewhere / "long.jsonl", [*rows, long])
    write_jsonl(elsewhere / "test.jsonl", rows[:9])
    flags = ["--model", policy, *SMALL, "--questions", "long.jsonl"]
    if main is evaluate.main:
        flags += ["--test-count", "99"]
    else:
        flags += ["--test-questions", "test.jsonl", "--out", "new", "--samples", "2"]
    if main is train_rl.main:
        flags += ["--prompts", "2", "--steps", "1"]
    said = refusal(main, flags, capsys)
    assert "question 'the long one': its prompt has " in said
    assert "context of 1024" in said and "--skip-bad-lines" in said
    assert left_behind(elsewhere) == ["long.jsonl", "test.jsonl"]
    if main is build_data.main:  # a random model has no right answer
        with pytest.raises(InputError, match="no trajectory"):
            main([*flags, "--skip-bad-lines"])
    else:
        main([*flags, "--skip-bad-lines"])
    first = "question 'the long one': its prompt has"
    assert f"--skip-bad-lines: 1 left out, the first: {first}" in capsys.readouterr().err


def test_verification_prompts_are_longer(policy, elsewhere, capsys):
    """Bug: a question whose solve prompt fits and whose verification prompt does not stops
    stage 0 after hours of sampling; so does a sampled answer that is far longer than the gold
    one."""
    tokenizer = Tokenizer.load(policy)
    room = 1024 - len(tokenizer.prompt(SOLVE_PROMPT.format(question="")))
    write_jsonl("a.jsonl", [{"question": "a" * (room - 5), "answer": "1", "id": "edge"}])
    flags = ["--model", policy, *SMALL, "--questions", "a.jsonl", "--test-questions", "a.jsonl"]
    said = refusal(build_data.main, [*flags, "--out", "new"], capsys)
    assert "question 'edge': its verification prompt has " in said
    args = train_rl.flags(flags)  # stage 2 can use it
    assert [problem.id for problem in stage.fitting(args, read_problems(["a.jsonl"]))] == ["edge"]
    check = stage.prompt_check(build_data.flags(flags))
    assert check("1 + 1?", "2") == "" and "verification prompt" in check("1 + 1?", "2" * 1000)


def test_a_sampled_answer_that_is_too_long(policy, elsewhere, monkeypatch, capsys):
    """Bug: one endless answer among thousands stops stage 0 when it is to be verified, and
    every resume there; or the question goes with it; or nothing is counted."""
    write_jsonl("q.jsonl", [{"question": "1 + 1?", "answer": "2", "id": "q"}])
    asked = []

    def respond(model, tokenizer, problems, *rest):
        texts = ["The answer is 2.", f"The answer is {'9' * 1000}."]
        rows = [[tokenizer.encode(text) + [tokenizer.end_id] for text in texts] for _ in problems]
        return [[SimpleNamespace(ids=ids, finished=True) for ids in row] for row in rows]

    def verify(model, tokenizer, claims, *rest):
        asked.extend(answer for _, answer in claims)
        rights = [answer == "2" for _, answer in claims]
        return [[Verification(VERDICTS[right], right, True)] for right in rights]

    monkeypatch.setattr(build_data, "respond", respond)
    monkeypatch.setattr(build_data, "verify", verify)
    write_jsonl("test.jsonl", [{"question": "2 + 2?", "answer": "4"}])
    build_data.main(["--model", policy, *SMALL, "--questions", "q.jsonl", "--test-questions",
                     "test.jsonl", "--samples", "2", "--out", "new"])
    assert set(asked) == {"2"}
    dropped = read_json("new/statistics.json")["dropped"]
    assert dropped["wrong attempts without a kept verification"] == 1
    assert len((elsewhere / "new" / "trajectories.jsonl").read_text().splitlines()) == 1


def test_a_split_that_leaves_nothing(policy, elsewhere, capsys):
    """Bug: a file whose questions all fall to one side of the hash ends in a message about
    something else, or in no training at all."""
    for side in ("train", "test"):
        question = next(f"{n}?" for n in range(1000) if split_of(f"{n}?") == side)
        write_jsonl(elsewhere / f"{side}.jsonl", [{"question": question, "answer": "1"}])
    write_jsonl(elsewhere / "data.jsonl", [GOOD])
    common = ["--model", policy, *SMALL]
    for main in (build_data.main, train_rl.main):
        said = refusal(main, [*common, "--questions", "test.jsonl", "--out", "new"], capsys)
        assert "test.jsonl: no question falls into the 80% for training" in said
        assert "--test-questions" in said
    common += ["--data", "data.jsonl", "--questions", "train.jsonl"]
    said = refusal(train_sft.main, common, capsys)
    assert "train.jsonl: no question falls into the 15%" in said and "--test-questions" in said


def test_overlap_is_counted(policy, elsewhere, capsys):
    """Bug: test questions that are trained on go unnoticed, for they differ in a space or a
    capital, or because stage 1 sees trajectories."""
    def rows(text, *span):
        return [{"question": text.format(n), "answer": "1"} for n in range(*span)]
    write_jsonl("train.jsonl", rows("What is  {} + 1?", 9))
    write_jsonl("test.jsonl", rows("what is {} + 1?", 7, 12))
    write_jsonl("data.jsonl", [{**GOOD, "question": "What is 8 + 1?"}])
    alone = ["--model", policy, *SMALL, "--questions", "train.jsonl"]
    flags = [*alone, "--test-questions", "test.jsonl"]
    stage.train_problems(build_data.flags(flags), 5)
    assert "2 of 5 test questions are training questions, too" in capsys.readouterr().out
    stage.test_problems(train_sft.flags([*flags, "--data", "data.jsonl", "--test-count", "9"]))
    assert "1 of 5 test questions" in capsys.readouterr().out
    stage.train_problems(build_data.flags(alone), 5)
    assert "test questions" not in capsys.readouterr().out


def test_too_few_questions(policy, elsewhere, capsys):
    """Bug: train_rl asks the same question twice in a step, or loops for ever."""
    write_jsonl(elsewhere / "few.jsonl", [{"question": f"{n}?", "answer": "1"} for n in range(20)])
    assert "--prompts 30" in refusal(train_rl.main, ["--model", policy, *SMALL, "--questions",
                                                     "few.jsonl", "--prompts", "30"], capsys)


@pytest.mark.parametrize("rows, reason",
                         [([GOOD, "{"], "data.jsonl:2: not valid JSON"),
                          ([GOOD, {**GOOD, "response": None}], "data.jsonl:2: .*response"),
                          ([{"question": "1?"}], "data.jsonl:1: "), ([], "data.jsonl: "),
                          ([{**GOOD, "response": GOOD["response"] + " more" * 300}],
                           "data.jsonl: no trajectory of at most 1024 tokens.*1 "),
                          (None, "data.jsonl: cannot be read"),])
def test_trajectories(rows, reason, policy, elsewhere, capsys):
    """Bug: train_sft trains on nothing, drops rows silently, or does not name the bad line."""
    if rows is not None:
        (elsewhere / "data.jsonl").write_text(
            "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    assert re.search(reason, refusal(train_sft.main,
                                     ["--model", policy, *SMALL, "--data", "data.jsonl"], capsys))
    assert left_behind(elsewhere) == (["data.jsonl"] if rows is not None else [])


def test_bad_lines_can_be_skipped(policy, elsewhere, capsys):
    """Bug: --skip-bad-lines still stops, skips good lines as well, or does not say how many it left
    out."""
    rows = ["{", json.dumps(GOOD), json.dumps({**GOOD, "response": 5}), "[]",
            b"\xff".decode("latin-1")]
    (elsewhere / "data.jsonl").write_bytes("\n".join(rows).encode("latin-1"))
    train_sft.main(["--model", policy, *SMALL, "--data", "data.jsonl", "--skip-bad-lines",
                    "--epochs", "1"])
    shown = capsys.readouterr()
    assert "1 trajectories" in shown.out
    assert "4 left out, the first: data.jsonl:1: not valid JSON" in shown.err
    bad = []
    (elsewhere / "q.jsonl").write_text(
        '{"question": "1?"}\n{"question": "1 + 1?", "answer": 2, "id": 1}\n'
        '{"question": "2?", "answer": "2", "id": "1"}\n')
    assert [problem.question for problem in read_problems(["q.jsonl"], bad)] == ["1 + 1?"]
    assert len(bad) == 2
    assert "q.jsonl:1" in bad[0] and "used before" in bad[1]


def test_no_right_answer_leaves_nothing(policy, elsewhere, capsys):
    """Bug: build_data writes an empty data set, or leaves its temporary folder, when no trajectory
    can be composed."""
    (elsewhere / "out" / "data").mkdir(parents=True)
    write_json(elsewhere / "out" / "data" / "arguments.json", {"an earlier": "output"})
    said = refusal(build_data.main,
                   ["--model", policy, *SMALL, "--count", "3", "--samples", "2", "--overwrite"],
                   capsys)
    assert "no trajectory" in said and "no right answer among the samples" in said
    assert read_json(elsewhere / "out" / "data" / "arguments.json") == {"an earlier": "output"}
    assert left_behind(elsewhere) == ["arguments.json", "data", "out"]


@pytest.mark.parametrize("main", [build_data.main, train_sft.main, train_rl.main])
def test_foreign_files_in_the_way(main, policy, elsewhere, capsys):
    """Bug: --out deletes a folder that holds somebody's work, or a file."""
    write_jsonl(elsewhere / "data.jsonl", [GOOD])
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "thesis.txt").write_text("precious")
    more = {train_sft.main: ["--data", "data.jsonl"], train_rl.main: ["--prompts", "2"]}
    for out in ("mine", "data.jsonl"):
        argv = ["--model", policy, *SMALL, *more.get(main, []), "--out", out]
        assert f"--out {out}" in refusal(main, argv, capsys)
    assert left_behind(elsewhere) == ["data.jsonl", "mine", "thesis.txt"]


def test_responses_cannot_be_written(policy, elsewhere, capsys):
    """Bug: evaluate ends in a traceback, after all the work, because the folder of --responses does
    not exist."""
    assert "none" in refusal(evaluate.main,
                             ["--model", policy, *SMALL, "--responses", "none/responses.jsonl"],
                             capsys)


# ---- output folders ----------------------------------------------------------------------------

def test_output_folder(elsewhere):
    """Bug: an interrupted run leaves half a folder, or has already deleted the earlier one; a
    finished one keeps stale files."""
    for words in ("first", "second"):
        with output_folder("a/b", overwrite=True) as folder:
            (folder / words).write_text(words)
            write_json(folder / "arguments.json", {})
        assert left_behind(elsewhere) == ["a", "arguments.json", "b", words]
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), output_folder("a/b", overwrite=True) as folder:
            (folder / "third").write_text("half")
            raise error
    assert left_behind(elsewhere) == ["a", "arguments.json", "b", "second"]
    with pytest.raises(InputError, match="a/b: exists; --overwrite"), output_folder("a/b"):
        pass
    with pytest.raises(InputError, match="a/b is finished"), output_folder("a/b", resume=True):
        pass
    assert left_behind(elsewhere) == ["a", "arguments.json", "b", "second"]


def test_output_folder_of_a_run_with_state(elsewhere):
    """Bug: an interrupted run's state is thrown away, silently begun again, or not found again; a
    finished run cannot continue."""
    with pytest.raises(ValueError), output_folder("out") as folder:
        (folder / "state" / "00000001").mkdir(parents=True)
        raise ValueError
    with pytest.raises(
        InputError,
        match="out.part: exists; --resume continues it, --overwrite"), output_folder("out"):
        pass
    for words in ("first", "second"):  # the second continues the finished one
        with output_folder("out", resume=True) as folder:
            assert (folder / "state").is_dir()
            assert (folder / "first").exists() == (words == "second")
            (folder / words).write_text(words)
            write_json(folder / "arguments.json", {})
    assert left_behind(elsewhere) == ["00000001", "arguments.json", "first", "out", "second",
                                      "state"]
    with output_folder("new", resume=True) as folder:  # nothing to continue: a new run
        write_json(folder / "arguments.json", {})
    with output_folder("out", overwrite=True) as folder:
        write_json(folder / "arguments.json", {})
    assert left_behind(elsewhere / "out") == left_behind(elsewhere / "new") == ["arguments.json"]


def test_output_folder_in_odd_places(elsewhere):
    """Bug: '.', a link or a folder under a file ends in a traceback, for a link only after the
    whole run."""
    (elsewhere / "file").write_text("")
    with pytest.raises(InputError, match="file/out"), output_folder("file/out"):
        pass
    (elsewhere / "elsewhere").mkdir()
    (elsewhere / "link").symlink_to(elsewhere / "elsewhere")
    with output_folder("link") as folder:
        write_json(folder / "arguments.json", {})
    assert (elsewhere / "link" / "arguments.json").exists()
    (elsewhere / "here").mkdir()
    os.chdir(elsewhere / "here")
    try:
        with output_folder(".") as folder:
            write_json(folder / "arguments.json", {})
    except InputError:
        assert not (elsewhere / "here").exists() or left_behind(elsewhere / "here") == []
    else:
        assert left_behind(elsewhere / "here") == ["arguments.json"]


@pytest.mark.parametrize("script, other, value", [
    (build_data, "samples", 3), (train_sft, "kl", 0.2), (train_rl, "reward", "process")])
def test_recipe(script, other, value, capsys):
    """Bug: --recipe paper changes nothing, wins over flags that are given, or --help hides it."""
    plain, paper = vars(script.flags([])), vars(script.flags(["--recipe", "paper"]))
    changed = {name for name in plain if plain[name] != paper[name]} - {"recipe"}
    assert changed and changed <= set(script.PAPER) and script.PAPER.items() <= paper.items()
    mixed = vars(script.flags([f"--{other}", str(value), "--recipe", "paper"]))
    assert mixed == {**paper, other: value}
    with pytest.raises(SystemExit):
        script.flags(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    content = shown.split("the paper's settings,")[1].split(";")[0]
    assert all(f"--{name.replace('_', '-')}" in content
               for name in script.PAPER)


def test_flags_are_written_out():
    """Bug: --rec is taken for --recompute or --recipe, whichever comes first."""
    with pytest.raises(SystemExit):
        train_rl.flags(["--recom"])
