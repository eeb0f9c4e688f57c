"""Karras et al. 2022's networks: DDPM++, NCSN++ and ADM."""
