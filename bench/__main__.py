"""``python -m bench``: fastshap beside other tools; ``host``: its own work on the host; ``serve``: the service under load."""

import sys

from bench import serving
from bench.compare import command, host

OTHERS = {"host": host.main, "serve": serving.main}

if __name__ == "__main__":
    sys.exit(OTHERS[sys.argv[1]](sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in OTHERS else command.main())
