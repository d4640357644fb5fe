"""Suite `stochastic_bias`: with random replies M-DPO is biased and MTPO is not."""
