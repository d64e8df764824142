"""``python -m bench.gpu``; ``python -m bench.gpu --day`` runs everything that only a GPU can show."""

import sys

if __name__ == "__main__":
    if "--day" in sys.argv:  # which imports nothing that a machine may lack
        from bench.gpu.day.command import main as day

        sys.exit(day(sys.argv[1:]))
    from bench.gpu.command import main

    sys.exit(main())
