"""The page: what it shows is what the files hold, nothing in it is fetched from elsewhere, and no
text of a model becomes markup."""
import html.parser
import json
import re

import pytest
from test_input import refusal
from test_ppo import FOUR, made
from test_readme import PAGES, ROOT
from test_sampler import byte_tokenizer, save_policy
from test_train_rl import weighed

import train_rl
import train_sft
from nanoverify import ppo
from nanoverify.evaluate import metrics
from nanoverify.evaluate import report as evaluation
from nanoverify.problems import Problem
from nanoverify.rollout import rollout_rows
from nanoverify.study import arms
from nanoverify.support.files import write_json, write_jsonl
from nanoverify.tools import report
from nanoverify.trajectory import RECHECK, RETRY, as_row, parse
from nanoverify.verifier import VERDICTS

TOKENIZER = byte_tokenizer()
HOSTILE = "</script></title><img src=x onerror='alert(1)'>\"&{{ 1234567 * 3 }}"


def row(form: str, note="", finished=True, level=1, family="linear", question="?", **more) -> dict:
    """'s- vn s+ vy' -> a row of solves right or wrong, and verdicts yes, no or none; the gold
    answer is 6."""
    texts = {"s+": "The answer is 6.", "s-": "The answer is 7.", "vy": VERDICTS[True],
             "vn": VERDICTS[False], "v?": "Hm."}
    parts = [("" if i == 0 else f"\n\n{RETRY if word[0] == 's' else RECHECK}\n\n")
             + f"{note} {texts[word]}" for i, word in enumerate(form.split())]
    ids = TOKENIZER.encode("".join(parts)) + [TOKENIZER.end_id] * finished
    return {**as_row(parse(Problem("p", question, "6", family, level), ids, finished, TOKENIZER),
                     TOKENIZER), **more}


def items(*rows) -> list[dict]:
    return [{"row": each, "labels": report.labels(t), "t": t} for each in rows
            for t in [parse(Problem("p", "?", "6", "linear", 1), TOKENIZER.encode(each["response"]),
                            True, TOKENIZER)]]


def a_run(folder, **files):
    """An output folder: lists become JSONL, dicts JSON. -> the page of it"""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (write_json if isinstance(content, dict) else write_jsonl)(
            folder / (f"{name}.json" if isinstance(content, dict) else f"{name}.jsonl"), content)
    return report.page([report.read_run(str(folder))])


class Elements(html.parser.HTMLParser):
    """(tag, attributes) of everything in a page, and its text by tag and class."""
    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.found[-1] if self.found else ("", {})
        self.texts.append((tag, attributes.get("class", ""), data))


@pytest.fixture
def whole(tmp_path):
    """Everything a folder can hold, hostile wherever a model or a question can write."""
    rows = [row("s- vn s+ vy", HOSTILE, question=HOSTILE, family=HOSTILE),
            row("s+ vn s- vy", level=2)]
    return a_run(
        tmp_path / "rl", responses=rows, metrics=[{"step": 1, "reward": 0.5, HOSTILE: 1}],
        trajectories=[{**each, "actions": [{**action, "trained": i > 0}
                                           for i, action in enumerate(each["actions"])]}
                      for each in rows],
        rollouts=[{**each, "outcome": 1.0,
                   "actions": [{**action, "process": 1.0, "reward": 2.0, "kl": 0.0,
                                "advantage": 1.5, "baseline": 0.5} for action in each["actions"]]}
                  for each in rows], evaluation={"columns": {HOSTILE: {**evaluation(FOUR)}}})


# ---- one file, and safe ------------------------------------------------------------------------

def test_needs_nothing_from_elsewhere(whole):
    """Bug: a font, script, style or picture is fetched, so that the page tells on its reader or is
    bare without a network."""
    harmless = whole.replace(report.jinja2.utils.markupsafe.escape(HOSTILE), "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|\bhref=|fetch\(|import\(", harmless)
    assert not {tag
                for tag, _ in Elements(whole).found} & {"link", "img", "iframe", "object", "base"}
    assert "default-src 'none'" in whole


def test_model_text_is_text(whole):
    """Bug: text of a model, a question or a log ends the script, makes an element or a handler, or
    is run as a template."""
    page = Elements(whole)
    tags = [tag for tag, _ in page.found]
    assert "img" not in tags and tags.count("script") == tags.count("html") == 1
    assert "3703701" not in whole
    assert not [name for _, attributes in page.found
                for name in attributes if name.startswith("on")]
    # three files, four actions of the first row
    assert sum(HOSTILE in data for _, kind, data in page.texts if kind == "text") == 3 * 4
    families = {attributes["data-family"] for _, attributes in page.found
                if attributes.get("class") == "t"}
    assert families == {HOSTILE, "linear"}


# ---- folders, finished or not ------------------------------------------------------------------

def test_while_it_is_written(tmp_path):
    """Bug: a run that is being written cannot be looked at: its folder is not found, or its last
    line, half there, is an error."""
    page = a_run(tmp_path / "rl.part",
                 metrics=[{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5}],
                 rollouts=[row("s+ vy")])
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with open(tmp_path / "rl.part" / name, "a") as file:
            file.write('{"step": 3, "rew')
    assert "still being written" in page and "Steps 1 to 2" in page
    for path in ("rl", "rl/", "rl.part"):
        assert report.page([report.read_run(f"{tmp_path}/{path}")]).replace(
            f"{tmp_path}/{path}", "") == page.replace(f"{tmp_path}/rl.part", "")
    # an earlier run that this one will replace
    a_run(tmp_path / "rl", metrics=[{"step": 60, "reward": 1.0}])
    assert report.read_run(str(tmp_path / "rl"))["running"]
    (tmp_path / "rl.part" / "rollouts.jsonl").write_text("")
    (tmp_path / "rl.part" / "metrics.jsonl").write_text("")
    # before the first step
    assert "nanoverify report" in report.page([report.read_run(str(tmp_path / "rl"))])


def test_bad_input(tmp_path, capsys, monkeypatch):
    """Bug: a traceback, or an empty page, where the folder is none of ours or a file in it is
    broken."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "half", "other", "old", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    write_jsonl(tmp_path / "other" / "responses.jsonl",
                [row("s+"), {"question": "?", "actions": []}])
    write_json(tmp_path / "old" / "evaluation.json", {"columns": {"SFT": {"final": 1}}})
    write_jsonl(tmp_path / "good" / "responses.jsonl", [row("s+")])
    for argv, named in (
        (["none"], "none: no such folder"), (["empty"], "empty: holds no evaluation.json"),
        (["half"], "half/metrics.jsonl:2: not valid JSON"),
        (["good", "other"], "other/responses.jsonl:2: not a graded response"),
        (["old"], "old/evaluation.json"),
        (["good", "--out", "no/where.html"], "--out no/where.html: cannot be written")):
        assert named in refusal(report.main, argv, capsys)
    assert not list(tmp_path.glob("*.html"))
    report.main(["good"])
    assert "report.html" in capsys.readouterr().out
    assert "1 of 1 are on this page" in (tmp_path / "report.html").read_text()


# ---- the numbers -------------------------------------------------------------------------------

def test_confusion_by_hand(tmp_path):
    """Bug: verdict and rule are swapped, a missing verdict counts as one, or only the first
    verification counts."""
    page = a_run(tmp_path / "rl",
                 responses=[row("s+ vy"), row("s- vn s+ vn s- vy"), row("s- v? s- vn s+ vy"),
                            row("s+ v?", finished=False), row("s-")])
    cells = re.findall(
        r"(?:✓ right|✗ wrong)</td><td[^>]*>(\d+)</td><td[^>]*>(\d+)</td><td[^>]*>(\d+)</td>", page)
    # right: said correct, incorrect, nothing; wrong
    assert cells == [("2", "1", "1"), ("1", "2", "1")]


@pytest.mark.parametrize("form, expected",
                         [("s+ vy", []), ("s-", []), ("s- vn s+ vy", ["wrong → right"]),
                          ("s+ vn s- vn", ["right → wrong", "false alarm"]),
                          ("s- vy", ["missed error"]), ("s+ vn s+ vy", ["false alarm"]),
                          ("s- vn s+ vn s- vy", ["false alarm", "missed error"]),
                          ("s- v? s+ v?", ["wrong → right"])])
def test_labels(form, expected):
    """Bug: a filter finds other responses than its name says."""
    assert items(row(form))[0]["labels"] == expected


def test_attempts_and_accuracies(tmp_path):
    """Bug: attempts are of another level or stage; the same evaluation is there twice, or
    another one takes its place."""
    rows = [row("s- vn s- vn s+ vy", level=10), row("s+ vy", level=10), row("s+ vy", level=2)]
    assert "<td>composed" not in a_run(
        tmp_path / "sft",
        evaluation={"columns": {"base": evaluation(FOUR[:1]), "SFT": evaluation(FOUR)}})
    a_run(tmp_path / "rl",
          evaluation={"columns": {"base": evaluation(FOUR[:1]), "SFT": evaluation(FOUR[1:])}},
          trajectories=rows, responses=rows)
    runs = [report.read_run(str(tmp_path / name)) for name in ("sft", "rl")]
    columns = report.merged_columns(runs)
    assert list(columns) == ["base", "SFT", f"SFT ({tmp_path}/rl)"] and columns["SFT"]["count"] == 4
    attempts = report.attempts_by_level(columns, runs[1]["sets"])
    assert list(attempts) == [*columns, f"{tmp_path}/rl: composed for SFT"]
    assert attempts["SFT"]["1"]["trials"] == 1.5
    composed = attempts[f"{tmp_path}/rl: composed for SFT"]
    assert {level: values["trials"] for level, values in composed.items()} == {"2": 1, "10": 2}
    assert re.search(r"<th>level</th><th>1</th><th>2</th><th>10</th>", report.page(runs))


def test_curves():
    """Bug: a curve is upside down, leaves its field, stumbles over None, NaN or a single step, or
    thinning loses the last step."""
    lines = [{"step": step, "rising": float(step), "flat": 3, "gap": None if step == 2 else 1.0,
              "odd": float("nan"), "words": "no", **({"eval": {"trials": 2}} if step == 3 else {})}
             for step in (1, 2, 3)]
    drawn = {curve["name"]: curve for curve in report.curves(lines)}
    assert drawn["rising"]["points"] == [(2, 58), (100, 30), (198, 2)]
    assert drawn["flat"]["points"] == [(2, 30), (100, 30), (198, 30)]
    assert drawn["gap"]["steps"] == (1, 3) and drawn["eval trials"]["points"] == [(100, 30)]
    assert drawn["eval trials"]["meaning"] == "mean number of solves"
    assert set(drawn) == {"rising", "flat", "gap", "eval trials"}
    for count in (499, 500, 501, 1000, 1234):
        steps = report.curves([{"step": step, "x": step}
                               for step in range(1, count + 1)])[0]["steps"]
        assert steps[-1] == count and 250 <= len(steps) <= 500
    assert report.curves([]) == []


def test_every_metric_is_defined():
    """Bug: a metric is logged and the page does not say what it is; docs/metrics.md says something
    else."""
    known = report.definitions()
    logged = []
    for script in ("train_rl", "train_sft"):
        source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
        logged += re.findall(r'"(\w+)":', source.split("line = {")[1].split("}\n")[0])
    assert {"lr", "seconds", "seconds_update", "grad_norm"} <= set(logged)
    assert {*metrics(FOUR), *logged, *report.COLUMNS} - {"step"} <= known.keys()
    assert all(known.values())
    rows = {names.replace("`", ""): meaning.replace("`", "")
            for names, meaning in re.findall(r"^\| ((?:`\w+`,? ?)+) \| (.*) \|$",
                                             PAGES["docs/metrics.md"], re.MULTILINE)}
    for names, meaning in report.GLOSSARY.items():
        assert rows.get(names, meaning) == meaning
    assert len(rows.keys() & report.GLOSSARY.keys()) == 14


# ---- transcripts -------------------------------------------------------------------------------

def test_spans_hold_the_whole_response():
    """Bug: words of a response are lost, stand in another action, or a verdict is given to another
    solve."""
    (item,) = items(each := row("s- vn s+ v? s-", note="é€ <b>"))
    found = report.spans(each, item["t"])
    assert "".join("".join(span["text"].split())
                   for span in found) == "".join(each["response"].split())
    assert [span["kind"] for span in found] == ["solve", "verify", "solve", "verify", "solve"]
    assert found[1]["text"].startswith(RECHECK)
    assert [span["said"] for span in found] == [False, False, None, None, None]


def test_transcripts_show_what_was_learned(whole):
    """Bug: a rejected answer looks like an accepted one, or the loss mask or the numbers of RL
    stand on other actions."""
    classes = [attributes["class"].split() for tag, attributes in Elements(whole).found
               if attributes.get("class", "").startswith("action")]
    assert len(classes) == 3 * 2 * 4
    # trajectories.jsonl
    assert [kind[1:] for kind in classes[:4]] == [["solve", "rejected", "masked"], ["verify"],
                                                  ["solve", "accepted"], ["verify"]]
    # responses.jsonl
    assert [kind[1:] for kind in classes[8:10]] == [["solve", "rejected"], ["verify"]]
    assert whole.count(">not learned<") == 2 and whole.count(">learned<") == 6
    assert whole.count("reward +2.00 · baseline +0.50 · <b class=\"good\">advantage +1.50</b>") == 8
    assert whole.count("Outcome reward +1.") == 2


def test_no_more_than_fits(tmp_path):
    """Bug: the page grows with the run, does not say so, or a rare course is crowded out by the
    common ones."""
    rows = [row("s+ vy")] * 400 + [row("s- vn s+ vy")] * 400 + [row("s+ vn s- vy")] * 3
    found = items(*rows)
    chosen = report.choose(found, 300, 10**9)
    assert [sum(item["labels"][:1] == wanted for item in chosen)
            for wanted in ([], ["wrong → right"], ["right → wrong"])] == [149, 148, 3]
    assert [found.index(item) for item in chosen] == sorted(found.index(item) for item in chosen)
    characters = sum(len(item["row"]["response"]) for item in found) // 10
    assert len(report.choose(found, 300, characters)) == 80
    assert report.choose(found[:5], 300, 10**9) == found[:5] and report.choose([], 300, 10) == []
    page = a_run(tmp_path / "rl", responses=rows)
    assert "300 of 803 are on this page" in page and page.count('<details class="t"') == 300


# ---- what train_rl leaves for it ---------------------------------------------------------------

def rollout(trajectories, kl, **rules):
    groups = [trajectories[i: i + 2] for i in range(0, len(trajectories), 2)]
    found = weighed(groups, kl, [[0.0] * len(t.actions) for t in trajectories], beta=0.1, **rules)
    return list(rollout_rows(found, 0.1, rules.get("gae", False), TOKENIZER))


def test_rollout_rows():
    """Bug: the numbers are not those of the update, stand on other actions, or do not add up."""
    rows = rollout([made("++"), made("--"), made("-+++"), made("+--+", finished=False)], 0.5)

    def numbers(key):
        return [[action[key] for action in each["actions"]] for each in rows]
    assert [each["outcome"] for each in rows] == [1, -1, 1, -1]
    assert numbers("process") == [[1, 1], [-1, -1], [-1, 1, 1, 1], [1, -1, -1, -1]]
    assert numbers("reward") == [[2, 2], [-2, -2], [0, 2, 2, 2], [0, -2, -2, -2]]
    # the other sample's outcome, and the context's mean
    assert numbers("baseline") == [[-1, -1], [1, 1], [-1, -1, 0, 0], [1, 1, 0, 0]]
    assert numbers("kl") == [[0.05] * len(each) for each in numbers("kl")]
    assert all(action["advantage"]
               == pytest.approx(action["reward"] - action["baseline"] - action["kl"])
               for each in rows for action in each["actions"])


def test_rollout_rows_of_other_rewards():
    """Bug: rewards that --reward leaves out are shown as given; GAE's sums are said to have a
    baseline; shuffled rewards are shown unshuffled."""
    def of(**changes):
        return [action["reward"]
                for action in rollout([made("-+++"), made("--")], 0.0, **changes)[0]["actions"]]
    assert of(reward="outcome") == [1, 1, 1, 1] and of(reward="process") == [-1, 1, 1, 1]
    assert of(reward="both", gae=True) == [-1, 1, 1, 2]
    assert of(reward="outcome", gae=True) == [0, 0, 0, 1]
    assert all(action["baseline"] is None
               for each in rollout([made("-+++"), made("--")], 0.0, gae=True)
               for action in each["actions"])
    dealt = weighed([FOUR * 3], mark=arms.shuffled).process
    rows = rollout(FOUR * 3, 0.0, mark=arms.shuffled)
    assert [[action["process"] for action in each["actions"]]
            for each in rows] == dealt != [ppo.action_rewards(t) for t in FOUR * 3]


def test_a_run_leaves_its_last_rollout(tmp_path, capsys):
    """Bug: the file holds another step, loses rows, is not repeatable, or the page cannot read what
    the scripts write."""
    save_policy(tmp_path / "policy")
    for name in ("rl", "again"):
        train_rl.main(["--model", str(tmp_path / "policy"), "--out", str(tmp_path / name),
                       "--steps", "2", "--prompts", "2", "--samples", "2", "--max-new-tokens", "6",
                       "--test-count", "2", "--device", "cpu"])
    found = (tmp_path / "rl" / "rollouts.jsonl").read_text()
    assert found == (tmp_path / "again" / "rollouts.jsonl").read_text()
    assert [json.loads(line)["step"] for line in found.splitlines()] == [2] * 4
    report.main([str(tmp_path / "rl"), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert page.count("Outcome reward -1.") == 4 and "2 of 2 are on this page" in page
    assert "approx_kl" in page


def test_sft_leaves_its_responses(tmp_path, capsys):
    """Bug: of the SFT model there is nothing to look at, or other responses than those that were
    counted."""
    policy = save_policy(tmp_path / "policy")
    write_jsonl(tmp_path / "data.jsonl", [row("s- vn s+ vy")] * 2)
    train_sft.main(["--model", policy, "--data", str(tmp_path / "data.jsonl"), "--out",
                    str(tmp_path / "sft"), "--epochs", "1", "--test-count", "3", "--max-new-tokens",
                    "6", "--device", "cpu"])
    found = report.read_run(str(tmp_path / "sft"))
    counted, (read,) = found["columns"]["SFT"], found["sets"]
    whole = {name: value for name, value in counted.items() if not name.startswith("by_")}
    assert metrics([item["t"] for item in read["all"]]) == whole
