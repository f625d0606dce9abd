"""What a trusted dataset looks like, recorded once and compared with."""
