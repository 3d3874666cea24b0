"""python -m nanoverify.export: see tools/export.py."""
from nanoverify.support.start import run
from nanoverify.tools.export import main

if __name__ == "__main__":
    run(main)
