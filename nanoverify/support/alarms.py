"""What looks wrong in a run, in plain words, and what to try.

An alarm of stage 2 is a function of the lines of metrics.jsonl so far. It gives a sentence, or None
where all is well. Rewards, repeats, cuts and verdicts are means over FEW steps: one odd step raises
no alarm.
"""
from pathlib import Path

from nanoverify.support.files import read_jsonl
from nanoverify.support.progress import say

FEW = 5  # steps


def mean(rows: list[dict], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def change(rows: list[dict], name: str) -> tuple[float, float]:
    """Means of the first and of the last FEW steps; (0, 0) while there is nothing to compare."""
    early, late = mean(rows[:FEW], name), mean(rows[-FEW:], name)
    if len(rows) < 2 * FEW or early is None or late is None:
        return 0.0, 0.0
    return early, late


def one_verdict(tpr: float | None, tnr: float | None) -> str:
    """The verdict that nearly all answers get, right and wrong ones; "" where they differ."""
    if tpr is None or tnr is None:
        return ""
    if tpr > 0.95 and tnr < 0.05:
        return "correct"
    return "incorrect" if tpr < 0.05 and tnr > 0.95 else ""


# ---- stage 2 -----------------------------------------------------------------------------------

def verdicts_alike(rows):
    said = one_verdict(mean(rows[-FEW:], "tpr"), mean(rows[-FEW:], "tnr"))
    if said:
        return (f"nearly every first check says '{said}', whatever the answer; try --reward both "
                "or process, a lower --lr, or more wrong attempts in stage 0")


def repeats_rise(rows):
    early, late = change(rows, "repeats")
    if late > early + 0.2:
        return (f"retries that repeat a rejected answer rose from {early:.0%} to {late:.0%}; try a "
                "lower --lr or a higher --beta")


def cuts_rise(rows):
    early, late = change(rows, "truncated")
    if late > early + 0.1:
        return (f"responses cut by the token limit rose from {early:.0%} to {late:.0%}; try a "
                "lower --lr or a higher --beta; if they are only long, more --max-new-tokens")


def no_spread(rows):
    shares = [row.get("groups_without_spread") for row in rows[-FEW:]]
    if len(rows) >= FEW and None not in shares and min(shares) > 0.98:
        return ("the samples of a question all have the same outcome, so outcome rewards teach "
                "nothing; try a higher --temperature, more --samples, or questions that are "
                "neither too easy nor too hard")


def reward_falls(rows):
    early, late = change(rows, "reward")
    if late < early - 0.3:
        return (f"the mean reward fell from {early:+.2f} to {late:+.2f}; try a lower --lr or a "
                "higher --beta")


def steps_too_large(rows):
    kl, ratio = rows[-1].get("approx_kl") or 0, rows[-1].get("ratio_max") or 0
    if kl > 0.05 or ratio > 1000:
        return (f"one step moved the policy very far (approx_kl {kl:.2g}, ratio_max {ratio:.2g}); "
                "try a lower --lr or fewer --minibatches")


def nothing_right(rows):
    accuracy = rows[-1].get("final_accuracy")
    if accuracy is not None and accuracy < 0.01:
        return ("hardly any answer is right any more, or yet; look at rollouts.jsonl. If the model "
                "has broken, try a lower --lr; if the questions are too hard, easier ones")


ALARMS = (verdicts_alike, repeats_rise, cuts_rise, no_spread, reward_falls, steps_too_large,
          nothing_right)


def of_step(rows: list[dict]) -> list[str]:
    """The alarms that the last step raises and the step before it did not."""
    return [text for alarm in ALARMS
            if (text := alarm(rows)) and not (rows[:-1] and alarm(rows[:-1]))]


def of_run(rows: list[dict]) -> list[str]:
    """Every alarm of a run, with the step that raised it first."""
    first = {}
    for count in range(1, len(rows) + 1):
        for alarm in ALARMS:
            if alarm not in first and (text := alarm(rows[:count])):
                first[alarm] = f"from step {rows[count - 1]['step']} on: {text}"
    return list(first.values())


def say_of_step(folder: Path):
    """Print the new alarms of the last line of metrics.jsonl."""
    rows = [row for _, row in read_jsonl(folder / "metrics.jsonl")]
    for text in of_step(rows):
        say(f"look out, step {rows[-1]['step']}: {text}")


# ---- stage 0 -----------------------------------------------------------------------------------

def of_data(statistics: dict) -> list[str]:
    """The alarms of statistics.json."""
    found = []
    questions, count = statistics["questions"], statistics["trajectories"]
    if count < 0.1 * questions:
        found.append(f"only {count} trajectories came out of {questions} questions; see 'dropped'; "
                     "try more --samples, more --verifications or other questions")
    if count and set(map(int, statistics["attempts"])) == {1}:
        found.append("no trajectory has a wrong attempt, so nothing teaches to correct; try "
                     "harder questions, a higher --temperature or more --samples")
    for style, values in statistics["verifier"].items():
        if said := one_verdict(values["tpr"], values["tnr"]):
            found.append(f"the {style} verifier says '{said}' to nearly everything, so its checks "
                         "teach nothing; try another --verifier-model or other --styles")
    return found


def say_of_data(statistics: dict):
    for text in of_data(statistics):
        say(f"look out: {text}")
