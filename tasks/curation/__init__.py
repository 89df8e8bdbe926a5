"""Raw videos to a manifest (report, section 3.1 and 3.3): one file per step, called after the step.

What only one step needs stands beside it: ``transitions``, ``shots`` and ``views`` for cut, ``same_film`` for
dedup_sources, ``background`` for motion. Imports ``tasks.tables`` only.
"""
