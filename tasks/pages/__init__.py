"""The HTML pages that runs leave, and what draws them: the report of a curation, the gallery of a generation.

A page reads tables that others wrote, and measures nothing. Imports the other rooms; no room imports it.
"""
