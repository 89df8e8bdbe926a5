"""The scores that a curation measures, in the order of the funnel.

A new score is one file and one line here; a filter of the user's own (filter.py) needs no line.
"""

from tasks.curation.aesthetics import AESTHETICS
from tasks.curation.blur import BLUR
from tasks.curation.motion import MOTION
from tasks.curation.overlays import OVERLAYS
from tasks.curation.text import TEXT
from tasks.tables.score import Score

SCORES: tuple[Score, ...] = (TEXT, OVERLAYS, BLUR, MOTION, AESTHETICS)
