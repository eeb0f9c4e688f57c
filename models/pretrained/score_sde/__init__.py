"""Song et al. 2021's networks: DDPM, DDPM++ and NCSN++."""
