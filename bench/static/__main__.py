"""``python -m bench.static``."""

from bench.static.report import main

if __name__ == "__main__":
    main()
