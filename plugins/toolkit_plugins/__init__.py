"""The plugins that come with the toolkit. They use the public door: of toolkit they import `toolkit.api` alone."""
