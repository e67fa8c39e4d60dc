"""Who gets the bits: the knapsack, published programs, choices of a search."""
