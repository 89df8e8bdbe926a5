"""Raw videos to a manifest (report, section 3.1 and 3.3): one file per step, called after the step.

What only one step needs stands beside it: ``fetch``, ``isolated``, ``fork_server``, ``decode`` and ``pairs`` for scan,
``transitions``, ``shots`` and ``views`` for cut, ``same_film`` for dedup_sources, ``background`` for motion, ``edges``
and ``text_*`` for text and overlays. ``measure`` runs all scores that ``scores`` lists, and those of the user's own
(``filter``). ``settings`` has the config of a run; ``preflight``, with ``inputs`` and ``space``, checks what it starts
from. Of the rooms of tasks it imports ``tables`` only.
"""
