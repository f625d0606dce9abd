"""Which rows a gate looks at: an inventory of the dataset, and what a change brought."""
