"""The control plane: gives tasks to agents under leases, and answers the people who submit them."""
