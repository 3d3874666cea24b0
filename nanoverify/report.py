"""python -m nanoverify.report: see tools/report.py."""
from nanoverify.support.start import run
from nanoverify.tools.report import main

if __name__ == "__main__":
    run(main)
