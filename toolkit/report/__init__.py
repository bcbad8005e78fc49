"""A run for people: the HTML page, and its events as lines of text, for run.log. It imports no torch.

What a terminal shows belongs in cli/.
"""
