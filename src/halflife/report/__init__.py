"""One run, a multirun or a study → one page a person reads: HTML that opens offline, and Markdown."""
