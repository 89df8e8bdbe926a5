"""Prompts to videos with a ContentV checkpoint (report, section 5.1): prompts, preflight, the videos, their record.

Imports ``tasks.tables`` only.
"""
