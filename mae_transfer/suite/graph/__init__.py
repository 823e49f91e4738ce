"""Which run needs which: the config of a suite, ablations, the tools and the plan."""
