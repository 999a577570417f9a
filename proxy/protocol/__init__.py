"""Pure facts about providers, clients and Lava, and the values that are passed between the folders."""
