"""Everything that only a GPU can show, in one command and nine minutes, with a table of claims at the end.

    python -m bench.gpu --day --out DIR

The process that leads the day (``command``, ``leading``, ``steps``, ``claims``, ``verdicts``, ``report``) imports the standard
library alone: whatever a machine lacks, and whatever crashes, hangs or spoils the GPU's context, ends a process that can be
started again. ``plugin`` writes what pytest finds; ``work`` measures.
"""
