"""Racing: circuits, car models and the driving task they make together."""
