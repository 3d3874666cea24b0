"""python -m nanoverify: what there is to run."""

MENU = """nanoverify: a language model learns to check its own answers. Each command explains itself
with --help. All of it in about a minute, too little to learn much:

    python -m nanoverify.tour         the three stages below, very small

From the project's folder, in this order:

    python build_data.py              stage 0: answer, verify, compose trajectories
    python train_sft.py               stage 1: imitate them
    python train_rl.py                stage 2: reinforcement learning

See what came out:

    python -m nanoverify.ask          watch a model solve, check and correct itself
    python -m nanoverify.report       one page of curves and graded transcripts
    python -m nanoverify.evaluate     every metric, by level and family
    python -m nanoverify.answers      grade answers as the stages do

Go further:

    python -m nanoverify.pretrain     train the small base again
    python -m nanoverify.study        all stages, several seeds, controls
    python -m nanoverify.findings     tables of a study, and what holds of the paper's claims
    python -m nanoverify.bench        speed beside transformers and TRL
    python -m nanoverify.export       questions and trajectories for larger trainers
"""


def main(argv=None):
    print(MENU, end="")


if __name__ == "__main__":
    main()
