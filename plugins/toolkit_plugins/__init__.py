"""The plugins that come with the toolkit. They use the public API only: of toolkit they import `toolkit.api` alone."""
