"""Where a gate's vectors come from: computed, cached, or shared."""
