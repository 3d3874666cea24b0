"""python -m nanoverify.ask: see tools/ask.py."""
from nanoverify.support.start import run
from nanoverify.tools.ask import main

if __name__ == "__main__":
    run(main)
