"""The HTML page about a run. It reads the run directory alone, and imports no torch.

What a terminal shows belongs in cli/.
"""
