"""Memory strategies that come with the toolkit."""
