"""``python -m bench``: fastshap beside other tools; ``python -m bench host``: its own work on the host."""

import sys

from bench.compare import command, host

if __name__ == "__main__":
    sys.exit(host.main(sys.argv[2:]) if sys.argv[1:2] == ["host"] else command.main())
