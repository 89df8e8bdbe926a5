"""What training takes of a device's memory: the arithmetic of one step (step), a plan of all buckets of a stage (plan),
the program that prints it (planner), how many samples are taken at once (micro_batch), and what steps took (measured).
"""
