"""python -m nanoverify.findings: see study/findings.py."""
from nanoverify.study.findings import main
from nanoverify.support.start import run

if __name__ == "__main__":
    run(main)
