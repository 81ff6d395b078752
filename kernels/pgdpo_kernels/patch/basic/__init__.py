"""diffusers' basic transformer block and its kin, of UNets and of the first transformers without one."""
