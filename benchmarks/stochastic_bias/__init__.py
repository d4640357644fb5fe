"""Suite stochastic_bias: where replies are left to chance M-DPO is biased and MTPO is not."""
