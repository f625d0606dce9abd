"""What each rule finds in the rows."""
