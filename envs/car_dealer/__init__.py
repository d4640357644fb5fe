"""Car Dealer: sell a car by talking."""
