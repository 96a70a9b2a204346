"""Training on real data, with and without priority: data sets, small models, and the demo."""
