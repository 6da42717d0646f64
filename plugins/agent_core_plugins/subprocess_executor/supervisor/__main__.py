"""`python -I -S DIRECTORY_OF_THIS_FILE DIRECTORY LISTENER_FD [IDLE]`: start one supervisor."""

import importlib
import os
import sys

if __name__ == "__main__":
    # Isolated and without site-packages: nothing but the standard library and this package, whose
    # modules must not stand at the top level, where they could shadow the library's.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[0] = os.path.dirname(here)
    importlib.import_module(f"{os.path.basename(here)}.service").main(sys.argv[1:])
