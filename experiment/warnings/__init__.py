"""Settings that decide a number, and the lines that say so."""
