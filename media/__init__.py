"""What tasks, models and training all need of files, and none of them owns: files written whole or not at all, and
the pictures that a viewer of a video or an image sees.

At the bottom of the house: imports none of the other folders.
"""
