"""Runs the program of ours that has this one's name; once a file `armed` stands here, it says what it would run.

Completion runs the program, too, and always gets the real one. PYTHONPATH is the project's folder.
"""

import os
import runpy
import sys
from pathlib import Path

if os.path.exists("armed") and not {"_CLIENT_PY_COMPLETE", "_SERVER_PY_COMPLETE"} & os.environ.keys():
    sys.exit(f"RAN {' '.join(sys.argv)}")
runpy.run_path(str(Path(os.environ["PYTHONPATH"], Path(sys.argv[0]).name)), run_name="__main__")
