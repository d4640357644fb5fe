"""A preference with cycles on a small transformer: Nash methods against online DPO, IPO, SLiC and RLHF."""
