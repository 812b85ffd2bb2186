"""What every command stands on: errors, options, devices, seeds, processes, files.

Commands import it first: where a package is missing, it says in one line what to install.
"""

import importlib.util
import sys

REQUIRED = {"torch": "torch", "numpy": "numpy", "PIL": "pillow", "tqdm": "tqdm"}

missing = [name for module, name in REQUIRED.items() if not importlib.util.find_spec(module)]
if missing:
    print(
        f"error: {', '.join(missing)} not installed for {sys.executable}: "
        "pip install -r requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
