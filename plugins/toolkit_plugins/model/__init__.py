"""Models that come with the toolkit."""
