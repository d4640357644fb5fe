"""Networks beside the policy: values, moving averages, several trained as one."""
