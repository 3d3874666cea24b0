"""python -m nanoverify.tour: see tools/tour.py."""
from nanoverify.support.start import run
from nanoverify.tools.tour import main

if __name__ == "__main__":
    run(main)
