"""One way to make what is missing, here or on Ray: recipes, and executors that follow them."""
