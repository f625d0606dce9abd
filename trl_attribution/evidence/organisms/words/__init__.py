"""The word banks that organisms are composed from; everything here was written for this project."""
