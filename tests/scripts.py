"""Scripts that need no Detectron2, started where it cannot be imported: its import takes five seconds each time."""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
_RUN = "sys.modules['detectron2'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def without_detectron2(script: str, *arguments) -> list[str]:
    """The command line of a script, named from the top of the repository."""
    return [sys.executable, "-c", f"import runpy, sys; {_RUN}", str(REPO / script), *map(str, arguments)]
