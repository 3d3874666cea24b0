"""python -m nanoverify.bench: see bench.py."""
from nanoverify.bench.bench import main
from nanoverify.support.start import run

if __name__ == "__main__":
    run(main)
