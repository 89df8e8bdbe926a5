"""What a run tells of itself while it trains: metrics, the lineage of what each step trained on, sample videos, and
the readers of these that the flows use to show progress. The observer knows when each is due.
"""
