"""Which run needs which: the config of a suite, the tools and the plan."""
