"""python -m nanoverify.study: see study.py."""
from nanoverify.study.study import main
from nanoverify.support.start import run

if __name__ == "__main__":
    run(main)
