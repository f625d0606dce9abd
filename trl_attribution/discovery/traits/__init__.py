"""Traits: behaviors that ship with the package or come from the user, made into directions of one reference model."""
