"""``python -m server`` is the ``quire`` command."""

import sys

from server.entry import main

if __name__ == "__main__":
    sys.exit(main())
