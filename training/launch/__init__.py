"""How a run is started, watched and stopped: preflight, the launchers (torchrun on this machine, Ray Train on a
cluster), the restarts after a failure, and which rank is to blame for it. No process outlives its launcher beyond
the grace that ranks have to save.
"""
