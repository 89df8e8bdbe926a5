"""What a step takes of a device's memory, known before it is launched: bytes of the state and of each sample, by
bucket; how many samples a device takes at once; and the planner, which prints this and the time for a recipe and a
cluster.
"""
