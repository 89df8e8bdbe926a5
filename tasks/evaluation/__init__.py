"""How good a checkpoint's videos are (report, section 8): what benchmarks measured, brought to one number or refused.

Imports ``tasks.tables`` only.
"""
