"""Networks besides the policy: values, moving averages, several trained as one."""
