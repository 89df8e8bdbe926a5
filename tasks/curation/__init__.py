"""Raw videos to a manifest (report, section 3.1 and 3.3): one file per step, called after the step.

What only one step needs stands beside it: ``fetch``, ``isolated``, ``fork_server``, ``decode`` and ``pairs`` for scan,
``transitions``, ``shots`` and ``views`` for cut, ``same_film`` for dedup_sources, ``background`` for motion, ``edges`` and
``text_*`` for text and overlays. ``measure`` runs all scores that ``scores`` lists, and ``filter`` those of the user's own;
``settings`` has the config of a run, and ``preflight`` with ``inputs`` and ``space`` checks it before it starts. Of the
rooms of tasks it imports ``tables`` only.
"""
