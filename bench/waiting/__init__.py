"""How soon a request that waits for another one hears of its outcome."""
