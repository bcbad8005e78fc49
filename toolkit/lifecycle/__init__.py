"""A run from its start to its end: launch, attempts, branches, rehearsals, exports, the verification of a resume.

What happens within a step belongs in training/; what a plan works out, in planning/.
"""
