"""Launchers that come with the toolkit, and how they write YAML.

They write files for engines that there already are, and start nothing: no scheduler, no client of one, no network.
"""
