"""A student for engines that run no Python: as an application of Vespa."""
