"""``python -m bench``: fastshap beside other tools; ``host``: its own work on the host; ``serve``: the service under load;
``faithfulness``: whose scores are true."""

import sys

from bench import serving
from bench.compare import command, host
from bench.faithfulness import command as faithfulness

if __name__ == "__main__":
    parts = {"host": host.main, "serve": serving.main, "faithfulness": faithfulness.main}
    part = parts.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if part is not None:
        sys.exit(part(sys.argv[2:]))
    wrong = command.main()
    if "--quick" in sys.argv:
        wrong = faithfulness.main(["--quick"]) or wrong
    sys.exit(wrong)
