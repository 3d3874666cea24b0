"""How every command begins and ends. Commands import it before torch, which takes seconds to load.

In a terminal a line says what they wait for, and Ctrl-C is one line already.
"""
import errno
import os
import sys

from nanoverify.support import files


def one_line_for_ctrl_c(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def run(main):
    """files.run. A closed pipe or a full disk behind standard output is one line, too."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)  # the line below
    sys.stdout.reconfigure(line_buffering=True)  # a log shows at once what a terminal shows
    try:
        files.run(main)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        os._exit(2)  # an ordinary end would try to write it again


sys.excepthook = one_line_for_ctrl_c
if sys.stderr.isatty() and "torch" not in sys.modules:
    print("loading PyTorch ...", end="", file=sys.stderr, flush=True)
