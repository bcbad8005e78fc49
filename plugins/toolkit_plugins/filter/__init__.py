"""Filters that come with the toolkit.

They judge and change training documents; where documents come from is a dataset's matter.
"""
