"""What a run can go on from, and its result: model, averaged weights and optimiser, written in the background by all
ranks, whole or not at all, and read again on any number of ranks. The export turns a checkpoint into a folder in
the diffusers layout, which the next stage and generation take.
"""
