"""What every room needs and none owns: atomic files, settings files, text, Markdown, paths, ranks, the version."""
