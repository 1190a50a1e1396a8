"""Systems that are reached by SSH, and the ways in that need no more than a login node."""
