"""The web page: a server on this computer, its jobs, and what a browser is shown."""
