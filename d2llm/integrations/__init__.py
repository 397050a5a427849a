"""Students and teachers inside other projects' libraries, each of which is imported where it is asked for."""
