"""In place of the fork of Furniture-Bench that DPPO uses: its interface, and of its world a hand that goes where it is told."""
