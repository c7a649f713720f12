"""How the guard's cost grows: with workers, stored keys, requests on one key, and the size of bodies."""
